"""Bringing blobs over, large ones in parts, so that another process can go on where one died.

A large blob is received by an upload session as clients use them: each part is an object in storage, and the database
knows the parts and their order. The session belongs to the blob and its repository, not to the run: whoever wants the
blob next, after a crash or in another run, asks the source only for what is missing. Two that work on the same blob at
once cannot spoil it, since a part is added only where the one before it ended; the slower one goes on from there.
"""

from collections.abc import AsyncIterator

import sqlalchemy as sa

from entrepot.errors import SourceError, SourceLied, SourceUnreachable, UploadOffsetWrong, UploadUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor
from entrepot.oci.reference import RepositoryName
from entrepot.registry.service import Registry
from entrepot.registry.uploads import MAX_CHUNKS, Upload, Uploads
from entrepot.replication import records
from entrepot.replication.bandwidth import Bandwidth
from entrepot.replication.differences import Route
from entrepot.replication.events import BlobAdvanced, BlobResumed, Tell
from entrepot.replication.source import Source
from entrepot.storage.database import Database

# Each part costs an object and two rows, and parts are joined in the end, which writes them once more.
PART_BYTES = 256 * 1024 * 1024
# What came before a source broke off is kept unless it is less than this share of a part.
_LEAST_SHARE = 16
# Times that another process may have got on with the blob before this one gives up.
_MOST_MEETINGS = 20


class Transfers:
    """The way of blobs from sources into the registry; blobs above `part_bytes` come in parts of that size.

    All that pass share the `bandwidth`.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        uploads: Uploads,
        *,
        part_bytes: int = PART_BYTES,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self._database = database
        self._registry = registry
        self._uploads = uploads
        self._part_bytes = part_bytes
        self._bandwidth = bandwidth or Bandwidth(None)

    async def bring(self, source: Source, route: Route, blob: Descriptor, tell: Tell) -> None:
        """Copy a blob. Raises SourceError, or what storing raises; then nothing of it is visible."""
        if blob.size <= self._part_bytes:
            async with source.open_blob(route.origin, blob) as pieces:
                metered = self._metered(pieces, blob, tell)
                await self._registry.put_blob(route.target, blob.digest, metered, size=blob.size)
            return
        for _ in range(_MOST_MEETINGS):
            try:
                upload = await self._open_upload(route.target, blob)
                await self._go_on(source, route, blob, upload, tell)
            except (UploadUnknown, UploadOffsetWrong):
                # Another process works on it, too.
                if await self._registry.hold_blob(route.target, blob.digest):
                    return
            else:
                return
        raise SourceUnreachable(
            f"source {source.name}: blob {blob.digest} of {route.origin}: other processes copy it all the time"
        )

    async def read_received(self, target: RepositoryName, digest: Digest) -> AsyncIterator[bytes]:
        """What has come so far of a blob that comes in parts. Raises UploadUnknown when it ends meanwhile."""
        found = await self._database.read(
            lambda connection: records.find_transfer(connection, target.value, str(digest))
        )
        if found is not None:
            async for piece in self._uploads.read(found):
                yield piece

    async def _open_upload(self, target: RepositoryName, blob: Descriptor) -> Upload:
        """The session that receives the blob, with all that it has received."""
        digest = str(blob.digest)

        def find(connection: sa.Connection) -> str | None:
            return records.find_transfer(connection, target.value, digest)

        found = await self._database.read(find)
        if found is None:
            begun = await self._uploads.begin(target)
            if await self._database.write(
                lambda connection: records.insert_transfer(connection, target.value, digest, begun.id)
            ):
                return begun
            await self._uploads.cancel(target, begun.id)
            found = await self._database.read(find)
        return await self._uploads.get(target, found or "")

    async def _go_on(self, source: Source, route: Route, blob: Descriptor, upload: Upload, tell: Tell) -> None:
        if upload.size:
            tell(BlobResumed(blob, upload.size))
        # Never so small that there would be too many.
        part_bytes = max(self._part_bytes, blob.size * 2 // MAX_CHUNKS)
        async with source.open_blob(route.origin, blob, upload.size) as pieces:
            metered = self._metered(pieces, blob, tell)
            while upload.size < blob.size:
                part = _Part(metered, part_bytes, keeps_rest=upload.chunks < MAX_CHUNKS // 2)
                before, upload = upload, await self._uploads.append(route.target, upload.id, part.read(), None)
                if part.failure is not None:
                    raise part.failure
                if upload.size == before.size:
                    raise SourceLied(f"source {source.name}: blob {blob.digest} ends after {upload.size} bytes")
        await self._uploads.finish(route.target, upload.id, blob.digest, _nothing(), None)

    async def _metered(self, pieces: AsyncIterator[bytes], blob: Descriptor, tell: Tell) -> AsyncIterator[bytes]:
        async for piece in pieces:
            await self._bandwidth.take(len(piece))
            tell(BlobAdvanced(blob, len(piece)))
            yield piece


class _Part:
    """The next bytes of a blob, `size` or a little more; where the source breaks off, those that came."""

    def __init__(self, pieces: AsyncIterator[bytes], size: int, *, keeps_rest: bool) -> None:
        self._pieces = pieces
        self._size = size
        self._keeps_rest = keeps_rest
        self.failure: SourceError | None = None

    async def read(self) -> AsyncIterator[bytes]:
        """The bytes, once; `failure` is why they ended early."""
        received = 0
        try:
            while received < self._size:
                try:
                    piece = await anext(self._pieces)
                except StopAsyncIteration:
                    return
                received += len(piece)
                yield piece
        except SourceError as error:
            if not self._keeps_rest or received < self._size // _LEAST_SHARE:
                raise
            self.failure = error


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece
