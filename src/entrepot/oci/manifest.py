"""Manifests and indexes, parsed from bytes into frozen values.

Implements image-spec 1.1 (manifest.md, image-index.md, descriptor.md) and Docker's image manifest schema 2 and manifest
list, as far as a registry needs them: what a manifest refers to. Contents of configs and layers are not looked at.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Self, cast

from entrepot.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge
from entrepot.oci import media_types
from entrepot.oci.digest import Digest

# distribution-spec 1.1, "Pushing Manifests": registries should accept at least 4 MiB.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# Each reference costs the registry a row and a look-up; real images stay below 130 layers, large indexes below 1,000.
MAX_REFERENCES = 10_000
# RFC 6838, section 4.2: 127 characters on each side of the slash.
_MAX_MEDIA_TYPE = 255


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one piece of content says of another: its media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    platform: str | None = None
    is_foreign: bool = False

    @classmethod
    def parse(cls, document: object, where: str) -> Self:
        """The descriptor in `document`; `where` names its place for errors. Raises ManifestInvalid."""
        if not isinstance(document, dict):
            raise ManifestInvalid(f"manifest: {where} must be a descriptor object")
        fields = cast("dict[str, Any]", document)
        digest, size = fields.get("digest"), fields.get("size")
        media_type = _parse_media_type(fields.get("mediaType"), f"{where}.mediaType")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise ManifestInvalid(f"manifest: {where}.size must be a number of bytes")
        if not isinstance(digest, str):
            raise ManifestInvalid(f"manifest: {where}.digest must be a digest")
        try:
            parsed = Digest.parse(digest)
        except DigestInvalid as error:
            raise ManifestInvalid(f"manifest: {where}: {error}") from error
        foreign = media_type in media_types.FOREIGN_LAYERS and bool(fields.get("urls"))
        return cls(media_type, parsed, size, parse_platform(fields.get("platform")), foreign)


def parse_platform(document: object) -> str | None:
    """`os/architecture[/variant]` of an index entry or an image's config, None when it does not say."""
    if not isinstance(document, dict):
        return None
    parts = [document.get(key) for key in ("os", "architecture", "variant")]
    return "/".join(part for part in parts if isinstance(part, str) and part) or None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index: its very bytes, and what they refer to.

    `blobs` are the config and layers, `children` the manifests of an index; both in document order. `subject` is what a
    referrer speaks of; it need not exist (distribution-spec 1.1, "Pushing Manifests with Subject"). `artifact_type` is
    as "Listing Referrers" defines it: without a field of that name, the config's media type.
    """

    media_type: str
    digest: Digest
    content: bytes = field(repr=False)
    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.content)

    @property
    def is_index(self) -> bool:
        """Whether it lists other manifests."""
        return self.media_type in media_types.INDEXES

    @classmethod
    def parse(cls, content: bytes, content_type: str = "", algorithm: str = "sha256") -> Self:
        """The manifest in `content`.

        `content_type` is what the sender called it, empty when it did not; `algorithm` names the digest to give it.
        Raises ManifestTooLarge and ManifestInvalid.
        """
        if len(content) > MAX_MANIFEST_BYTES:
            raise ManifestTooLarge(f"manifest of {len(content)} bytes: at most {MAX_MANIFEST_BYTES} are accepted")
        document = _json_object(content)
        media_type = _media_type(document, media_types.bare(content_type))
        blobs, children = _references(document, is_index=media_type in media_types.INDEXES)
        if len(blobs) + len(children) > MAX_REFERENCES:
            raise ManifestInvalid(
                f"manifest: names {len(blobs) + len(children)} others, at most {MAX_REFERENCES} are accepted"
            )
        subject = document.get("subject")
        artifact_type = document.get("artifactType")
        if artifact_type is not None and artifact_type != "":
            artifact_type = _parse_media_type(artifact_type, "artifactType")
        elif blobs:
            artifact_type = blobs[0].media_type
        return cls(
            media_type=media_type,
            digest=Digest.of(content, algorithm),
            content=content,
            blobs=blobs,
            children=children,
            subject=None if subject is None else Descriptor.parse(subject, "subject"),
            artifact_type=artifact_type or None,
        )


def read_annotations(content: bytes) -> dict[str, str]:
    """The annotations in a manifest that was accepted.

    What is no text is none (image-spec, annotations.md, "Rules"), and would keep clients from reading any list that it
    stands in.
    """
    try:
        annotations = json.loads(content).get("annotations")
    except RecursionError:  # nested as deeply as could be read when it came, and a little less can be now
        return {}
    if not isinstance(annotations, dict):
        return {}
    return {key: value for key, value in annotations.items() if isinstance(value, str)}


def read_layer_annotations(content: bytes) -> list[dict[str, Any]]:
    """The annotations of every layer, in order, in an image manifest that was accepted."""
    found = (layer.get("annotations") for layer in json.loads(content).get("layers", []))
    return [annotations if isinstance(annotations, dict) else {} for annotations in found]


def _parse_media_type(value: object, where: str) -> str:
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _MAX_MEDIA_TYPE
        or not (value.isascii() and value.isprintable())
    ):
        raise ManifestInvalid(f"manifest: {where} must be a media type of at most {_MAX_MEDIA_TYPE} characters")
    return value


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ManifestInvalid("manifest: not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"manifest: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("manifest: must be a JSON object")
    if document.get("schemaVersion") != 2:  # noqa: PLR2004 - the number is the spec's
        raise ManifestInvalid("manifest: schemaVersion must be 2")
    return document


def _media_type(document: dict[str, Any], announced: str) -> str:
    """The media type, when header and content agree on one that we accept."""
    stated = document.get("mediaType", "")
    if not isinstance(stated, str):
        raise ManifestInvalid("manifest: mediaType must be a media type")
    if announced and stated and announced != stated.lower():
        raise ManifestInvalid(f"manifest: sent as {announced!r}, but its mediaType is {stated!r}")
    media_type = announced or stated
    if media_type not in media_types.ACCEPTED:
        accepted = ", ".join(sorted(media_types.ACCEPTED))
        raise ManifestInvalid(f"manifest: media type {media_type!r} is not accepted; use one of {accepted}")
    return media_type


def _references(document: dict[str, Any], *, is_index: bool) -> tuple[tuple[Descriptor, ...], tuple[Descriptor, ...]]:
    """(blobs, children) of a manifest or index.

    Content that could be read both ways is refused: a document with `layers` and `manifests` means different things to
    different clients (distribution-spec security advisory GHSA-mc8v-mgrf-8f4m, CVE-2021-41190).
    """
    if is_index:
        if "layers" in document or "config" in document or "fsLayers" in document:
            raise ManifestInvalid("manifest: an index must not have config or layers")
        return (), _descriptors(document, "manifests")
    if "manifests" in document or "fsLayers" in document:
        raise ManifestInvalid("manifest: an image manifest must not have manifests or fsLayers")
    config = Descriptor.parse(document.get("config"), "config")
    return (config, *_descriptors(document, "layers")), ()


def _descriptors(document: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise ManifestInvalid(f"manifest: {key} must be a list of descriptors")
    return tuple(Descriptor.parse(entry, f"{key}[{number}]") for number, entry in enumerate(entries))
