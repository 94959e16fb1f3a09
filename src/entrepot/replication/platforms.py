"""The platforms that a rule keeps, and what is left of an index for them. Pure.

Spec: image-spec 1.1, image-index.md; variants as containerd's `platforms` package completes them. What BuildKit attests
of an image stands beside it in the index, with an annotation that names the image, and stays or goes with it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from entrepot.errors import DigestInvalid, ManifestInvalid, RuleInvalid
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest, read_annotations
from entrepot.replication.fields import verify_known

# In an index that was rebuilt: the digest of the source's, and the platforms that were kept of it.
REBUILT_FROM: Final = "dev.entrepot.rebuilt-from"
REBUILT_FOR: Final = "dev.entrepot.rebuilt-for"
ATTESTED: Final = "vnd.docker.reference.digest"
UNKNOWN: Final = "unknown/unknown"
_MAX_PLATFORMS = 50
_PLATFORM = re.compile(r"[a-z0-9._-]{1,40}/[a-z0-9._-]{1,40}(?:/[a-z0-9._-]{1,40})?")
_OTHER_NAMES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm/v7", "armel": "arm/v6"}
# What an architecture without a variant is.
_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platforms:
    """Platforms to keep, as `os/architecture[/variant]`; with `rebuild`, an index is made anew without the others."""

    keep: tuple[str, ...]
    rebuild: bool = False

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """What a list of platforms, or `{keep: [...], rebuild: true}`, spells. Raises RuleInvalid."""
        if not isinstance(value, Mapping):
            return cls(_parse_keep(value, where))
        verify_known(value, where, {"keep", "rebuild"})
        rebuild = value.get("rebuild", False)
        if not isinstance(rebuild, bool):
            raise RuleInvalid(f"{where}.rebuild: must be true or false")
        return cls(_parse_keep(value.get("keep"), f"{where}.keep"), rebuild)

    def takes(self, platform: str | None) -> bool:
        """Whether content for a platform is kept; what is for none, or does not say, is."""
        os, _, rest = (platform or "").partition("/")
        architecture, _, variant = rest.partition("/")
        if not architecture or platform == UNKNOWN:
            return True
        full = f"{os}/{architecture}/{variant or _VARIANTS.get(architecture, '')}"
        return any(full == one or full.startswith(f"{one}/") for one in self.keep)

    def kept(self, index: Manifest) -> frozenset[Digest]:
        """The children of an index that are kept. Raises ManifestInvalid."""
        attested = _read_attested(index)
        own = {one.digest for one in index.children if one.digest not in attested and self.takes(one.platform)}
        return frozenset(own | {one for one, subject in attested.items() if subject in own})

    def rebuilt(self, index: Manifest) -> Manifest:
        """The index without what is not kept: the same bytes for the same index and platforms, wherever it is done.

        Raises ManifestInvalid or ManifestTooLarge where that cannot be.
        """
        kept = self.kept(index)
        document = _read(index)
        entries = zip(index.children, document["manifests"], strict=True)
        document["manifests"] = [entry for child, entry in entries if child.digest in kept]
        document["mediaType"] = index.media_type
        document["annotations"] = read_annotations(index.content) | {
            REBUILT_FROM: str(index.digest),
            REBUILT_FOR: self.text,
        }
        try:
            content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        except RecursionError as error:
            raise _nested(index) from error
        return Manifest.parse(content, index.media_type)

    def is_rebuilt(self, here: Manifest, source: Digest) -> bool:
        """Whether a manifest of ours is what the source's index `source` becomes."""
        annotations = read_annotations(here.content)
        return annotations.get(REBUILT_FROM) == str(source) and annotations.get(REBUILT_FOR) == self.text

    @property
    def text(self) -> str:
        """The platforms, in order."""
        return ",".join(sorted(self.keep))

    def to_document(self) -> list[str] | dict[str, Any]:
        """As in replication.yaml."""
        return {"keep": list(self.keep), "rebuild": True} if self.rebuild else list(self.keep)


def _read_attested(index: Manifest) -> dict[Digest, Digest | None]:
    """What in an index speaks of another of its entries, by annotation; None where that is no digest."""
    found: dict[Digest, Digest | None] = {}
    for child, entry in zip(index.children, _read(index)["manifests"], strict=True):
        annotations = entry.get("annotations")
        if isinstance(annotations, dict) and ATTESTED in annotations:
            found[child.digest] = _find_digest(annotations[ATTESTED])
    return found


def _read(index: Manifest) -> dict[str, Any]:
    """The document of an index that was accepted."""
    try:
        document: dict[str, Any] = json.loads(index.content)
    except RecursionError as error:  # nested as deeply as could be read when it came, and a little less can be now
        raise _nested(index) from error
    return document


def _nested(index: Manifest) -> ManifestInvalid:
    return ManifestInvalid(f"index {index.digest}: nested too deeply")


def _find_digest(value: object) -> Digest | None:
    try:
        return Digest.parse(value) if isinstance(value, str) else None
    except DigestInvalid:
        return None


def _parse_keep(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_PLATFORMS:
        raise RuleInvalid(f"{where}: must be a list of 1 to {_MAX_PLATFORMS} platforms such as linux/amd64")
    for number, text in enumerate(value):
        place = f"{where}[{number}]"
        if not isinstance(text, str) or not _PLATFORM.fullmatch(text):
            raise RuleInvalid(f"{place}: must be a platform such as linux/amd64 or linux/arm/v7, in lower case")
        architecture = text.split("/")[1]
        if architecture in _OTHER_NAMES:
            raise RuleInvalid(f"{place}: {architecture} is called {_OTHER_NAMES[architecture]} in images")
    return tuple(value)
