"""Objects as files of a folder.

Written and read with the system's own calls: through obstore, which copies what passes, a part of a file costs five
times the CPU (docs/decisions/0013). A file is written under its final name, since nobody looks for it before the
database has recorded it; what a killed process leaves is swept away as nobody's.
"""

import asyncio
import os
import stat
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from entrepot.oci.ranges import ByteRange
from entrepot.storage.objects import LISTED, PIECE_BYTES, SHARDS, ObjectMissing, StoredObject, storage_errors


class Folder:
    """`Objects` below `root`. Raises OSError when the folder cannot be made."""

    can_sign = False

    def __init__(self, root: Path) -> None:
        self._root = root
        _make_shards(root / "objects")

    async def put(self, key: str, blocks: AsyncIterator[bytes]) -> None:
        """Write a file while the next block is on its way."""
        path = self._root / key
        with storage_errors():
            file = _NewFile(path)
            try:
                async for block in blocks:
                    await file.write(block)
                await file.finish()
            except BaseException:
                file.abandon()
                raise

    async def read(self, key: str, part: ByteRange | None = None) -> AsyncIterator[bytes]:
        """The pieces of a file, each read on a thread."""
        path = self._root / key
        with storage_errors():
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                raise ObjectMissing(key) from None
            start, end = (0, os.fstat(file.fileno()).st_size) if part is None else (part.start, part.end)

        async def pieces() -> AsyncIterator[bytes]:
            at = start
            with file, storage_errors():
                while at < end:
                    piece = await asyncio.to_thread(os.pread, file.fileno(), min(PIECE_BYTES, end - at), at)
                    if not piece:
                        raise OSError(f"{path} ends at byte {at}")
                    yield piece
                    at += len(piece)

        return pieces()

    def find_file(self, key: str) -> Path | None:
        """The file itself."""
        return self._root / key

    async def sign(self, key: str, lifetime: timedelta) -> str:
        """Never: files have no URL."""
        raise AssertionError(f"nobody can be sent to {key} for {lifetime}")

    async def drop(self, key: str) -> None:
        """Remove a file."""
        with storage_errors():
            await asyncio.to_thread((self._root / key).unlink, missing_ok=True)

    async def list_shard(self, shard: str) -> AsyncIterator[list[StoredObject]]:
        """The files of a folder."""
        with storage_errors():
            found = await asyncio.to_thread(self._scan, f"objects/{shard}/")
        for start in range(0, len(found), LISTED):
            yield found[start : start + LISTED]

    async def verify_writable(self) -> None:
        """Write and remove a file."""
        path = self._root / "objects" / "00" / f"probe-{uuid.uuid4().hex}"

        def probe() -> None:
            try:
                path.write_bytes(b"ok")
            finally:
                path.unlink(missing_ok=True)

        with storage_errors():
            await asyncio.to_thread(probe)

    def _scan(self, prefix: str) -> list[StoredObject]:
        found = []
        try:
            entries = list(os.scandir(self._root / prefix))
        except FileNotFoundError:
            return []
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                found.append(StoredObject(prefix + entry.name, status.st_size, modified))
        return found


class _NewFile:
    """A file that is being written, by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._is_closed = False
        self._writing: asyncio.Future[None] | None = None

    async def write(self, block: bytes) -> None:
        """Begin to write a block, once the one before is written."""
        await self._written()
        self._writing = asyncio.get_running_loop().run_in_executor(None, _write_all, self._descriptor, block)

    async def finish(self) -> None:
        """Have the disk keep the file and its name."""
        await self._written()
        await asyncio.to_thread(_sync, self._descriptor, self._path.parent)
        self._close()

    def abandon(self) -> None:
        """Remove the file. A thread that still writes must end first, or it would write to what is opened next."""
        self._path.unlink(missing_ok=True)
        if self._writing is None or self._writing.done():
            self._close()
        else:
            self._writing.add_done_callback(self._close)

    async def _written(self) -> None:
        if self._writing is not None:
            # A cancelled wait must not make the thread's work look done.
            await asyncio.shield(self._writing)
            self._writing = None

    def _close(self, written: "asyncio.Future[None] | None" = None) -> None:
        if written is not None and not written.cancelled():
            written.exception()  # looked at, since nobody else will
        if not self._is_closed:
            self._is_closed = True
            os.close(self._descriptor)


def _write_all(descriptor: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync(descriptor: int, folder: Path) -> None:
    os.fsync(descriptor)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_shards(folder: Path) -> None:
    """Make the folders of all shards, so that writing an object makes a name in one folder alone."""
    if (folder / SHARDS[-1]).exists():
        return
    for shard in SHARDS:
        (folder / shard).mkdir(parents=True, exist_ok=True)
    _sync_folder(folder)
