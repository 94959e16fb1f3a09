"""Upload sessions: blobs that arrive in one or several requests, on one or several processes.

Each request's body becomes one chunk in the upload area; the database knows the chunks and their order. The last
request names the digest, and only then does the blob come into being.

Spec: distribution-spec 1.1, "Pushing blobs".
"""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import sqlalchemy as sa

from entrepot.errors import BlobTooLarge, DigestMismatch, SizeInvalid, UploadOffsetWrong, UploadUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName
from entrepot.registry import records
from entrepot.registry.service import Registry
from entrepot.storage.blobs import BlobStore, Staged
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database


@dataclass(frozen=True, slots=True)
class Upload:
    """An open session and what it has received so far."""

    id: str
    repository: RepositoryName
    chunks: tuple[Staged, ...]

    @property
    def size(self) -> int:
        """Bytes received, which is also where the next chunk begins."""
        return sum(chunk.size for chunk in self.chunks)


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
        upload = Upload(str(uuid.uuid4()), name, ())
        now = self._clock()
        await self._database.write(lambda connection: records.insert_upload(connection, upload.id, name, now))
        return upload

    async def get(self, name: RepositoryName, upload_id: str) -> Upload:
        """A session as it stands. Raises UploadUnknown."""

        def work(connection: sa.Connection) -> Upload:
            if not records.is_upload(connection, upload_id, name):
                raise UploadUnknown(f"there is no open upload {upload_id} in {name}; begin a new one")
            return Upload(upload_id, name, tuple(records.list_chunks(connection, upload_id)))

        return await self._database.read(work)

    async def append(
        self, name: RepositoryName, upload_id: str, pieces: AsyncIterator[bytes], place: ByteRange | None
    ) -> Upload:
        """Add one chunk; `place` is where the client says that it belongs.

        Raises UploadUnknown, UploadOffsetWrong when it does not follow what is there, SizeInvalid when it has another
        length than `place`, BlobTooLarge, StorageFull or ClientGone. Then the session is as before.
        """
        upload = await self.get(name, upload_id)
        if place is not None and place.start != upload.size:
            raise _offset_wrong(upload, place.start)
        chunk = await self._stage(upload, pieces)
        if place is not None and chunk.size != place.size:
            await self._blobs.drop(chunk)
            raise SizeInvalid(f"Content-Range announced {place.size} bytes, but {chunk.size} came; nothing was kept")
        if chunk.size == 0:
            await self._blobs.drop(chunk)
            return upload

        def work(connection: sa.Connection) -> bool:
            if not records.is_upload(connection, upload_id, name):
                return False
            so_far = sum(part.size for part in records.list_chunks(connection, upload_id))
            return so_far == upload.size and records.insert_chunk(connection, upload_id, upload.size, chunk)

        if not await self._database.write(work):
            await self._blobs.drop(chunk)
            raise _offset_wrong(await self.get(name, upload_id), upload.size)
        return Upload(upload.id, name, (*upload.chunks, chunk))

    async def finish(
        self,
        name: RepositoryName,
        upload_id: str,
        digest: Digest,
        pieces: AsyncIterator[bytes],
        place: ByteRange | None,
    ) -> int:
        """Add the last chunk, which may be empty, and turn the session into a blob; answers its size in bytes.

        Raises what `append` raises; and DigestMismatch, after which the session is gone.
        """
        upload = await self.append(name, upload_id, pieces, place)
        try:
            size = await self._blobs.keep(upload.chunks, digest)
        except DigestMismatch:
            await self._database.write(lambda connection: records.delete_upload(connection, upload_id))
            raise
        await self._registry.record_blob(
            name, digest, size, lambda connection: records.delete_upload(connection, upload_id)
        )
        return size

    async def cancel(self, name: RepositoryName, upload_id: str) -> None:
        """Close a session and drop what it received. Raises UploadUnknown."""
        upload = await self.get(name, upload_id)
        await self._database.write(lambda connection: records.delete_upload(connection, upload_id))
        await self._blobs.drop(*upload.chunks)

    async def _stage(self, upload: Upload, pieces: AsyncIterator[bytes]) -> Staged:
        try:
            return await self._blobs.stage(pieces, limit=self._max_blob_bytes - upload.size)
        except BlobTooLarge as error:
            raise BlobTooLarge(f"a blob may have at most {self._max_blob_bytes} bytes; nothing was kept") from error


def _offset_wrong(upload: Upload, start: int) -> UploadOffsetWrong:
    return UploadOffsetWrong(
        f"the chunk begins at byte {start}, but the next one expected begins at {upload.size}", expected=upload.size
    )
