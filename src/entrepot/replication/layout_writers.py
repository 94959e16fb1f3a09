"""Writing OCI image layouts: into a folder, where an export that was cut off goes on, or as a tar file in one go.

What is not whole is never seen: a blob gets its name once its digest was checked, the tar file its own when it is
complete, and the index, which makes content reachable, comes last.
"""

import asyncio
import fcntl
import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from entrepot.errors import ArchiveUnwritable, DigestMismatch
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.replication.layouts import (
    INDEX,
    MARKER,
    MARKER_CONTENT,
    MAX_INDEX_BYTES,
    REF_NAME,
    FolderLayout,
    LayoutBroken,
    blob_name,
    read_small,
)

_TAR_BLOCK = 512
_MODE = 0o644

Entry = dict[str, Any]
"""A descriptor in index.json."""


class LayoutWriter(Protocol):
    """Takes blobs and, last of all, the index. Every method raises ArchiveUnwritable."""

    async def has(self, digest: Digest, size: int) -> bool:
        """Whether a blob is there already."""

    async def put(self, digest: Digest, size: int, pieces: AsyncIterator[bytes]) -> None:
        """Keep a blob. Raises DigestMismatch, or what `pieces` raises; then nothing of it stays."""

    async def finish(self, entries: list[Entry]) -> None:
        """Keep the index, by which everything is found."""


class FolderWriter:
    """Writes a layout into a folder, beside what is there already."""

    def __init__(self, folder: Path, kept: list[Entry]) -> None:
        self._folder = folder
        self._kept = kept

    async def has(self, digest: Digest, size: int) -> bool:
        """Whether a file of this name is there, which it has only when it was whole."""
        try:
            return (self._folder / blob_name(digest)).stat().st_size == size
        except OSError:
            return False

    async def put(self, digest: Digest, size: int, pieces: AsyncIterator[bytes]) -> None:
        """Write a file aside, and name it when its digest was checked."""
        path = self._folder / blob_name(digest)
        with _system_errors(path), _replaced(path) as file:
            await _write_checked(file, digest, size, pieces)

    async def finish(self, entries: list[Entry]) -> None:
        """Replace the index: what it named before is still there, unless it is named anew."""
        with _system_errors(self._folder), _replaced(self._folder / INDEX) as file:
            file.write(_render_index(_merge(self._kept, entries)))


class TarWriter:
    """Writes a layout as a tar file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._written: dict[Digest, int] = {}

    async def has(self, digest: Digest, size: int) -> bool:
        """Whether it was written before."""
        return self._written.get(digest) == size

    async def put(self, digest: Digest, size: int, pieces: AsyncIterator[bytes]) -> None:
        """Write a member."""
        with _system_errors(self._path):
            self._begin(blob_name(digest), size)
            await _write_checked(self._file, digest, size, pieces)
            self._file.write(bytes(-size % _TAR_BLOCK))
        self._written[digest] = size

    async def finish(self, entries: list[Entry]) -> None:
        """Write the index and the end."""
        with _system_errors(self._path):
            self.add(INDEX, _render_index(entries))
            self._file.write(bytes(2 * _TAR_BLOCK))

    def add(self, name: str, content: bytes) -> None:
        """Write a small member."""
        self._begin(name, len(content))
        self._file.write(content + bytes(-len(content) % _TAR_BLOCK))

    def _begin(self, name: str, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, _MODE
        self._file.write(member.tobuf(tarfile.PAX_FORMAT))


@contextmanager
def open_writer(path: Path) -> Iterator[LayoutWriter]:
    """A writer of a tar file when the path ends in .tar, else of a folder. Raises ArchiveUnwritable."""
    with _system_errors(path):
        if path.suffix == ".tar":
            with _replaced(path) as file:
                writer = TarWriter(file, path)
                writer.add(MARKER, MARKER_CONTENT)
                yield writer
            return
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            kept = _read_kept(path)
            for algorithm in ("sha256", "sha512"):
                (path / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
            yield FolderWriter(path, kept)


def _read_kept(folder: Path) -> list[Entry]:
    """The entries of a layout that is to be added to; an empty folder becomes one without any."""
    if not any(folder.iterdir()):
        with _replaced(folder / MARKER) as file:
            file.write(MARKER_CONTENT)
    layout = FolderLayout(folder)
    try:
        layout.open(MARKER).close()
        index = read_small(layout, INDEX, MAX_INDEX_BYTES)
        entries = json.loads(index or b"")["manifests"]
    except FileNotFoundError as error:
        # Without an index it is an export of ours that was cut off.
        if error.filename == INDEX:
            return []
        raise ArchiveUnwritable(f"{folder} holds other things than an OCI layout; name a folder of its own") from error
    except (LayoutBroken, EOFError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArchiveUnwritable(f"{folder} holds an {INDEX} that cannot be added to; name another folder") from error
    finally:
        layout.close()
    return [entry for entry in entries if isinstance(entry, dict)]


def _merge(kept: list[Entry], entries: list[Entry]) -> list[Entry]:
    """All entries, of which the new ones replace those of the same name, or without a name of the same digest."""

    def key(entry: Entry) -> tuple[str, str]:
        annotations = entry.get("annotations")
        name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
        return ("name", str(name)) if name else ("digest", str(entry.get("digest")))

    return list(({key(entry): entry for entry in kept} | {key(entry): entry for entry in entries}).values())


def _render_index(entries: list[Entry]) -> bytes:
    document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
    content = json.dumps(document, indent=1).encode()
    if len(content) > MAX_INDEX_BYTES:
        raise ArchiveUnwritable(f"an index of {len(content)} bytes would be too large to be read; export fewer tags")
    return content


async def _write_checked(file: BinaryIO, digest: Digest, size: int, pieces: AsyncIterator[bytes]) -> None:
    """Write `pieces`, hashing on the way. Raises DigestMismatch."""
    hasher, written = digest.hasher(), 0
    async for piece in pieces:
        hasher.update(piece)
        written += len(piece)
        await asyncio.to_thread(file.write, piece)
    if written != size or hasher.hexdigest() != digest.hex:
        raise DigestMismatch(f"blob {digest} is damaged in storage: what was read has another digest")


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the place of the one at `path` when all went well."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else's folder to write to meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ArchiveUnwritable(f"{folder}: another export is writing to it") from error
    finally:
        os.close(descriptor)


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """The one place where the system's errors become ours."""
    try:
        yield
    except OSError as error:
        raise ArchiveUnwritable(f"{path} cannot be written: {error.strerror}") from error
