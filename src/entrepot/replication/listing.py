"""What a source has of a rule, compared with what is here."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from entrepot.errors import SourceError, SourceMissing, SourceUnreachable
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.registry.service import Registry
from entrepot.replication.companions import Tags
from entrepot.replication.concurrency import for_each
from entrepot.replication.differences import Change, Item, Route, plan_items
from entrepot.replication.events import RepositoryFailed, Tell
from entrepot.replication.rules import Rule
from entrepot.replication.source import Source, TagEntry

# Small requests, of which a source takes more at once than blobs.
LISTINGS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, order=True)
class Spot:
    """A tag at a source, or with an empty one a whole repository."""

    repository: str
    tag: str = ""

    @classmethod
    def read(cls, document: Any) -> Self:
        """The spot in a run's scope."""
        return cls(document["repository"], document["tag"])

    def to_document(self) -> dict[str, str]:
        """As a run's scope has it."""
        return {"repository": self.repository, "tag": self.tag}


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source has: an item for every tag that is meant, and by repository the tags that speak of a digest.

    These are None for a repository of which single tags were asked for, so that it was not listed. `listed` are all
    tags of those that were, and `is_whole` says that the source has no other repositories that the rule means.
    """

    items: list[Item]
    tags: dict[RepositoryName, Tags | None]
    listed: dict[RepositoryName, frozenset[Tag]] = field(default_factory=dict)
    is_whole: bool = False

    @property
    def due(self) -> list[Item]:
        """What is not here yet, or is something else here."""
        return [item for item in self.items if item.change is not Change.SAME]

    def unchanged(self) -> dict[Route, set[Digest]]:
        """For every repository, in order, what its tags name both there and here."""
        found: dict[Route, set[Digest]] = {}
        for item in self.items:
            found.setdefault(item.route, set()).update({item.digest} if item.change is Change.SAME else ())
        return found


async def survey(
    source: Source, registry: Registry, rule: Rule, scope: Sequence[Spot] | None, tell: Tell, *, at_once: int
) -> Survey:
    """Every tag at the source that the rule means; with a `scope`, only those in it."""
    items: list[Item] = []
    tags: dict[RepositoryName, Tags | None] = {}
    listed: dict[RepositoryName, frozenset[Tag]] = {}
    literal = rule.literal_repositories()
    wanted = {} if scope is None else _group(rule, scope)
    if scope is not None:
        names = sorted(wanted)
    else:
        names = await _find_repositories(source, rule) if literal is None else literal

    async def list_one(name: RepositoryName) -> None:
        some = wanted.get(name)
        try:
            if some is None:
                entries, tags[name], listed[name] = await _read_tags(source, rule, name)
            else:
                entries, tags[name] = await _read_some(source, name, some), None
        except SourceMissing as error:
            # A repository that the source lists, but that has no tags, is unknown to some of them.
            if literal is not None and scope is None:
                tell(RepositoryFailed(name, error))
            return
        target = rule.target_of(name)
        there = {entry.tag: entry.digest for entry in entries if entry.digest is not None}
        pushed_at = {entry.tag: entry.pushed_at for entry in entries if entry.pushed_at is not None}
        here = await registry.read_tag_digests(target, there.keys())
        items.extend(plan_items(name, target, there, here, pushed_at))

    await for_each(names, list_one, at_once=at_once)
    ordered = sorted(items, key=lambda item: (item.origin, item.tag))
    return Survey(ordered, tags, listed, is_whole=scope is None and literal is None)


def _group(rule: Rule, scope: Sequence[Spot]) -> dict[RepositoryName, list[Tag] | None]:
    """The tags that are wanted of each repository, None for all; what the rule does not mean is left out."""
    grouped: dict[RepositoryName, list[Tag] | None] = {}
    for spot in sorted(set(scope)):  # whole repositories first
        name, tag = RepositoryName(spot.repository), Tag(spot.tag)
        if not rule.selects(name):
            continue
        if not spot.tag:
            grouped[name] = None
        elif rule.selects_tag(tag):
            tags = grouped.setdefault(name, [])
            if tags is not None:
                tags.append(tag)
    return grouped


async def _find_repositories(source: Source, rule: Rule) -> list[RepositoryName]:
    """The repositories that the source lists and the rule means."""
    try:
        return sorted({name async for name in source.list_repositories() if rule.selects(name)})
    except SourceUnreachable:
        raise
    except SourceError as error:
        raise type(error)(
            f"{error}. Where a source does not list its repositories, name them in the rule without *"
        ) from error


async def _read_tags(
    source: Source, rule: Rule, repository: RepositoryName
) -> tuple[list[TagEntry], Tags, frozenset[Tag]]:
    """What every tag that the rule means names at the source; the tags that speak of a digest; and all there are."""
    listed = [entry async for entry in source.list_tags(repository)]
    attached = {entry.tag: entry.digest for entry in listed if subject_of(entry.tag) is not None}
    entries = [entry for entry in listed if rule.selects_tag(entry.tag)]
    unknown = [entry.tag for entry in entries if entry.digest is None]
    known = [entry for entry in entries if entry.digest is not None]
    found = known + await _read_some(source, repository, unknown)
    return found, attached, frozenset(entry.tag for entry in listed)


async def _read_some(source: Source, repository: RepositoryName, tags: Sequence[Tag]) -> list[TagEntry]:
    """What these tags name at the source, without those that it has not."""
    found: list[TagEntry] = []

    async def read(tag: Tag) -> None:
        with contextlib.suppress(SourceMissing):  # deleted since it was listed
            found.append(TagEntry(tag, await source.get_digest(repository, tag)))

    await for_each(tags, read, at_once=LISTINGS_AT_ONCE)
    return found
