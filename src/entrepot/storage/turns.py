"""Turns between processes: who waits longest goes next.

SQLite lets one process write at a time, and whoever waits for it asks again after pauses that grow to a tenth of a
second. A process that writes all the time takes its lock again in between, so that others wait for seconds. Here they
stand in line: the next one holds the line until the one before is done, and who is done must go to its end.

This is about order alone. What keeps two writers apart is SQLite's own lock, so a process that takes no turn, of a
version before this one or one that may not make these files, does no harm.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_PAUSE_SECONDS = 0.0005


class Turns:
    """A line of writers to one file; `patience_seconds` is how long one stands in it before it tries its luck."""

    def __init__(self, path: Path, patience_seconds: float) -> None:
        self._line = path.with_name(f"{path.name}-line")
        self._turn = path.with_name(f"{path.name}-turn")
        self._patience_seconds = patience_seconds

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and have it until the end."""
        deadline = time.monotonic() + self._patience_seconds
        with ExitStack() as stack:
            with _locked(self._line, deadline):
                stack.enter_context(_locked(self._turn, deadline))
            yield


@contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    """Hold a lock that ends with its holder, however that ends; after the deadline, go on without."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        while not _try_lock(file) and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        yield
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
