"""Blob storage: a folder, S3, GCS or Azure by one URL.

Storage is a bag of objects under random names; the database says which of them hold blobs, which are parts of uploads,
and which are nobody's. An object is never changed, so nothing has to be moved, copied or locked: a blob comes into
being when the database records an object that is whole, and what is not recorded can be swept away later.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from obstore.exceptions import BaseError as StoreError

from entrepot.errors import (
    BlobTooLarge,
    BlobUnknown,
    DigestMismatch,
    EntrepotError,
    SettingsInvalid,
    StorageUnavailable,
    UploadUnknown,
)
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.storage.bucket import Bucket, StoreOptions
from entrepot.storage.folder import Folder
from entrepot.storage.objects import PIECE_BYTES, SHARDS, ObjectMissing, Objects, StoredObject

__all__ = ["SHARDS", "BlobStore", "OpenBlob", "Staged", "StoreOptions", "StoredObject", "first_key", "visible"]

_SCHEMES = ("file", "s3", "gs", "az", "azure", "abfs", "abfss")
# A hand-over to a thread costs more than hashing so little.
_HASHED_AT_ONCE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """An object that nothing refers to yet: its name, its size in bytes, and the digest of its content."""

    key: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob that is there. `path` is its file where storage is a folder, for the server to send by itself."""

    digest: Digest
    size: int
    key: str
    path: Path | None
    objects: Objects

    async def read(self, part: ByteRange) -> AsyncIterator[bytes]:
        """The bytes of `part`, in order; they begin to flow once this returns.

        Raises BlobUnknown or StorageUnavailable; the iterator raises StorageUnavailable when it breaks off.
        """
        if not part.size:
            return _nothing()
        try:
            return await self.objects.read(self.key, part)
        except ObjectMissing:
            raise BlobUnknown(f"blob {self.digest} is not in storage") from None


