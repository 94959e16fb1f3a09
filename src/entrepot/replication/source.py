"""What replication needs of a source, whatever kind it is."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag

# What may speak of one manifest: signatures, attestations, SBOMs. Real manifests have a dozen.
MAX_REFERRERS = 1000


@dataclass(frozen=True, slots=True)
class TagEntry:
    """A tag in a source's list: what it names, when that was pushed and of what kind it is, where the list says so."""

    tag: Tag
    digest: Digest | None = None
    pushed_at: datetime | None = None
    kind: str | None = None


class Source(Protocol):
    """Content that can be listed and read.

    Every method raises SourceError, of the class that says whose fault it is and whether trying again can help; the
    tries that make sense at once are made in here.
    """

    @property
    def name(self) -> str:
        """What the rule file calls it."""

    def list_repositories(self) -> AsyncIterator[RepositoryName]:
        """Every repository that the source shows us."""

    def list_tags(self, repository: RepositoryName) -> AsyncIterator[TagEntry]:
        """Every tag of a repository. Raises SourceMissing when there is no such repository."""

    async def get_digest(self, repository: RepositoryName, tag: Tag) -> Digest:
        """What `tag` names now, as cheaply as the source can say it. Raises SourceMissing."""

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> Manifest:
        """A manifest; named by digest it has that digest. Raises SourceMissing or SourceLied."""

    async def list_referrers(
        self, repository: RepositoryName, subject: Digest, *, has_fallback: bool = True
    ) -> list[Descriptor]:
        """What says of itself that it speaks of `subject`, and what a tag says so of; nothing where nothing does.

        Spec: distribution-spec 1.1, "Listing Referrers". `has_fallback` is False where it is known that there is no
        tag of the Referrers Tag Schema, which spares a question. Raises SourceUnsupported when there are too many.
        """

    def open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The pieces of a blob from byte `start` on: never more than its descriptor says, and fewer only with an error.

        Whether they have the blob's digest is for the reader to check.
        """
