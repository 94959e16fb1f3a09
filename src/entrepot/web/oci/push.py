"""Writing: uploads, mounts, manifests and deletion.

Spec: distribution-spec 1.1, "Push" and "Content Management".
"""

from urllib.parse import urlencode

from entrepot.access.decisions import tags_denied, verify_allowed, verify_tag_allowed
from entrepot.access.scopes import Action
from entrepot.errors import ManifestTooLarge, NameInvalid, RequestInvalid
from entrepot.oci.digest import CANONICAL, Digest, verify_algorithm
from entrepot.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName, Tag, parse_reference
from entrepot.registry.service import Registry, verify_digest
from entrepot.registry.uploads import Upload, Uploads
from entrepot.web.asgi import Headers
from entrepot.web.oci.exchange import Exchange, read_condition

# A session whose blob will have a digest of another algorithm says so in its Location, so that it is hashed on the way.
_ALGORITHM = "digest-algorithm"
_MAX_TAGS = 100


class Push:
    """The writing half of `/v2/`. Chunks but the last should have `chunk_bytes_min`, 0 for any length."""

    def __init__(self, registry: Registry, uploads: Uploads, *, max_blob_bytes: int, chunk_bytes_min: int) -> None:
        self._registry = registry
        self._max_blob_bytes = max_blob_bytes
        self._uploads = uploads
        self._chunk_bytes_min = chunk_bytes_min

    async def begin_upload(self, exchange: Exchange) -> None:
        """POST `/v2/<name>/blobs/uploads/`: mount a blob, take it whole, or open a session."""
        query = dict(exchange.request.query())
        if "mount" in query and await self._mount(exchange, Digest.parse(query["mount"]), query.get("from")):
            await _answer_blob(exchange, Digest.parse(query["mount"]))
        elif "digest" in query and _has_content(exchange, Digest.parse(query["digest"])):
            digest = Digest.parse(query["digest"])
            exchange.request.verify_announced(self._max_blob_bytes)
            await self._registry.put_blob(exchange.name, digest, exchange.request.pieces())
            await _answer_blob(exchange, digest)
        else:
            algorithm = verify_algorithm(query.get(_ALGORITHM, CANONICAL))
            await self._answer_session(exchange, 202, await self._uploads.begin(exchange.name), algorithm)

    async def _mount(self, exchange: Exchange, digest: Digest, source: str | None) -> bool:
        """Whether a repository that the asker may read had it. Spec: "Mounting a blob from another repository"."""
        try:
            name = None if source is None else RepositoryName.parse(source)
        except NameInvalid:
            return False

        plan = exchange.principal.plan
        if name is not None and plan.allows(name, Action.PULL):
            # The token may be for the target alone; with this challenge clients get one for both.
            exchange.widen_challenge(name, Action.PULL)
            verify_allowed(plan, exchange.principal.scopes, name, Action.PULL)
            limits = plan.tag_limits(name, Action.PULL)
            if limits is not None and not await self._registry.reach.is_reached(name, digest, limits):
                return False

        def may_read(candidate: RepositoryName) -> bool:
            is_limited = candidate != name and plan.tag_limits(candidate, Action.PULL) is not None
            return plan.allows(candidate, Action.PULL) and not is_limited

        return await self._registry.mount_blob(exchange.name, digest, may_read, source=name)

    async def upload_status(self, exchange: Exchange) -> None:
        """GET `/v2/<name>/blobs/uploads/<id>`."""
        upload = await self._uploads.get(exchange.name, exchange.item)
        await self._answer_session(exchange, 204, upload, _algorithm_of(exchange))

    async def append_chunk(self, exchange: Exchange) -> None:
        """PATCH `/v2/<name>/blobs/uploads/<id>`."""
        algorithm = _algorithm_of(exchange)
        exchange.request.verify_announced(self._max_blob_bytes)
        pieces = exchange.request.pieces()
        place = _chunk_place(exchange)
        upload = await self._uploads.append(exchange.name, exchange.item, pieces, place, algorithm=algorithm)
        await self._answer_session(exchange, 202, upload, algorithm)

    async def finish_upload(self, exchange: Exchange) -> None:
        """PUT `/v2/<name>/blobs/uploads/<id>?digest=<digest>`."""
        parameter = exchange.request.parameter("digest")
        if parameter is None:
            raise RequestInvalid("the last request of an upload must name the blob: add ?digest=<digest>")
        digest = Digest.parse(parameter)
        exchange.request.verify_announced(self._max_blob_bytes)
        pieces = exchange.request.pieces()
        await self._uploads.finish(exchange.name, exchange.item, digest, pieces, _chunk_place(exchange))
        await _answer_blob(exchange, digest)

    async def cancel_upload(self, exchange: Exchange) -> None:
        """DELETE `/v2/<name>/blobs/uploads/<id>`."""
        await self._uploads.cancel(exchange.name, exchange.item)
        await exchange.answer(204, [])

    async def put_manifest(self, exchange: Exchange) -> None:
        """PUT `/v2/<name>/manifests/<reference>`, by tag (with `digest` to say what it must be) or by digest.

        By digest, `tag` parameters name it at once. Spec: "Pushing Manifests".
        """
        reference = parse_reference(exchange.item)
        query = exchange.request.query()
        if isinstance(reference, Tag):
            stated = exchange.request.parameter("digest")
            digest, tags = None if stated is None else Digest.parse(stated), [reference]
        else:
            digest, tags = reference, []
        tags += [Tag.parse(value) for key, value in query if key == "tag"]
        if len(tags) > _MAX_TAGS:
            raise RequestInvalid(f"{len(tags)} tags at once; at most {_MAX_TAGS} are accepted")
        for tag in tags:
            verify_tag_allowed(exchange.principal.plan, exchange.name, tag, Action.PUSH)
        content = await exchange.request.body(MAX_MANIFEST_BYTES, ManifestTooLarge)
        algorithm = CANONICAL if digest is None else digest.algorithm
        manifest = Manifest.parse(content, exchange.request.header(b"content-type"), algorithm)
        if digest is not None:
            verify_digest(manifest, digest)
        condition = read_condition(exchange.request)
        await self._registry.put_manifest(exchange.name, manifest, tags=tags, condition=condition)
        headers = _created_headers(f"/v2/{exchange.name}/manifests/{manifest.digest}", manifest.digest)
        if manifest.subject is not None:
            headers.append((b"oci-subject", str(manifest.subject.digest).encode()))
        headers += [(b"oci-tag", tag.value.encode()) for tag in tags if tag != reference]
        await exchange.answer(201, headers)

    async def delete_manifest(self, exchange: Exchange) -> None:
        """DELETE `/v2/<name>/manifests/<reference>`."""
        reference = parse_reference(exchange.item)
        plan = exchange.principal.plan
        limits = plan.tag_limits(exchange.name, Action.DELETE)
        if isinstance(reference, Tag):
            verify_tag_allowed(plan, exchange.name, reference, Action.DELETE)
        elif limits is not None:
            # It would take other tags with it.
            raise tags_denied(plan, exchange.name, str(reference), limits)
        condition = read_condition(exchange.request)
        await self._registry.delete_manifest(exchange.name, reference, condition=condition)
        await exchange.answer(202, [])

    async def delete_blob(self, exchange: Exchange) -> None:
        """DELETE `/v2/<name>/blobs/<digest>`."""
        await self._registry.delete_blob(exchange.name, Digest.parse(exchange.item))
        await exchange.answer(202, [])

    async def _answer_session(self, exchange: Exchange, status: int, upload: Upload, algorithm: str) -> None:
        """Where the session goes on, and what it has: `0-<last byte>`, which is `0-0` for none as for one byte."""
        location = f"/v2/{upload.repository}/blobs/uploads/{upload.id}"
        if algorithm != CANONICAL:
            location += "?" + urlencode({_ALGORITHM: algorithm})
        headers: Headers = [
            (b"location", location.encode()),
            (b"range", b"0-%d" % max(upload.size - 1, 0)),
            (b"docker-upload-uuid", upload.id.encode()),
        ]
        if self._chunk_bytes_min and upload.chunks == 0:
            headers.append((b"oci-chunk-min-length", b"%d" % self._chunk_bytes_min))
        await exchange.answer(status, headers)


async def _answer_blob(exchange: Exchange, digest: Digest) -> None:
    await exchange.answer(201, _created_headers(f"/v2/{exchange.name}/blobs/{digest}", digest))


def _has_content(exchange: Exchange, digest: Digest) -> bool:
    """Whether a POST with a digest brings the blob, rather than announce it: an empty body may be the empty blob."""
    return exchange.request.has_body or digest.is_of(b"")


def _algorithm_of(exchange: Exchange) -> str:
    return verify_algorithm(exchange.request.parameter(_ALGORITHM) or CANONICAL)


def _chunk_place(exchange: Exchange) -> ByteRange | None:
    header = exchange.request.header(b"content-range")
    return ByteRange.parse_chunk(header) if header else None


def _created_headers(location: str, digest: Digest) -> Headers:
    return [(b"location", location.encode()), (b"docker-content-digest", str(digest).encode())]
