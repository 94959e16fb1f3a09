"""Upload sessions: blobs that arrive in one or several requests, on one or several processes.

Each request's body becomes one object in storage; the database knows the chunks and their order. The last request names
the digest, and only then does the blob come into being. The usual session of one chunk becomes the blob as it is.

Spec: distribution-spec 1.1, "Pushing blobs".
"""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import sqlalchemy as sa

from entrepot.errors import (
    BlobTooLarge,
    DigestMismatch,
    QuotaExceeded,
    SizeInvalid,
    TooManyChunks,
    UploadOffsetWrong,
    UploadUnknown,
)
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName
from entrepot.registry import records
from entrepot.registry.service import Registry
from entrepot.storage.blobs import BlobStore, Staged
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

# As many as S3 takes; each costs an object and a row.
MAX_CHUNKS = 10_000


@dataclass(frozen=True, slots=True)
class Upload:
    """An open session, and how many bytes in how many chunks it has received."""

    id: str
    repository: RepositoryName
    size: int = 0
    chunks: int = 0


class Uploads:
    """Every open session."""

    def __init__(
        self, database: Database, blobs: BlobStore, registry: Registry, clock: Clock, *, max_blob_bytes: int
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._registry = registry
        self._clock = clock
        self._max_blob_bytes = max_blob_bytes

    async def begin(self, name: RepositoryName) -> Upload:
        """Open a session."""
        upload = Upload(str(uuid.uuid4()), name)
        now = self._clock()
        await self._database.write(lambda connection: records.insert_upload(connection, upload.id, name, now))
        return upload

    async def get(self, name: RepositoryName, upload_id: str) -> Upload:
        """A session as it stands. Raises UploadUnknown."""
        row = await self._database.read(lambda connection: records.find_upload(connection, upload_id, name))
        if row is None:
            raise _unknown(name, upload_id)
        return Upload(upload_id, name, row.size, row.chunks)

    async def append(
        self,
        name: RepositoryName,
        upload_id: str,
        pieces: AsyncIterator[bytes],
        place: ByteRange | None,
        *,
        algorithm: str = "sha256",
    ) -> Upload:
        """Add one chunk; `place` is where the client says that it belongs.

        Raises UploadUnknown, UploadOffsetWrong when it does not follow what is there, SizeInvalid when it has another
        length than `place`, TooManyChunks, BlobTooLarge, StorageFull or ClientGone. Then the session is as before.
        """
        upload = await self.get(name, upload_id)
        chunk = await self._stage(upload, pieces, place, algorithm)
        if chunk is None:
            return upload
        now = self._clock()
        is_added = await self._database.write(
            lambda connection: records.append_chunk(connection, upload_id, upload.size, chunk, now)
        )
        if not is_added:
            await self._blobs.drop(chunk.key)
            raise _offset_wrong(await self.get(name, upload_id), upload.size)
        return Upload(upload.id, name, upload.size + chunk.size, upload.chunks + 1)

    async def finish(
        self,
        name: RepositoryName,
        upload_id: str,
        digest: Digest,
        pieces: AsyncIterator[bytes],
        place: ByteRange | None,
    ) -> int:
        """Add the last chunk, which may be empty, and turn the session into a blob; answers its size in bytes.

        Raises what `append` raises; and DigestMismatch or QuotaExceeded, after which the session is gone.
        """
        upload = await self.get(name, upload_id)
        last = await self._stage(upload, pieces, place, digest.algorithm)
        parts = await self._database.read(lambda connection: records.list_chunks(connection, upload_id))
        if sum(part.size for part in parts) != upload.size:
            raise _offset_wrong(await self.get(name, upload_id), upload.size)
        received = [part.key for part in parts]
        if last is not None:
            parts.append(last)
        made = [] if last is None else [last.key]
        try:
            whole = await self._make_whole(parts, digest)
            made += [whole.key] if whole.key not in received else []

            def close(connection: sa.Connection) -> None:
                if not records.delete_upload(connection, upload_id):
                    raise _unknown(name, upload_id)

            await self._registry.record_blob(name, whole, close)
        except UploadUnknown:
            # Another request was quicker, and what the session had received is its business.
            await self._blobs.drop(*made)
            raise
        except (DigestMismatch, QuotaExceeded):
            await self._blobs.drop(*made)
            await self._close(upload_id, received)
            raise
        # Only now: a crash before must leave the parts for another try.
        await self._blobs.drop(*(key for key in {*received, *made} if key != whole.key))
        return whole.size

    async def read(self, upload_id: str) -> AsyncIterator[bytes]:
        """What a session has received, in order. Raises UploadUnknown when it ends meanwhile."""
        parts = await self._database.read(lambda connection: records.list_chunks(connection, upload_id))
        for part in parts:
            async for piece in self._blobs.read_staged(part.key):
                yield piece

    async def cancel(self, name: RepositoryName, upload_id: str) -> None:
        """Close a session and drop what it received. Raises UploadUnknown."""
        await self.get(name, upload_id)
        parts = await self._database.read(lambda connection: records.list_chunks(connection, upload_id))
        await self._close(upload_id, [part.key for part in parts])

    async def _make_whole(self, parts: list[Staged], digest: Digest) -> Staged:
        """One object with the digest, out of a session's parts. Raises DigestMismatch."""
        if len(parts) != 1:
            return await self._blobs.join(parts, digest)
        part = parts[0]
        found = part.digest
        if found.algorithm != digest.algorithm:
            found = await self._blobs.find_digest(part, digest.algorithm)
        if found != digest:
            raise DigestMismatch(f"the content has digest {found}, not {digest} as announced; nothing was kept")
        return Staged(part.key, part.size, digest)

    async def _close(self, upload_id: str, received: list[str]) -> None:
        """Close a session and drop what it received, unless another request did so: then it is that one's business."""
        if await self._database.write(lambda connection: records.delete_upload(connection, upload_id)):
            await self._blobs.drop(*received)

    async def _stage(
        self, upload: Upload, pieces: AsyncIterator[bytes], place: ByteRange | None, algorithm: str
    ) -> Staged | None:
        """The next chunk, None when it is empty; judged by its place before any of it is read."""
        if place is not None and place.start != upload.size:
            raise _offset_wrong(upload, place.start)
        if upload.chunks >= MAX_CHUNKS:
            raise TooManyChunks(f"an upload takes at most {MAX_CHUNKS} chunks; begin again with larger ones")
        try:
            chunk = await self._blobs.stage(pieces, limit=self._max_blob_bytes - upload.size, algorithm=algorithm)
        except BlobTooLarge as error:
            raise BlobTooLarge(f"a blob may have at most {self._max_blob_bytes} bytes; nothing was kept") from error
        if place is not None and chunk.size != place.size:
            await self._blobs.drop(chunk.key)
            raise SizeInvalid(f"Content-Range announced {place.size} bytes, but {chunk.size} came; nothing was kept")
        if chunk.size == 0:
            await self._blobs.drop(chunk.key)
            return None
        return chunk


def _unknown(name: RepositoryName, upload_id: str) -> UploadUnknown:
    return UploadUnknown(f"there is no open upload {upload_id} in {name}; begin a new one")


def _offset_wrong(upload: Upload, start: int) -> UploadOffsetWrong:
    return UploadOffsetWrong(
        f"the chunk begins at byte {start}, but the next one expected begins at {upload.size}", expected=upload.size
    )
