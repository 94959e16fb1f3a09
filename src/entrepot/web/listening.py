"""What the kernel is told of the socket that this process listens on.

The server sends whole files by itself, and waits as long as a client leaves them unread; so the kernel has to notice.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

# The server opens its socket only after the application has started.
_PAUSE_SECONDS = 0.02
_TRIES = 500


async def give_up_unread(seconds: float) -> None:
    """Have connections ended whose client takes nothing for so long while something is on its way to it.

    Accepted sockets take it over from the one that listens. Source: tcp(7), TCP_USER_TIMEOUT.
    """
    for _ in range(_TRIES):
        is_found = False
        for listener in _listeners():
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
            is_found = True
        if is_found:
            return
        await asyncio.sleep(_PAUSE_SECONDS)


def _listeners() -> Iterator[socket.socket]:
    """The TCP sockets on which this process listens, open only while they are looked at."""
    for entry in Path("/proc/self/fd").iterdir():
        # Of those that are no sockets, or gone by now, there is nothing to say.
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as found:
                is_tcp = found.family in {socket.AF_INET, socket.AF_INET6} and found.type == socket.SOCK_STREAM
                if is_tcp and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield found
