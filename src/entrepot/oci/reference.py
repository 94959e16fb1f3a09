"""Repository names, tags, and what a client may put where a manifest is named.

Implements distribution-spec 1.1, section "Pulling manifests" (the grammars of <name> and <reference>). Host names and
ports belong to clients; a registry never sees them.
"""

import re
from dataclasses import dataclass
from typing import Self

from entrepot.errors import NameInvalid, TagInvalid
from entrepot.oci.digest import CANONICAL, Digest

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_SUBJECT = re.compile(
    r"(sha256(?=-[0-9a-f]{64}(?![0-9a-f]))|sha512(?=-[0-9a-f]{128}(?![0-9a-f])))-([0-9a-f]+)(?:\.[a-z]+)?"
)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
# "Many clients impose a limit of 255 characters on the length of the concatenation of the registry hostname,
# /, and <name>": the name alone may use all of it.
_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True, order=True)
class RepositoryName:
    """The name of a repository, such as `smm/api`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name that `text` spells. Raises NameInvalid."""
        if len(text) > _NAME_LENGTH:
            raise NameInvalid(f"repository name of {len(text)} characters: at most {_NAME_LENGTH} are allowed")
        if not _NAME.fullmatch(text):
            raise NameInvalid(
                f"repository name {text!r}: use lower-case letters, digits and single separators (. _ __ -) "
                "between slashes"
            )
        return cls(text)

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A tag, such as `v1.2.0`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The tag that `text` spells. Raises TagInvalid."""
        if not _TAG.fullmatch(text):
            raise TagInvalid(
                f"tag {text[:150]!r}: 1 to 128 letters, digits, '_', '.' or '-', not beginning with '.' or '-'"
            )
        return cls(text)

    def __str__(self) -> str:
        return self.value


def subject_of(tag: Tag) -> Digest | None:
    """What a tag speaks of by which clients look for what belongs to a digest, None for any other tag.

    Such are cosign's `sha256-<hex>.sig`, `.att` and `.sbom`, and the fallback of distribution-spec 1.1 ("Referrers Tag
    Schema").
    """
    match = _SUBJECT.fullmatch(tag.value)
    return None if match is None else Digest.parse(f"{match[1]}:{match[2]}")


def cosign_tags(subject: Digest) -> tuple[Tag, ...]:
    """The tags under which cosign keeps signatures, attestations and SBOMs of a manifest.

    Source: cosign, specs/SIGNATURE_SPEC.md, "Tag-based Discovery".
    """
    if subject.algorithm != CANONICAL:  # longer than a tag may be
        return ()
    return tuple(Tag(f"{subject.algorithm}-{subject.hex}.{kind}") for kind in ("sig", "att", "sbom"))


def referrers_tag(subject: Digest) -> Tag:
    """The tag that lists what speaks of a manifest where a registry has no API for it.

    Source: distribution-spec 1.1, "Referrers Tag Schema".
    """
    return Tag(f"{subject.algorithm}-{subject.hex[:64]}")


Reference = Tag | Digest
"""What may stand where a manifest is named: a tag, or a digest."""


def parse_image(text: str) -> tuple[RepositoryName, Reference]:
    """Repository and reference of `smm/api:1.4.2` or `smm/api@sha256:...`; without either, the tag is `latest`.

    A registry's host does not belong in it. Raises NameInvalid, TagInvalid or DigestInvalid.
    """
    name, at, digest = text.partition("@")
    name, _, tag = name.partition(":")
    return RepositoryName.parse(name), parse_reference(digest) if at else Tag.parse(tag or "latest")


def parse_reference(text: str) -> Reference:
    """The tag or digest that `text` spells. Raises TagInvalid or DigestInvalid.

    A colon cannot occur in a tag, so it tells the two apart.
    """
    return Digest.parse(text) if ":" in text else Tag.parse(text)
