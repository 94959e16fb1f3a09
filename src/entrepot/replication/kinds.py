"""The kinds of artifacts that a rule copies: images, charts, other artifacts, or certain media types. Pure.

What a manifest is says its `artifactType`, else the media type of its config (image-spec 1.1, manifest.md, "Guidelines
for Artifact Usage"); an index without an `artifactType` is of images.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from entrepot.access.globs import Glob
from entrepot.errors import RuleInvalid
from entrepot.oci import media_types
from entrepot.oci.manifest import Manifest

IMAGE_CONFIGS: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
_IMAGES = IMAGE_CONFIGS | media_types.INDEXES
_EMPTY = "application/vnd.oci.empty.v1+json"
_WORDS: Final = ("images", "charts", "artifacts")
_MAX_ENTRIES = 100
_MAX_CHARACTERS = 255
# RFC 6838, section 4.2, with stars.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9*][A-Za-z0-9!#$&^_.+*-]*/[A-Za-z0-9*][A-Za-z0-9!#$&^_.+*-]*")


@dataclass(frozen=True, slots=True)
class Kinds:
    """Words such as `charts`, and globs of media types; one of them must fit."""

    words: frozenset[str]
    globs: tuple[Glob, ...] = ()

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """What a list of words and media types spells. Raises RuleInvalid."""
        if not isinstance(value, list) or not 0 < len(value) <= _MAX_ENTRIES:
            raise RuleInvalid(f"{where}: must be a list of {', '.join(_WORDS)}, or media types")
        globs = []
        for number, text in enumerate(value):
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_CHARACTERS:
                raise RuleInvalid(f"{where}[{number}]: must be text of at most {_MAX_CHARACTERS} characters")
            if text in _WORDS:
                continue
            if not _MEDIA_TYPE.fullmatch(text) or "***" in text:
                raise RuleInvalid(
                    f"{where}[{number}]: must be {', '.join(_WORDS)}, or a media type such as {media_types.HELM_CONFIG}"
                )
            globs.append(Glob.read(text))
        return cls(frozenset(value).intersection(_WORDS), tuple(globs))

    def takes(self, kind: str) -> bool:
        """Whether what has this media type is copied."""
        return word_of(kind) in self.words or any(glob.matches(kind) for glob in self.globs)

    def to_document(self) -> list[str]:
        """As in replication.yaml."""
        return [word for word in _WORDS if word in self.words] + [glob.text for glob in self.globs]

    def __str__(self) -> str:
        return ", ".join(self.to_document())


def word_of(kind: str) -> str:
    """What a media type is called here."""
    if kind in _IMAGES:
        return "images"
    return "charts" if kind == media_types.HELM_CONFIG else "artifacts"


def kind_of(manifest: Manifest) -> str:
    """The media type that says what a manifest is."""
    return manifest.artifact_type or manifest.media_type


def find_listed_kind(manifest_type: object, artifact_type: object) -> str | None:
    """The same from what ECR lists of it; None where that leaves it open, and the manifest must be read."""
    if isinstance(artifact_type, str) and artifact_type not in {"", _EMPTY}:
        return artifact_type
    return manifest_type if isinstance(manifest_type, str) and manifest_type in media_types.INDEXES else None
