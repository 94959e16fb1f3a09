"""What is gone at the source and was put here by a rule: kept, deleted at once, or when its time is over.

A tag is gone when a list of its repository that came to its end does not name it, or names it no longer as one of those
that the rule selects (the newest ten, say, unless it pulls the rest through); and all tags of a repository are, when
the list of repositories came to its end without it. A tag that the rule does not mean any more, since the rule was
changed, is not gone: it stays.

Whatever is doubtful deletes nothing: a list that broke off, a tag of which its list and the source itself disagree,
a repository of which something failed in the same run, a source that has nothing left of all that the rule put here.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime

from entrepot.errors import (
    EntrepotError,
    ManifestUnknown,
    NameUnknown,
    PreconditionFailed,
    SourceEmptied,
    SourceLied,
    SourceMissing,
    TagImmutable,
)
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.registry.service import Registry
from entrepot.replication.concurrency import for_each
from entrepot.replication.differences import Change, Route
from entrepot.replication.events import CompanionDeleted, DeletionFailed, TagDeleted, Tell
from entrepot.replication.listing import Survey
from entrepot.replication.provenance import Placed, Provenance
from entrepot.replication.rules import Rule
from entrepot.replication.source import Source
from entrepot.storage.clock import Clock

_AT_ONCE = 8

Telling = Callable[[Callable[[EntrepotError], None]], AbstractContextManager[None]]
"""A context that tells of an error, by the function given, instead of raising it."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """A tag here that is gone at the source. It goes at `due_at`, None: never; unless it is `refused`."""

    placed: Placed
    due_at: datetime | None
    refused: TagImmutable | None = None

    def is_due(self, now: datetime) -> bool:
        """Whether it ought not to be here any more."""
        return self.due_at is not None and self.due_at <= now


@dataclass(frozen=True, slots=True)
class Absences:
    """What of a rule is gone: still here as the rule put it, or not (`lost`: deleted here, or moved by somebody else).

    `problem` says why nothing of it may be deleted.
    """

    vanished: list[Vanished]
    lost: list[Placed]
    problem: SourceEmptied | None = None


def select_gone(rule: Rule, placed: Iterable[Placed], found: Survey) -> tuple[list[Placed], bool]:
    """Which of the tags that a rule put here are gone, in order, and whether any that it means is not. Pure."""
    # What it does not copy for what it names now is not gone either.
    there = {(item.origin, item.tag) for item in (*found.items, *found.left_out)}
    gone, has_others = [], any(item.change is Change.SAME for item in found.items)
    for one in sorted(placed, key=lambda one: (one.target, one.tag)):
        if not _is_meant(rule, one):
            continue
        if (one.origin, one.tag) not in there and _is_known_to_lack(found, one):
            gone.append(one)
        else:
            has_others = True
    return gone, has_others


def _is_known_to_lack(found: Survey, placed: Placed) -> bool:
    """Whether the lists that the survey read say that a tag is gone, or not new enough any more."""
    listed = found.listed.get(placed.origin)
    if listed is None:
        # Without a list of all repositories, one that was not listed may have anything.
        return found.is_whole
    # What is listed and was not there when it was asked for may come back at once: it is being replaced, or one of
    # the registry's own replicas lags behind.
    return placed.tag not in listed or placed.tag in found.passed_over.get(placed.origin, ())


def _is_meant(rule: Rule, placed: Placed) -> bool:
    """Whether the rule would put the tag there today."""
    return (
        rule.selects(placed.origin) and rule.selects_tag(placed.tag) and rule.target_of(placed.origin) == placed.target
    )


class Deletions:
    """Deletes what one rule put here and its source has no more."""

    def __init__(
        self, rule: Rule, source: Source, registry: Registry, provenance: Provenance, clock: Clock, tell: Tell
    ) -> None:
        self._rule = rule
        self._source = source
        self._registry = registry
        self._provenance = provenance
        self._clock = clock
        self._tell = tell

    async def find(self, found: Survey, *, has_others: bool = False) -> Absences:
        """What is gone, as of a survey. `has_others` says that other tags are about to come. Changes nothing."""
        placed = await self._provenance.list_placed()
        gone, has_rest = select_gone(self._rule, placed, found)
        here = await self._read_here(gone)
        now = self._clock()
        vanished, lost = [], []
        for one in gone:
            if here.get((one.target, one.tag)) != one.digest:
                lost.append(one)
                continue
            due_at = self._rule.deletions.due_at(one.missing_since or now)
            vanished.append(Vanished(one, due_at, self._find_refusal(one)))
        has_nothing = found.is_whole and not (found.items or found.left_out)
        is_all = bool(vanished) and (has_nothing or not (has_others or has_rest))
        return Absences(vanished, lost, self._explain(vanished) if is_all else None)

    async def carry_out(
        self,
        found: Survey,
        *,
        failed: Collection[RepositoryName],
        telling: Telling,
        verify_open: Callable[[], None],
    ) -> None:
        """Delete what is due, but in repositories at the source of which something `failed`, and note what is gone.

        Raises SourceEmptied when all that the rule put here would go, what `verify_open` raises, or Unavailable.
        """
        if not self._rule.deletions.deletes or not (found.listed or found.is_whole):
            return
        absences = await self.find(found)
        await self._provenance.forget(absences.lost)
        if absences.problem is not None:
            raise absences.problem
        now = self._clock()
        fresh = [one.placed for one in absences.vanished if one.placed.missing_since is None]
        await self._provenance.update(replace(one, missing_since=now) for one in fresh)
        deleted: list[Placed] = []

        async def delete(one: Vanished) -> None:
            placed = one.placed
            verify_open()
            with telling(lambda error: self._tell(DeletionFailed(_route(placed), placed.tag, placed.digest, error))):
                if await self._delete(placed, found):
                    deleted.append(placed)

        due = [one for one in absences.vanished if one.is_due(now) and one.placed.origin not in failed]
        try:
            await for_each(due, delete, at_once=_AT_ONCE)
        finally:
            await self._provenance.forget(deleted)
        await self._delete_companions()

    async def _delete(self, placed: Placed, found: Survey) -> bool:
        """Delete a tag, if it is still what was put here, and still gone; False when it stays."""
        self._registry.verify_deletable(placed.target, placed.tag)
        is_listed = placed.tag in found.listed.get(placed.origin, ())
        if await self._is_there(placed) != is_listed:
            # What is listed and not there may have been deleted since: the next list will tell.
            if not is_listed:
                await self._verify_list(placed)
            return False
        try:
            await self._registry.delete_manifest(
                placed.target, placed.tag, condition=lambda named: named == str(placed.digest)
            )
        except (ManifestUnknown, NameUnknown, PreconditionFailed):  # deleted or moved by somebody, a moment ago
            return True
        self._tell(TagDeleted(_route(placed), placed.tag, placed.digest))
        return True

    async def _is_there(self, placed: Placed) -> bool:
        try:
            await self._source.get_digest(placed.origin, placed.tag)
        except SourceMissing:
            return False
        return True

    async def _verify_list(self, placed: Placed) -> None:
        """Raises SourceLied when a tag is there and the list does not name it; it may also have come back since."""
        listed = {entry.tag async for entry in self._source.list_tags(placed.origin)}
        if placed.tag not in listed:
            raise SourceLied(
                f"source {self._source.name}: {placed.origin}:{placed.tag} is there, but its list of tags does not "
                "name it; so it was not deleted here"
            )

    async def _delete_companions(self) -> None:
        """Delete the tags of signatures, attestations and SBOMs that the rule put here and no tag needs any more."""
        companions: dict[RepositoryName, dict[Tag, Placed]] = {}
        for one in await self._provenance.list_placed():
            if subject_of(one.tag) is not None:
                companions.setdefault(one.target, {})[one.tag] = one
        for target, placed in sorted(companions.items()):
            deleted = await self._registry.delete_leftovers(target, {tag: one.digest for tag, one in placed.items()})
            for tag in deleted:
                self._tell(CompanionDeleted(target, tag))
            await self._provenance.forget([placed[tag] for tag in deleted])

    async def _read_here(self, placed: Iterable[Placed]) -> dict[tuple[RepositoryName, Tag], Digest]:
        tags: dict[RepositoryName, list[Tag]] = {}
        for one in placed:
            tags.setdefault(one.target, []).append(one.tag)
        here: dict[tuple[RepositoryName, Tag], Digest] = {}
        for target, names in tags.items():
            found = await self._registry.read_tag_digests(target, names)
            here |= {(target, tag): digest for tag, digest in found.items()}
        return here

    def _find_refusal(self, placed: Placed) -> TagImmutable | None:
        try:
            self._registry.verify_deletable(placed.target, placed.tag)
        except TagImmutable as error:
            return error
        return None

    def _explain(self, vanished: list[Vanished]) -> SourceEmptied:
        return SourceEmptied(
            f"source {self._source.name}: nothing is there any more of all that rule {self._rule.name!r} brought here "
            f"({len(vanished)} tags, {vanished[0].placed} first), so nothing was deleted. Check the source and the "
            "rule; if it is meant, delete the repositories' tags here, or let the rule say deletions: keep"
        )


def _route(placed: Placed) -> Route:
    return Route(placed.origin, placed.target)
