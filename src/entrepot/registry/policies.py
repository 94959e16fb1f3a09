"""What the operator says of repositories, whoever uses them: tags that never move, room, sparse manifests. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from entrepot.access.globs import Glob
from entrepot.access.quantities import parse_bytes
from entrepot.oci.reference import RepositoryName, Tag


@dataclass(frozen=True, slots=True)
class Policies:
    """`immutable_tags` are pairs of globs for repository and tag; `quotas` limit bytes by glob for the repository."""

    immutable_tags: tuple[tuple[Glob, Glob], ...] = ()
    quotas: tuple[tuple[Glob, int], ...] = ()
    sparse_manifests: tuple[Glob, ...] = ()

    @classmethod
    def parse(cls, immutable_tags: Iterable[str], quotas: Mapping[str, str], sparse_manifests: Iterable[str]) -> Self:
        """The policies that settings spell: `REPOSITORY:TAG` globs, amounts by glob, globs.

        Raises GlobInvalid or ValueError.
        """
        return cls(
            immutable_tags=tuple(_parse_pair(text) for text in immutable_tags),
            quotas=tuple((Glob.parse(glob), parse_bytes(amount)) for glob, amount in quotas.items()),
            sparse_manifests=tuple(Glob.parse(glob) for glob in sparse_manifests),
        )

    def is_immutable(self, repository: RepositoryName, tag: Tag) -> bool:
        """Whether the tag, once there, must stay what it is."""
        return any(
            of_tag.matches(tag.value) and of_repository.matches(repository.value)
            for of_repository, of_tag in self.immutable_tags
        )

    def quota_of(self, repository: RepositoryName) -> int | None:
        """The most bytes that the repository may hold: the least of what matches; None for no limit."""
        return min((limit for glob, limit in self.quotas if glob.matches(repository.value)), default=None)

    def allows_sparse(self, repository: RepositoryName) -> bool:
        """Whether a manifest may name blobs and manifests that the repository does not hold."""
        return any(glob.matches(repository.value) for glob in self.sparse_manifests)


def _parse_pair(text: str) -> tuple[Glob, Glob]:
    repository, separator, tag = text.partition(":")
    if not separator:
        raise ValueError(f"{text!r}: write REPOSITORY:TAG, such as smm/**:v*")
    return Glob.parse(repository), Glob.parse(tag)
