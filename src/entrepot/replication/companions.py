"""What belongs to a manifest at the source: cosign's tags, and referrers."""

from collections.abc import Mapping
from dataclasses import dataclass

from entrepot.errors import SourceMissing
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags, referrers_tag
from entrepot.replication.concurrency import for_each
from entrepot.replication.source import Source

_QUESTIONS_AT_ONCE = 16

Tags = Mapping[Tag, Digest | None]


@dataclass(frozen=True, slots=True)
class Companion:
    """A manifest that belongs to `subject`: one of cosign's, named by a tag, or else a referrer."""

    subject: Digest
    digest: Digest
    tag: Tag | None = None

    def __str__(self) -> str:
        return f"tag {self.tag}" if self.tag is not None else f"referrer {self.digest}"


class Companions:
    """Finds companions in one repository of a source.

    `tags` are the repository's tags that speak of a digest, with what they name where the list said so; None when they
    were not listed: then each is asked for.
    """

    def __init__(self, source: Source, repository: RepositoryName, tags: Tags | None) -> None:
        self._source = source
        self._repository = repository
        self._tags = tags

    async def find(self, subject: Digest) -> list[Companion]:
        """What belongs to a manifest now, cosign's tags first. Raises SourceError."""
        return [*await self.list_tagged(cosign_tags(subject), subject), *await self.list_referrers(subject)]

    async def list_tagged(self, tags: tuple[Tag, ...], subject: Digest) -> list[Companion]:
        """What those of cosign's tags name that are there."""
        found: dict[Tag, Digest] = {}

        async def ask(tag: Tag) -> None:
            listed = None if self._tags is None else self._tags[tag]
            if listed is not None:
                found[tag] = listed
                return
            try:
                found[tag] = await self._source.get_digest(self._repository, tag)
            except SourceMissing:
                return

        due = [tag for tag in tags if self._tags is None or tag in self._tags]
        await for_each(due, ask, at_once=_QUESTIONS_AT_ONCE)
        return [Companion(subject, found[tag], tag) for tag in due if tag in found]

    async def list_referrers(self, subject: Digest) -> list[Companion]:
        """What is listed as a referrer; whether it is one, `read` says."""
        has_fallback = self._tags is None or referrers_tag(subject) in self._tags
        entries = await self._source.list_referrers(self._repository, subject, has_fallback=has_fallback)
        # A list may name something twice.
        return [Companion(subject, digest) for digest in dict.fromkeys(entry.digest for entry in entries)]

    async def read(self, companion: Companion) -> Manifest | None:
        """Its manifest; None when it is gone, or does not speak of its subject itself, as a referrer must."""
        try:
            manifest = await self._source.get_manifest(self._repository, companion.digest)
        except SourceMissing:
            return None
        if companion.tag is None and (manifest.subject is None or manifest.subject.digest != companion.subject):
            return None
        return manifest
