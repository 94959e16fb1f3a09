"""Signing what is published, as cosign does: under the tag `sha256-<hex>.sig`, and as a bundle that refers to it.

cosign 2 looks at the tag alone; cosign 3 looks at bundles, and at the tag only where there is no bundle at all. The
bundle is written first, so that what has our signature under its tag has both.
"""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from cryptography.hazmat.primitives import serialization

from entrepot.errors import ManifestUnknown, PreconditionFailed, SignatureBroken
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest, read_annotations, read_layer_annotations
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags
from entrepot.registry.service import Registry
from entrepot.replication.trust import cosign
from entrepot.replication.trust.keys import is_signed
from entrepot.replication.trust.policy import MAX_SIGNATURE_BYTES
from entrepot.replication.trust.signers import Signer
from entrepot.replication.trust.strict import decode_base64

# The manifest at the source whose signatures are part of ours: so that the next run sees that nothing is new there.
MERGED_FROM = "dev.entrepot.merged-from"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_TRIES = 5


class Signing:
    """Signs manifests of our registry with one key. `host` is the registry's public name."""

    def __init__(self, registry: Registry, signer: Signer, host: str) -> None:
        self._registry = registry
        self._signer = signer
        self._host = host

    async def sign(self, repository: RepositoryName, subject: Digest) -> Digest | None:
        """Sign a manifest; answers what the tag of its signatures names then, None where this key had signed before.

        Raises SignerUnavailable, RuleInvalid, or what storing raises.
        """
        tags = cosign_tags(subject)
        if not tags:  # a digest that cosign has no tag for
            return None
        payload = cosign.make_payload(subject, f"{self._host}/{repository}")
        existing = await self._registry.find_manifest(repository, tags[0])
        if existing is not None and self._has_ours(existing, payload):
            return None
        await self._put_bundle(repository, subject)
        await self._put(repository, payload)
        signature = base64.b64encode(await self._signer.sign(payload)).decode()
        layer = _descriptor(cosign.SIMPLE_SIGNING, payload) | {"annotations": {cosign.SIGNATURE: signature}}
        return await self._add_layers(repository, tags[0], [layer], None)

    async def merge(self, repository: RepositoryName, tag: Tag, theirs: Manifest) -> Digest:
        """Let `tag` name the signatures in `theirs`, a manifest that is here, and those that it names already.

        Answers what it names then.
        """
        existing = await self._registry.find_manifest(repository, tag)
        layers = [] if existing is None else _layers(existing)
        if theirs.is_index or all(layer in _layers(theirs) for layer in layers):
            await self._registry.put_tag(repository, tag, theirs.digest)
            return theirs.digest
        return await self._add_layers(repository, tag, _layers(theirs), theirs.digest)

    def _has_ours(self, existing: Manifest, payload: bytes) -> bool:
        """Whether our signature over `payload` is in a manifest. Whoever signs the same signs the same bytes."""
        expected = Digest.of(payload)
        layers = existing.blobs[1:]
        for blob, annotations in zip(layers, read_layer_annotations(existing.content), strict=True):
            text = annotations.get(cosign.SIGNATURE)
            if blob.digest != expected or not isinstance(text, str):
                continue
            try:
                if is_signed(self._signer.public_key, decode_base64(text, "the signature"), payload):
                    return True
            except SignatureBroken:
                continue
        return False

    async def _put_bundle(self, repository: RepositoryName, subject: Digest) -> None:
        """Let a bundle of ours refer to a manifest, unless one does: the last try may have got no further."""
        manifest = await self._registry.find_manifest(repository, subject)
        if manifest is None:
            raise ManifestUnknown(f"repository {repository} has no manifest {subject} to sign")
        if await self._has_bundle(repository, manifest):
            return
        statement = cosign.make_statement(subject)
        signature = await self._signer.sign(cosign.pre_authentication(cosign.STATEMENT, statement))
        public_key = self._signer.public_key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        bundle = cosign.make_bundle(statement, signature, public_key)
        document = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "artifactType": cosign.BUNDLE,
            "config": _descriptor(_EMPTY_TYPE, _EMPTY),
            "layers": [_descriptor(cosign.BUNDLE, bundle)],
            "subject": {"mediaType": manifest.media_type, "digest": str(subject), "size": manifest.size},
            "annotations": {
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": cosign.SIGN_PREDICATE,
            },
        }
        for content in (_EMPTY, bundle):
            await self._put(repository, content)
        await self._registry.put_manifest(repository, Manifest.parse(json.dumps(document).encode()))

    async def _has_bundle(self, repository: RepositoryName, subject: Manifest) -> bool:
        after, is_last = "", False
        while not is_last:
            page = await self._registry.list_referrers(repository, subject.digest, cosign.BUNDLE, after)
            for entry in page.entries:
                if await self._is_ours(repository, entry.digest, subject):
                    return True
                after = str(entry.digest)
            is_last = page.is_last or not page.entries
        return False

    async def _is_ours(self, repository: RepositoryName, bundle: Digest, subject: Manifest) -> bool:
        manifest = await self._registry.find_manifest(repository, bundle)
        for blob in manifest.blobs[1:] if manifest is not None else ():
            if blob.media_type != cosign.BUNDLE or blob.size > MAX_SIGNATURE_BYTES:
                continue
            opened = await self._registry.open_blob(repository, blob.digest)
            content = b"".join([piece async for piece in await opened.read(ByteRange(0, opened.size))])
            try:
                cosign.verify_bundle(content, subject, (self._signer.public_key,))
            except SignatureBroken:
                continue
            return True
        return False

    async def _add_layers(
        self, repository: RepositoryName, tag: Tag, added: list[dict[str, Any]], source: Digest | None
    ) -> Digest:
        """Let `tag` name a manifest of its layers and `added`, however many do so at the same time; answers which."""
        tries = 0
        while True:
            tries += 1
            existing = await self._registry.find_manifest(repository, tag)
            layers = [] if existing is None else _layers(existing)
            layers += [layer for layer in added if layer not in layers]
            merged_from = source or _find_source(existing)
            config = _make_config(layers)
            document: dict[str, Any] = {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": _descriptor(_CONFIG_TYPE, config),
                "layers": layers,
            }
            if merged_from is not None:
                document["annotations"] = {MERGED_FROM: str(merged_from)}
            await self._put(repository, config)
            before = None if existing is None else str(existing.digest)
            manifest = Manifest.parse(json.dumps(document).encode())
            try:
                await self._registry.put_manifest(
                    repository,
                    manifest,
                    tags=[tag],
                    condition=lambda named, before=before: named == before,  # type: ignore[misc]
                )
            except PreconditionFailed:  # somebody else added theirs meanwhile
                if tries == _TRIES:
                    raise
            else:
                return manifest.digest

    async def _put(self, repository: RepositoryName, content: bytes) -> None:
        digest = Digest.of(content)
        if not await self._registry.hold_blob(repository, digest):
            await self._registry.put_blob(repository, digest, _once(content), size=len(content))


def is_merged(here: Manifest, source: Digest) -> bool:
    """Whether a manifest of ours has the signatures of the source's `source` in it."""
    return read_annotations(here.content).get(MERGED_FROM) == str(source)


def _find_source(existing: Manifest | None) -> Digest | str | None:
    """The source's manifest that `existing` is, or was merged from."""
    if existing is None:
        return None
    found = read_annotations(existing.content).get(MERGED_FROM)
    return found if isinstance(found, str) else existing.digest


def _layers(manifest: Manifest) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(manifest.content).get("layers", [])
    return layers


def _make_config(layers: list[dict[str, Any]]) -> bytes:
    """A config as cosign writes it, which nobody reads."""
    document = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    return json.dumps(document).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
