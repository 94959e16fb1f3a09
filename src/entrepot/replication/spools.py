"""Blobs that are sent on while they arrive: a file that one process writes, and any on the same machine read.

A process that fetches a blob writes it beside, into a file of its own, as it comes. The file says by itself how far it
is, so that readers need nothing else, and a slow one takes neither memory nor the fetch's time:

- its length is what has come; the whole blob and not a byte more: it is being judged
- one byte more than the blob has: it was judged, and is stored
- nothing: it is void
- nobody holds its lock (flock, which ends with the process): whoever wrote it is gone

The last byte is not sent before the blob was judged, so a complete answer is one that has the blob's digest.
"""

import asyncio
import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import structlog

from entrepot.errors import ArrivalBroken, ClientGone
from entrepot.oci.digest import Digest

_PIECE_BYTES = 1024 * 1024
# How often a file is looked at whose writer is not quicker than its reader.
_POLL_SECONDS, _MOST_POLL_SECONDS = 0.02, 0.2
# Longer than a source is waited for.
_STALL_SECONDS = 600
# A file has another name until it is locked, which takes no longer than this.
_ASIDE = ".new"
_ASIDE_SECONDS = 60
_JUDGED = b"\x00"

_log = structlog.stdlib.get_logger(__name__)


class Spools:
    """The files of a folder, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, digest: Digest, writer: str) -> "Spool":
        """A new file for what `writer` fetches. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Locked before anybody can find it.
        aside = self._folder / f"{uuid.uuid4().hex}{_ASIDE}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        path = self._path(digest, writer)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            aside.rename(path)
        except OSError:
            aside.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return Spool(path, descriptor)

    def find(self, digest: Digest, writer: str, size: int) -> "Arrival | None":
        """What `writer` fetches of a blob of `size` bytes; None where nothing has come, or not on this machine."""
        try:
            descriptor = os.open(self._path(digest, writer), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(descriptor).st_size and _is_written(descriptor):
            return Arrival(descriptor, digest, size)
        os.close(descriptor)
        return None

    def sweep(self) -> None:
        """Remove what processes left that are gone."""
        before = time.time() - _ASIDE_SECONDS
        for path in self._folder.iterdir() if self._folder.exists() else ():
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    is_aside = path.suffix == _ASIDE and os.fstat(descriptor).st_mtime > before
                    if not is_aside and not _is_written(descriptor):
                        path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)

    def _path(self, digest: Digest, writer: str) -> Path:
        return self._folder / f"{digest.algorithm}-{digest.hex}.{writer}"


class Spool:
    """A file that is being written."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._is_void = False
        self._writing: asyncio.Future[None] | None = None

    async def tee(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass pieces on, each after it was written. Where that fails, the file is void, and they pass all the same."""
        async for piece in pieces:
            if not self._is_void:
                try:
                    await self._write(piece)
                except OSError as error:
                    _log.warning("pulled blob not sent on", problem=str(error))
                    self.give_up()
            yield piece

    def give_up(self) -> None:
        """Let every reader know that this is nothing."""
        self._is_void = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)

    def hide(self) -> None:
        """Let nobody else find it."""
        self._path.unlink(missing_ok=True)

    async def end(self, *, is_judged: bool) -> None:
        """Say what became of the blob, and let go of the file, which is hidden: who reads it keeps it."""
        if self._writing is not None:
            # A thread that still writes must end first, or it would write to what is opened next.
            await asyncio.wait({self._writing})
        try:
            if is_judged and not self._is_void:
                await self._write(_JUDGED)
        except OSError:
            is_judged = False
        if not is_judged:
            self.give_up()
        # On a thread, since a large file takes its time to go away.
        await asyncio.to_thread(os.close, self._descriptor)

    async def _write(self, content: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, _write_all, self._descriptor, content)
        # A cancelled wait must not make the thread's work look done.
        await asyncio.shield(self._writing)


class Arrival:
    """A blob of `size` bytes that is on its way, as somebody reads it. To be read once, or closed."""

    def __init__(self, descriptor: int, digest: Digest, size: int) -> None:
        self._descriptor = descriptor
        self._digest = digest
        self._is_left = False
        self.size = size

    def leave(self) -> None:
        """Let nothing more be read of it: nobody is there any more for whom it would be."""
        self._is_left = True

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """All of it, as it comes.

        Raises ArrivalBroken instead of the last byte when it did not come whole, ClientGone once it was left.
        """
        sent, moved_at, wait = 0, time.monotonic(), _POLL_SECONDS
        try:
            while sent < self.size:
                if self._is_left:
                    raise ClientGone("the client went away before all was sent")
                # In this order: what is written before the lock goes is seen after it went.
                is_written = _is_written(self._descriptor)
                length = os.fstat(self._descriptor).st_size
                is_judged = length > self.size
                until = self.size if is_judged else min(length, self.size - 1)
                if length < sent or not (is_written or is_judged):
                    raise ArrivalBroken(f"blob {self._digest} did not arrive whole from its source; try again")
                if until > sent:
                    piece = await asyncio.to_thread(os.pread, self._descriptor, min(_PIECE_BYTES, until - sent), sent)
                    if piece:
                        sent, moved_at, wait = sent + len(piece), time.monotonic(), _POLL_SECONDS
                        yield piece
                        continue
                if time.monotonic() - moved_at > _STALL_SECONDS:
                    raise ArrivalBroken(f"blob {self._digest} does not arrive from its source; try again")
                await asyncio.sleep(wait)
                wait = min(wait * 1.5, _MOST_POLL_SECONDS)
        finally:
            self.close()


def _is_written(descriptor: int) -> bool:
    """Whether somebody holds the file's lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