class BlobStore:
    """Objects by name."""

    def __init__(self, url: str, options: StoreOptions | None = None) -> None:
        scheme, _, path = url.partition("://")
        if scheme not in _SCHEMES or not path or (scheme == "file" and not path.startswith("/")):
            raise SettingsInvalid(
                f"ENTREPOT_STORAGE_URL {visible(url)!r}: use file:///ABSOLUTE/PATH, s3://BUCKET[/PREFIX], "
                "gs://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]"
            )
        self._objects: Objects
        try:
            self._objects = Folder(Path(path)) if scheme == "file" else Bucket(url, options or StoreOptions())
        except OSError as error:
            raise SettingsInvalid(f"the folder for blobs {path} cannot be made or read") from error
        except (StoreError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsInvalid(f"ENTREPOT_STORAGE_URL {visible(url)!r}: {reason}") from error

    @property
    def can_sign(self) -> bool:
        """Whether clients can be sent to the store itself."""
        return self._objects.can_sign

    async def open(self, key: str, digest: Digest, size: int) -> OpenBlob:
        """The blob in an object, ready to be read.

        Raises BlobUnknown or StorageUnavailable. An object store tells only when it is read whether it has the object.
        """
        path = self._objects.find_file(key)
        if path is not None:
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise BlobUnknown(f"blob {digest} is not in storage") from None
            except OSError as error:
                raise StorageUnavailable(f"blob {digest} cannot be read from storage") from error
            if found != size:
                raise StorageUnavailable(f"blob {digest} is damaged: {found} bytes are in storage instead of {size}")
        return OpenBlob(digest, size, key, path, self._objects)

    async def sign(self, blob: OpenBlob, lifetime: timedelta) -> str:
        """A URL by which anybody can GET the blob for a while. Raises StorageUnavailable."""
        return await self._objects.sign(blob.key, lifetime)

    async def stage(
        self, pieces: AsyncIterator[bytes], *, limit: int, algorithm: str = "sha256", expected: Digest | None = None
    ) -> Staged:
        """Keep `pieces` as an object, hashing on the way.

        Raises BlobTooLarge beyond `limit` bytes, DigestMismatch unless they have the `expected` digest, StorageFull,
        StorageUnavailable, or what `pieces` raises; then nothing of it stays.
        """
        name = uuid.uuid4().hex
        key = f"objects/{name[:2]}/{name}"
        meter = _Meter(pieces, limit, algorithm if expected is None else expected.algorithm, expected)
        try:
            await self._objects.put(key, meter)
        except asyncio.CancelledError:
            # The store may have been quicker than the cancellation.
            await asyncio.shield(self.drop(key))
            raise
        except EntrepotError:
            if meter.failure is not None:
                raise meter.failure from None
            raise
        return Staged(key, meter.size, meter.digest)

    async def join(self, parts: Iterable[Staged], expected: Digest) -> Staged:
        """One object out of several, in their order (none make an empty one); the parts stay.

        Raises what `stage` raises, and UploadUnknown when a part is gone.
        """
        parts = list(parts)

        async def pieces() -> AsyncIterator[bytes]:
            for part in parts:
                async for piece in self.read_staged(part.key):
                    yield piece

        return await self.stage(pieces(), limit=sum(part.size for part in parts), expected=expected)

    async def find_digest(self, staged: Staged, algorithm: str) -> Digest:
        """The digest of a staged object by another algorithm. Raises UploadUnknown or StorageUnavailable."""
        hasher = hashlib.new(algorithm)
        async for piece in self.read_staged(staged.key):
            await asyncio.to_thread(hasher.update, piece)
        return Digest(algorithm, hasher.hexdigest())

    async def read_staged(self, key: str) -> AsyncIterator[bytes]:
        """The bytes of a staged object. Raises UploadUnknown or StorageUnavailable."""
        try:
            pieces = await self._objects.read(key)
        except ObjectMissing as error:
            raise UploadUnknown("the upload was finished or dropped meanwhile; begin a new one") from error
        async for piece in pieces:
            yield piece

    async def drop(self, *keys: str) -> None:
        """Drop objects; harmless when they are gone. Raises StorageUnavailable."""
        for key in keys:
            await self._objects.drop(key)

    def list_objects(self, shard: str) -> AsyncIterator[list[StoredObject]]:
        """All objects of one of the SHARDS, by pages; unfinished ones too."""
        return self._objects.list_shard(shard)

    async def verify_writable(self) -> None:
        """Write and drop a small object. Raises StorageFull or StorageUnavailable."""
        await self._objects.verify_writable()


class _Meter:
    """Passes content on in blocks while it counts and hashes it; stops at the limit, or at the end with another digest.

    A block is hashed on a thread while the next one is received, since receiving, hashing and writing cost about the
    same. It remembers why it stopped. Raising there, before the library is told of the end, makes it keep nothing.
    """

    def __init__(self, pieces: AsyncIterator[bytes], limit: int, algorithm: str, expected: Digest | None) -> None:
        self._pieces = pieces
        self._limit = limit
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self._hashing: asyncio.Future[None] | None = None
        self._expected = expected
        self._is_over = False
        self.size = 0
        self.failure: EntrepotError | None = None

    def __aiter__(self) -> "_Meter":
        return self

    async def __anext__(self) -> bytes:
        try:
            block = await self._receive()
            if self._hashing is not None:
                await self._hashing
                self._hashing = None
            if not block:
                self._verify_expected()
                raise StopAsyncIteration
        except EntrepotError as error:
            self.failure = error
            raise
        if len(block) < _HASHED_AT_ONCE:
            self._hasher.update(block)
        else:
            self._hashing = asyncio.get_running_loop().run_in_executor(None, self._hasher.update, block)
        return block

    async def _receive(self) -> bytes:
        """The next block, which is short or empty only at the end: handing one on costs the same, however long."""
        parts: list[bytes] = []
        full = self.size + PIECE_BYTES
        while self.size < full and not self._is_over:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                self._is_over = True
                break
            self.size += len(piece)
            if self.size > self._limit:
                raise BlobTooLarge(f"more than {self._limit} bytes were sent; nothing was kept")
            parts.append(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _verify_expected(self) -> None:
        if self._expected is not None and self.digest != self._expected:
            raise DigestMismatch(
                f"the content has digest {self.digest}, not {self._expected} as announced; nothing was kept"
            )

    @property
    def digest(self) -> Digest:
        """The digest of all that was passed on, once the end was reached."""
        return Digest(self._algorithm, self._hasher.hexdigest())


def first_key(digest: Digest) -> str:
    """Where version 0001 kept a blob: under its digest."""
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def visible(url: str) -> str:
    """A storage URL without what may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece
