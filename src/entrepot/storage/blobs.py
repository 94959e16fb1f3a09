"""Blob storage over obstore: a folder now, object stores by the same interface.

Two areas: `uploads/` holds bytes that nobody has vouched for yet, `blobs/` holds content under its own digest. A blob
enters `blobs/` by one rename, after its digest was computed, so whoever finds it there finds all of it.
"""

import asyncio
import errno
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore

from entrepot.errors import (
    BlobTooLarge,
    BlobUnknown,
    DigestMismatch,
    EntrepotError,
    SettingsInvalid,
    StorageFull,
    StorageUnavailable,
    UploadUnknown,
)
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange

# Large enough that the cost per piece vanishes, small enough for a hundred streams at once.
PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes in the upload area: where, how many, and their SHA-256 in hex."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob that is there. `path` is its file where storage is a folder, for the server to send by itself."""

    digest: Digest
    size: int
    path: Path | None
    store: LocalStore

    async def pieces(self, part: ByteRange) -> AsyncIterator[bytes]:
        """The bytes of `part`, in order. Raises StorageUnavailable."""
        with _storage_errors():
            result = await obstore.get_async(
                self.store, _blob_key(self.digest), options={"range": (part.start, part.end)}
            )
            async for piece in result.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)


class BlobStore:
    """Content under its digest, and the area where it is collected."""

    def __init__(self, url: str) -> None:
        scheme, _, path = url.partition("://")
        if scheme != "file" or not path.startswith("/"):
            raise SettingsInvalid(
                f"ENTREPOT_STORAGE_URL {url!r}: this version keeps blobs in a folder; use file:///ABSOLUTE/PATH"
            )
        self._root = Path(path)
        self._store = LocalStore(self._root, mkdir=True, automatic_cleanup=True)

    async def open(self, digest: Digest) -> OpenBlob:
        """The blob, ready to be read. Raises BlobUnknown."""
        path = self._root / _blob_key(digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise BlobUnknown(f"blob {digest} is not in storage") from None
        except OSError as error:
            raise StorageUnavailable(f"blob {digest} cannot be read from storage") from error
        return OpenBlob(digest, size, path, self._store)

    async def stage(self, pieces: AsyncIterator[bytes], *, limit: int) -> Staged:
        """Keep `pieces` in the upload area, hashing on the way.

        Raises BlobTooLarge beyond `limit` bytes, StorageFull, StorageUnavailable, or what `pieces` raises; then nothing
        of it stays.
        """
        key = f"uploads/{uuid.uuid4().hex}"
        meter = _Meter(pieces, limit)
        try:
            with _storage_errors():
                await obstore.put_async(self._store, key, meter, chunk_size=PIECE_BYTES * 4, max_concurrency=2)
        except asyncio.CancelledError:
            # The library may have been quicker than the cancellation.
            await asyncio.shield(self.drop(Staged(key, 0, "")))
            raise
        except EntrepotError:
            if meter.failure is not None:
                raise meter.failure from None
            raise
        return Staged(key, meter.size, meter.sha256.hexdigest())

    async def keep(self, staged: Iterable[Staged], digest: Digest) -> int:
        """Move staged bytes, in this order, to where `digest` is served from; answers their number.

        Raises DigestMismatch when the bytes are others than announced. Either way nothing stays staged.
        """
        parts = list(staged)
        whole = parts[0] if len(parts) == 1 else await self._join(parts)
        if digest.algorithm == "sha256":
            actual = Digest("sha256", whole.sha256)
        else:
            actual = await self._hash(whole.key, digest)
        if actual != digest:
            await self.drop(whole, *parts)
            raise DigestMismatch(f"the content has digest {actual}, not {digest} as announced; nothing was kept")
        with _storage_errors():
            try:
                await obstore.rename_async(self._store, whole.key, _blob_key(digest))
            except (NotFoundError, FileNotFoundError) as error:
                raise UploadUnknown("the upload was finished or dropped meanwhile; begin a new one") from error
        # Only now: a crash before the rename must leave the parts for another try.
        await self.drop(*(part for part in parts if part is not whole))
        return whole.size

    async def drop(self, *staged: Staged) -> None:
        """Drop staged bytes; harmless when they are gone."""
        with _storage_errors():
            for part in staged:
                try:
                    await obstore.delete_async(self._store, part.key)
                except (NotFoundError, FileNotFoundError):
                    continue

    async def _join(self, parts: list[Staged]) -> Staged:
        """One staged object out of several (none make an empty one)."""

        async def pieces() -> AsyncIterator[bytes]:
            for part in parts:
                async for piece in self._read(part.key):
                    yield piece

        return await self.stage(pieces(), limit=sum(part.size for part in parts))

    async def _hash(self, key: str, digest: Digest) -> Digest:
        hasher = digest.hasher()
        async for piece in self._read(key):
            await asyncio.to_thread(hasher.update, piece)
        return Digest(digest.algorithm, hasher.hexdigest())

    async def _read(self, key: str) -> AsyncIterator[bytes]:
        with _storage_errors():
            result = await obstore.get_async(self._store, key)
            async for piece in result.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    async def verify_writable(self) -> None:
        """Write and drop a small object. Raises StorageFull or StorageUnavailable."""
        key = f"uploads/probe-{uuid.uuid4().hex}"
        with _storage_errors():
            await obstore.put_async(self._store, key, b"ok")
            await obstore.delete_async(self._store, key)


class _Meter:
    """Passes pieces on while it counts and hashes them; stops at the limit. It remembers why it stopped."""

    def __init__(self, pieces: AsyncIterator[bytes], limit: int) -> None:
        self._pieces = pieces
        self._limit = limit
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.failure: EntrepotError | None = None

    def __aiter__(self) -> "_Meter":
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._pieces)
            while not piece:
                piece = await anext(self._pieces)
            self.size += len(piece)
            if self.size > self._limit:
                raise BlobTooLarge(f"more than {self._limit} bytes were sent; nothing was kept")
        except EntrepotError as error:
            self.failure = error
            raise
        self.sha256.update(piece)
        return piece


def _blob_key(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


@contextmanager
def _storage_errors() -> Iterator[None]:
    """The one place where the library's errors become ours."""
    try:
        yield
    except EntrepotError:
        raise
    except (StoreError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if is_full or "No space left" in str(error) or "quota exceeded" in str(error).lower():
            raise StorageFull("blob storage is full; nothing of this upload was kept") from error
        raise StorageUnavailable("blob storage failed; try again in a moment") from error
