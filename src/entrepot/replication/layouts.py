"""OCI image layouts as files: a folder, or a tar file of one, which is read where it lies.

Implements image-spec 1.1, image-layout.md. Nothing is unpacked, and only names that the spec gives are ever looked up,
so no name in an archive leads anywhere. Symbolic links are not followed: they could lead out of the folder.
"""

import asyncio
import io
import os
import re
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from entrepot.oci.digest import Digest

MARKER: Final = "oci-layout"
MARKER_CONTENT: Final = b'{"imageLayoutVersion": "1.0.0"}'
INDEX: Final = "index.json"
# image-spec 1.1, annotations.md; and what containerd and docker write beside it.
REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"

# 60,000 tags or so.
MAX_INDEX_BYTES: Final = 16 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024
_NAMES = re.compile(r"oci-layout|index\.json|blobs/(?:sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})")
_MAX_MEMBERS = 1_000_000
# What tar says of one member: names and times.
_HEADER_BYTES = 1024 * 1024
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC_BYTES = 8


def blob_name(digest: Digest) -> str:
    """Where a layout has the content of a digest."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


class LayoutBroken(Exception):
    """The files are not those of an image layout."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of an open file: `size` of them, from `start` on. `is_owned` when the file is to be closed with it."""

    descriptor: int
    start: int
    size: int
    is_owned: bool

    def read(self, at: int, most: int) -> bytes:
        """Up to `most` bytes from `at` on. Raises EOFError where the file ends too early."""
        piece = os.pread(self.descriptor, min(most, self.size - at), self.start + at)
        if not piece and at < self.size:
            raise EOFError
        return piece

    def close(self) -> None:
        """Let go of it."""
        if self.is_owned:
            os.close(self.descriptor)


class Layout(Protocol):
    """The files of an image layout. Every method blocks for no longer than a disk does."""

    def open(self, name: str) -> Part:
        """A file, ready to be read. Raises FileNotFoundError, another OSError, or LayoutBroken."""

    def close(self) -> None:
        """Let go of it."""


class FolderLayout:
    """A layout in a folder. Raises OSError when that cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: str) -> Part:
        """A file of the folder; no link on the way to it is followed."""
        *folders, file = name.split("/")
        with _descended(self._folder, folders) as folder:
            descriptor = _open_plainly(file, folder, os.O_NONBLOCK)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise LayoutBroken(f"{name} is no plain file")
        return Part(descriptor, 0, status.st_size, is_owned=True)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._folder)


def _open_plainly(name: str, folder: int, flags: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)


@contextmanager
def _descended(folder: int, names: list[str]) -> Iterator[int]:
    """The folder that `names` lead to from a folder."""
    current = folder
    try:
        for name in names:
            below = _open_plainly(name, current, os.O_DIRECTORY)
            if current != folder:
                os.close(current)
            current = below
        yield current
    finally:
        if current != folder:
            os.close(current)


class TarLayout:
    """A layout in a tar file, of which only the members' places are kept. Raises OSError, LayoutBroken."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        try:
            self._members = dict(_scan(path))
        except BaseException:
            self._file.close()
            raise

    def open(self, name: str) -> Part:
        """A member."""
        found = self._members.get(name)
        if found is None:
            raise FileNotFoundError(name)
        start, size = found
        return Part(self._file.fileno(), start, size, is_owned=False)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _Headers(io.FileIO):
    """A tar file of which only headers are read: no member can make the reader take in much at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _scan(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (start, size)) of every member that a layout may have; of several with one name, the last holds."""
    try:
        with _Headers(path) as file:
            _verify_uncompressed(file.read(_MAGIC_BYTES))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                at = -1
                for _ in range(_MAX_MEMBERS):
                    member = tar.next()
                    if member is None:
                        return
                    # A member of negative size would have the reader go round in circles (CVE-2025-8194).
                    if tar.offset <= at or member.size < 0:
                        raise tarfile.ReadError("members that overlap")
                    at = tar.offset
                    tar.members = []  # type: ignore[attr-defined] # or it would keep them all
                    name = member.name.removeprefix("./")
                    if member.isreg() and not member.issparse() and _NAMES.fullmatch(name):
                        yield name, (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise LayoutBroken(f"it is neither a folder nor a tar file that can be read ({error})") from error
    raise LayoutBroken(f"it has more than {_MAX_MEMBERS} members")


def _verify_uncompressed(magic: bytes) -> None:
    for beginning, kind in _COMPRESSED.items():
        if magic.startswith(beginning):
            raise LayoutBroken(f"it is compressed with {kind}; unpack it to a plain tar file first")


def open_layout(path: Path) -> Layout:
    """The layout at a path. Raises OSError or LayoutBroken."""
    return FolderLayout(path) if path.is_dir() else TarLayout(path)


async def read_pieces(part: Part, start: int = 0) -> AsyncIterator[bytes]:
    """A part's bytes from `start` on, each piece read on a thread. Raises OSError, EOFError."""
    at = start
    while at < part.size:
        piece = await asyncio.to_thread(part.read, at, _PIECE_BYTES)
        yield piece
        at += len(piece)


def read_small(layout: Layout, name: str, limit: int) -> bytes | None:
    """A whole file of at most `limit` bytes, None when it is larger. Raises OSError, EOFError, LayoutBroken."""
    found = layout.open(name)
    try:
        if found.size > limit:
            return None
        content = b""
        while len(content) < found.size:
            content += found.read(len(content), found.size)
        return content
    finally:
        found.close()
