"""What a run would do: the difference between what a source has and what is here. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag


class Change(StrEnum):
    """How a tag at the source differs from the one here."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class Route:
    """A repository at the source, and the one here that its content goes to."""

    origin: RepositoryName
    target: RepositoryName


@dataclass(frozen=True, slots=True)
class Item:
    """One tag at the source: where it goes, what it names there, and what it names here (None: nothing yet).

    `pushed_at` is when the source says that it came to name that. `verdict` is what a closer look found, where the two
    digests do not say how it differs: an index here may lack what is wanted of it, or be made from the one there.
    """

    origin: RepositoryName
    target: RepositoryName
    tag: Tag
    digest: Digest
    here: Digest | None
    pushed_at: datetime | None = None
    verdict: Change | None = None

    @property
    def route(self) -> Route:
        """From which repository to which."""
        return Route(self.origin, self.target)

    @property
    def change(self) -> Change:
        """How it differs."""
        if self.verdict is not None:
            return self.verdict
        if self.here is None:
            return Change.NEW
        return Change.SAME if self.here == self.digest else Change.CHANGED


def plan_items(
    origin: RepositoryName,
    target: RepositoryName,
    there: Mapping[Tag, Digest],
    here: Mapping[Tag, Digest],
    pushed_at: Mapping[Tag, datetime] | None = None,
) -> list[Item]:
    """An item for every tag that the source has, in order of their names."""
    pushed = pushed_at or {}
    return [Item(origin, target, tag, there[tag], here.get(tag), pushed.get(tag)) for tag in sorted(there)]


def count_changes(items: Iterable[Item]) -> dict[Change, int]:
    """How many items there are of each kind; every kind is there."""
    counts = dict.fromkeys(Change, 0)
    for item in items:
        counts[item.change] += 1
    return counts
