"""Writing: uploads, mounts, manifests and their deletion.

Spec: distribution-spec 1.1, "Push" and "Content Management".
"""

from entrepot.access.decisions import verify_allowed
from entrepot.access.scopes import Action
from entrepot.errors import Denied, ManifestTooLarge, RequestInvalid
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName, Tag, parse_reference
from entrepot.registry.service import Registry, verify_digest
from entrepot.registry.uploads import Upload, Uploads
from entrepot.web.asgi import Headers
from entrepot.web.oci.exchange import Exchange


class Push:
    """The writing half of `/v2/`."""

    def __init__(self, registry: Registry, uploads: Uploads) -> None:
        self._registry = registry
        self._uploads = uploads

    async def begin_upload(self, exchange: Exchange) -> None:
        """POST `/v2/<name>/blobs/uploads/`: mount a blob, take it whole, or open a session."""
        query = dict(exchange.request.query())
        if "mount" in query and "from" in query:
            digest = Digest.parse(query["mount"])
            source = RepositoryName.parse(query["from"])
            if _may_pull(exchange, source) and await self._registry.mount_blob(exchange.name, digest, source=source):
                await self._answer_blob(exchange, digest)
                return
        upload = await self._uploads.begin(exchange.name)
        if "digest" in query and exchange.request.has_body:
            await self._finish(exchange, upload.id, Digest.parse(query["digest"]))
            return
        await exchange.answer(202, _session_headers(upload))

    async def upload_status(self, exchange: Exchange) -> None:
        """GET `/v2/<name>/blobs/uploads/<id>`."""
        await exchange.answer(204, _session_headers(await self._uploads.get(exchange.name, exchange.item)))

    async def append_chunk(self, exchange: Exchange) -> None:
        """PATCH `/v2/<name>/blobs/uploads/<id>`."""
        request = exchange.request
        upload = await self._uploads.append(exchange.name, exchange.item, request.pieces(), _chunk_place(exchange))
        await exchange.answer(202, _session_headers(upload))

    async def finish_upload(self, exchange: Exchange) -> None:
        """PUT `/v2/<name>/blobs/uploads/<id>?digest=<digest>`."""
        digest = exchange.request.parameter("digest")
        if digest is None:
            raise RequestInvalid("the last request of an upload must name the blob: add ?digest=<digest>")
        await self._finish(exchange, exchange.item, Digest.parse(digest))

    async def cancel_upload(self, exchange: Exchange) -> None:
        """DELETE `/v2/<name>/blobs/uploads/<id>`."""
        await self._uploads.cancel(exchange.name, exchange.item)
        await exchange.answer(204, [])

    async def put_manifest(self, exchange: Exchange) -> None:
        """PUT `/v2/<name>/manifests/<reference>`."""
        reference = parse_reference(exchange.item)
        content = await exchange.request.body(MAX_MANIFEST_BYTES, ManifestTooLarge)
        content_type = exchange.request.header(b"content-type")
        if isinstance(reference, Tag):
            manifest = Manifest.parse(content, content_type)
            await self._registry.put_manifest(exchange.name, manifest, tag=reference)
        else:
            manifest = Manifest.parse(content, content_type, reference.algorithm)
            verify_digest(manifest, reference)
            await self._registry.put_manifest(exchange.name, manifest)
        location = f"/v2/{exchange.name}/manifests/{manifest.digest}"
        await exchange.answer(201, _created_headers(location, manifest.digest))

    async def delete_manifest(self, exchange: Exchange) -> None:
        """DELETE `/v2/<name>/manifests/<reference>`."""
        await self._registry.delete_manifest(exchange.name, parse_reference(exchange.item))
        await exchange.answer(202, [])

    async def _finish(self, exchange: Exchange, upload_id: str, digest: Digest) -> None:
        pieces = exchange.request.pieces()
        await self._uploads.finish(exchange.name, upload_id, digest, pieces, _chunk_place(exchange))
        await self._answer_blob(exchange, digest)

    async def _answer_blob(self, exchange: Exchange, digest: Digest) -> None:
        await exchange.answer(201, _created_headers(f"/v2/{exchange.name}/blobs/{digest}", digest))


def _may_pull(exchange: Exchange, source: RepositoryName) -> bool:
    """Whether the asker may read `source`; a mount that may not is an upload like any other."""
    try:
        verify_allowed(exchange.principal.plan, exchange.principal.scopes, source, Action.PULL)
    except Denied:
        return False
    return True


def _chunk_place(exchange: Exchange) -> ByteRange | None:
    header = exchange.request.header(b"content-range")
    return ByteRange.parse_chunk(header) if header else None


def _created_headers(location: str, digest: Digest) -> Headers:
    return [(b"location", location.encode()), (b"docker-content-digest", str(digest).encode())]


def _session_headers(upload: Upload) -> Headers:
    """Where the session goes on, and what it has: `0-<last byte>`, which is `0-0` for none as for one byte."""
    return [
        (b"location", f"/v2/{upload.repository}/blobs/uploads/{upload.id}".encode()),
        (b"range", b"0-%d" % max(upload.size - 1, 0)),
        (b"docker-upload-uuid", upload.id.encode()),
    ]
