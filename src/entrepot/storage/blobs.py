"""Blob storage over obstore: a folder, S3, GCS or Azure by one URL.

Storage is a bag of objects under random names; the database says which of them hold blobs, which are parts of uploads,
and which are nobody's. An object appears whole or not at all and is never changed, so nothing has to be moved, copied
or locked: a blob comes into being when the database records it, and what is not recorded can be swept away later.
"""

import asyncio
import errno
import hashlib
import os
import stat
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

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
# S3 takes 10,000 parts of at least 5 MiB: enough for 78 GiB.
_PART_BYTES = {"file": 4 * 1024 * 1024, "s3": 8 * 1024 * 1024}
_PARTS_AT_ONCE = 2
_SCHEMES = ("file", "s3", "gs", "az", "azure", "abfs", "abfss")
SHARDS = tuple(f"{number:02x}" for number in range(256))
_LISTED = 1000
# How long an object store that could be written is taken at its word; a write costs money there.
_PROBE_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to reach an object store; credentials come from the SDK's own chain, web identity included.

    `public_endpoint` is the address that clients reach it by, for presigned URLs, where it is another.
    """

    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    connect_seconds: float = 5
    idle_seconds: float = 30


@dataclass(frozen=True, slots=True)
class Staged:
    """An object that nothing refers to yet: its name, its size in bytes, and the digest of its content."""

    key: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob that is there. `path` is its file where storage is a folder, for the server to send by itself."""

    digest: Digest
    size: int
    key: str
    path: Path | None
    store: ObjectStore

    async def read(self, part: ByteRange) -> AsyncIterator[bytes]:
        """The bytes of `part`, in order; they begin to flow once this returns.

        Raises BlobUnknown or StorageUnavailable; the iterator raises StorageUnavailable when it breaks off.
        """
        if not part.size:
            return _nothing()
        with _storage_errors():
            try:
                result = await obstore.get_async(self.store, self.key, options={"range": (part.start, part.end)})
            except (NotFoundError, FileNotFoundError):
                raise BlobUnknown(f"blob {self.digest} is not in storage") from None
        return _pieces(result)


class BlobStore:
    """Objects by name."""

    def __init__(self, url: str, options: StoreOptions | None = None) -> None:
        scheme, _, path = url.partition("://")
        if scheme not in _SCHEMES or not path or (scheme == "file" and not path.startswith("/")):
            raise SettingsInvalid(
                f"ENTREPOT_STORAGE_URL {visible(url)!r}: use file:///ABSOLUTE/PATH, s3://BUCKET[/PREFIX], "
                "gs://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]"
            )
        options = options or StoreOptions()
        self._root = Path(path) if scheme == "file" else None
        self._part_bytes = _PART_BYTES.get(scheme, _PART_BYTES["s3"])
        self._store: ObjectStore
        self._signer: ObjectStore
        if self._root is not None:
            try:
                self._store = self._signer = LocalStore(self._root, mkdir=True)
                _make_shards(self._root / "objects")
            except (StoreError, OSError) as error:
                raise SettingsInvalid(f"the folder for blobs {self._root} cannot be made or read") from error
        else:
            self._store = _open_store(url, options, options.endpoint)
            is_same = options.public_endpoint in {"", options.endpoint}
            self._signer = self._store if is_same else _open_store(url, options, options.public_endpoint)
        self._written_at = float("-inf")

    @property
    def can_sign(self) -> bool:
        """Whether clients can be sent to the store itself."""
        return self._root is None

    async def open(self, key: str, digest: Digest, size: int) -> OpenBlob:
        """The blob in an object, ready to be read.

        Raises BlobUnknown or StorageUnavailable. An object store tells only when it is read whether it has the object.
        """
        if self._root is None:
            return OpenBlob(digest, size, key, None, self._store)
        path = self._root / key
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise BlobUnknown(f"blob {digest} is not in storage") from None
        except OSError as error:
            raise StorageUnavailable(f"blob {digest} cannot be read from storage") from error
        if found != size:
            raise StorageUnavailable(f"blob {digest} is damaged: {found} bytes are in storage instead of {size}")
        return OpenBlob(digest, size, key, path, self._store)

    async def sign(self, blob: OpenBlob, lifetime: timedelta) -> str:
        """A URL by which anybody can GET the blob for a while. Raises StorageUnavailable."""
        with _storage_errors():
            # Every store that is not a folder can.
            return await obstore.sign_async(self._signer, "GET", blob.key, lifetime)  # type: ignore[call-overload, no-any-return]

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
            with _storage_errors():
                await obstore.put_async(
                    self._store, key, meter, chunk_size=self._part_bytes, max_concurrency=_PARTS_AT_ONCE
                )
                if self._root is not None:
                    # The library leaves that to whoever needs it; what is acknowledged must survive a power cut.
                    path = self._root / key
                    await asyncio.to_thread(_sync, path, path.parent)
        except asyncio.CancelledError:
            # The library may have been quicker than the cancellation.
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
                async for piece in self._read(part.key):
                    yield piece

        return await self.stage(pieces(), limit=sum(part.size for part in parts), expected=expected)

    async def find_digest(self, staged: Staged, algorithm: str) -> Digest:
        """The digest of a staged object by another algorithm. Raises UploadUnknown or StorageUnavailable."""
        hasher = hashlib.new(algorithm)
        async for piece in self._read(staged.key):
            await asyncio.to_thread(hasher.update, piece)
        return Digest(algorithm, hasher.hexdigest())

    async def drop(self, *keys: str) -> None:
        """Drop objects; harmless when they are gone. Raises StorageUnavailable."""
        with _storage_errors():
            for key in keys:
                if self._root is not None:
                    # Not by the library: it does not take the names of its own unfinished files.
                    await asyncio.to_thread((self._root / key).unlink, missing_ok=True)
                    continue
                try:
                    await obstore.delete_async(self._store, key)
                except (NotFoundError, FileNotFoundError):
                    continue

    async def list_objects(self, shard: str) -> AsyncIterator[list[StoredObject]]:
        """All objects of one of the SHARDS, by pages; unfinished ones too, where storage is a folder."""
        prefix = f"objects/{shard}/"
        with _storage_errors():
            if self._root is not None:
                found = await asyncio.to_thread(_scan, self._root, prefix)
                for start in range(0, len(found), _LISTED):
                    yield found[start : start + _LISTED]
                return
            async for page in obstore.list(self._store, prefix=prefix, chunk_size=_LISTED):
                yield [StoredObject(entry["path"], entry["size"], entry["last_modified"]) for entry in page]

    async def verify_writable(self) -> None:
        """Write and drop a small object. Raises StorageFull or StorageUnavailable."""
        if self._root is None and time.monotonic() - self._written_at < _PROBE_SECONDS:
            return
        key = f"objects/00/probe-{uuid.uuid4().hex}"
        with _storage_errors():
            await obstore.put_async(self._store, key, b"ok")
            await obstore.delete_async(self._store, key)
        self._written_at = time.monotonic()

    async def _read(self, key: str) -> AsyncIterator[bytes]:
        with _storage_errors():
            try:
                result = await obstore.get_async(self._store, key)
            except (NotFoundError, FileNotFoundError) as error:
                raise UploadUnknown("the upload was finished or dropped meanwhile; begin a new one") from error
            async for piece in result.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)


class _Meter:
    """Passes pieces on while it counts and hashes them; stops at the limit, or at the end with another digest.

    It remembers why it stopped. Raising there, before the library is told of the end, makes it keep nothing.
    """

    def __init__(self, pieces: AsyncIterator[bytes], limit: int, algorithm: str, expected: Digest | None) -> None:
        self._pieces = pieces
        self._limit = limit
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self._expected = expected
        self.size = 0
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
        except StopAsyncIteration:
            if self._expected is not None and self.digest != self._expected:
                self.failure = DigestMismatch(
                    f"the content has digest {self.digest}, not {self._expected} as announced; nothing was kept"
                )
                raise self.failure from None
            raise
        except EntrepotError as error:
            self.failure = error
            raise
        self._hasher.update(piece)
        return piece

    @property
    def digest(self) -> Digest:
        """The digest so far."""
        return Digest(self._algorithm, self._hasher.hexdigest())


def first_key(digest: Digest) -> str:
    """Where version 0001 kept a blob: under its digest."""
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def visible(url: str) -> str:
    """A storage URL without what may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _open_store(url: str, options: StoreOptions, endpoint: str) -> ObjectStore:
    config: dict[str, Any] = {}
    if endpoint:
        config["endpoint"] = endpoint
    if options.region:
        config["region"] = options.region
    client: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=options.connect_seconds),
        "read_timeout": timedelta(seconds=options.idle_seconds),
        # The whole of a large blob takes its time; what must not happen is that nothing arrives.
        "timeout": timedelta(days=1),
        "default_content_type": "application/octet-stream",
    }
    retry: dict[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=options.idle_seconds)}
    open_any: Any = from_url  # its overloads ask for the kind of store that the URL only tells at run time
    try:
        store: ObjectStore = open_any(url, config=config, client_options=client, retry_config=retry)
    except (StoreError, ValueError) as error:
        raise SettingsInvalid(f"ENTREPOT_STORAGE_URL {visible(url)!r}: {str(error).splitlines()[0]}") from error
    return store


def _make_shards(folder: Path) -> None:
    """Make the folders of all shards, so that writing an object makes a name in one folder alone."""
    if (folder / SHARDS[-1]).exists():
        return
    for shard in SHARDS:
        (folder / shard).mkdir(parents=True, exist_ok=True)
    _sync(folder)


def _sync(*paths: Path) -> None:
    """Have the disk keep files and folders; of a folder, the names in it."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _scan(root: Path, prefix: str) -> list[StoredObject]:
    """The files of a folder, those included that the library has not finished."""
    found = []
    try:
        entries = list(os.scandir(root / prefix))
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


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece


async def _pieces(result: Any) -> AsyncIterator[bytes]:
    with _storage_errors():
        async for piece in result.stream(min_chunk_size=PIECE_BYTES):
            yield bytes(piece)


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
