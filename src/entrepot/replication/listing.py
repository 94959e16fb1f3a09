"""What a source has of a rule, compared with what is here."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
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
    tags of those that were, and `is_whole` says that the source has no other repositories that the rule means. `kinds`
    are the media types of what tags name, as far as the list told them. `passed_over` are tags that the rule means by
    their names, but that are not new enough for it; `left_out` are items that it does not copy, with the reason.
    """

    items: list[Item]
    tags: dict[RepositoryName, Tags | None]
    listed: dict[RepositoryName, frozenset[Tag]] = field(default_factory=dict)
    is_whole: bool = False
    kinds: dict[Digest, str] = field(default_factory=dict)
    passed_over: dict[RepositoryName, set[Tag]] = field(default_factory=dict)
    left_out: dict[Item, str] = field(default_factory=dict)

    @property
    def due(self) -> list[Item]:
        """What is not here yet, or is something else here."""
        return [item for item in self.items if item.change is not Change.SAME]

    def unchanged(self) -> dict[Route, set[Digest]]:
        """For every repository, in order, what its tags name both there and here."""
        found: dict[Route, set[Digest]] = {}
        for item in self.items:
            digests = found.setdefault(item.route, set())
            if item.change is Change.SAME and item.here is not None:
                digests.add(item.here)
        return found


async def survey(
    source: Source,
    registry: Registry,
    rule: Rule,
    scope: Sequence[Spot] | None,
    tell: Tell,
    *,
    at_once: int,
    now: datetime,
    is_exact: bool = False,
) -> Survey:
    """Every tag at the source that the rule means; with a `scope`, only those in it.

    A rule that picks among all tags of a repository looks at all of them, unless the scope `is_exact`.
    """
    literal = rule.literal_repositories()
    found = Survey([], {}, is_whole=scope is None and literal is None)
    items, tags = found.items, found.tags
    wanted = {} if scope is None else _group(rule, scope, is_exact=is_exact)
    if scope is not None:
        names = sorted(wanted)
    else:
        names = await _find_repositories(source, rule) if literal is None else literal

    async def list_one(name: RepositoryName) -> None:
        some = wanted.get(name)
        try:
            if some is None:
                entries = await _read_tags(source, registry, rule, name, now, found)
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
        if rule.kinds is not None:
            found.kinds.update({entry.digest: entry.kind for entry in entries if entry.digest and entry.kind})
        here = await registry.read_tag_digests(target, there.keys())
        items.extend(plan_items(name, target, there, here, pushed_at))

    await for_each(names, list_one, at_once=at_once)
    items.sort(key=lambda item: (item.origin, item.tag))
    return found


def _group(rule: Rule, scope: Sequence[Spot], *, is_exact: bool) -> dict[RepositoryName, list[Tag] | None]:
    """The tags that are wanted of each repository, None for all; what the rule does not mean is left out."""
    grouped: dict[RepositoryName, list[Tag] | None] = {}
    for spot in sorted(set(scope)):  # whole repositories first
        name, tag = RepositoryName(spot.repository), Tag(spot.tag)
        if not rule.selects(name):
            continue
        if not spot.tag or (rule.picks.needs_all and not is_exact and rule.selects_tag(tag)):
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
    source: Source, registry: Registry, rule: Rule, repository: RepositoryName, now: datetime, found: Survey
) -> list[TagEntry]:
    """What every tag that the rule means names at the source; the survey takes in what else the list says."""
    listed = [entry async for entry in source.list_tags(repository)]
    attached = {entry.tag: entry.digest for entry in listed if subject_of(entry.tag) is not None}

    def pick() -> tuple[list[TagEntry], set[Tag]]:
        meant = [entry for entry in listed if rule.selects_tag(entry.tag)]
        picked = rule.picks.select(meant, now)
        return picked, {entry.tag for entry in meant} - {entry.tag for entry in picked}

    # On a thread, since 100,000 tags take a second or two, in which others want to be served.
    entries, passed_over = await asyncio.to_thread(pick)
    if rule.pull_through and passed_over:
        # What was pulled before is looked after like what is copied ahead.
        pulled = await registry.read_tag_digests(rule.target_of(repository), passed_over)
        entries += [entry for entry in listed if entry.tag in pulled]
        passed_over -= pulled.keys()
    unknown = [entry.tag for entry in entries if entry.digest is None]
    known = [entry for entry in entries if entry.digest is not None]
    found.tags[repository], found.passed_over[repository] = attached, passed_over
    found.listed[repository] = frozenset(entry.tag for entry in listed)
    return known + await _read_some(source, repository, unknown)


async def _read_some(source: Source, repository: RepositoryName, tags: Sequence[Tag]) -> list[TagEntry]:
    """What these tags name at the source, without those that it has not."""
    found: list[TagEntry] = []

    async def read(tag: Tag) -> None:
        with contextlib.suppress(SourceMissing):  # deleted since it was listed
            found.append(TagEntry(tag, await source.get_digest(repository, tag)))

    await for_each(tags, read, at_once=LISTINGS_AT_ONCE)
    return found
