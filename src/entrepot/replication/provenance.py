"""Which tags a rule put here: the only ones that it may ever take away.

They are written down after the tag has moved. Whoever dies between leaves a tag that is as at the source, and the next
run that finds it so writes it down; one that is never found so again stays for good, which does no harm.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import sqlalchemy as sa

from entrepot.errors import EntrepotError
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication import provenance_records as records
from entrepot.replication.differences import Change, Item
from entrepot.replication.events import CompanionNamed, Event, ItemFailed, ItemFinished, Listed
from entrepot.replication.report import is_refusal
from entrepot.replication.rulebook import is_still_from
from entrepot.replication.source_specs import SourceSpec
from entrepot.storage.database import Database


@dataclass(frozen=True, slots=True)
class Placed:
    """A tag that replication put here, and what it named then.

    `missing_since` is when the source was first found not to have it any more; None while it has.
    """

    origin: RepositoryName
    target: RepositoryName
    tag: Tag
    digest: Digest
    missing_since: datetime | None = None

    @classmethod
    def read(cls, row: records.Row) -> Self:
        """The tag in a row."""
        return cls(
            RepositoryName(row["origin"]),
            RepositoryName(row["repository"]),
            Tag(row["tag"]),
            Digest.parse(row["digest"]),
            row["missing_since"],
        )

    def to_row(self, rule: str) -> records.Row:
        """As a row has it."""
        return {
            "rule": rule,
            "repository": self.target.value,
            "tag": self.tag.value,
            "origin": self.origin.value,
            "digest": str(self.digest),
            "missing_since": self.missing_since,
        }

    def __str__(self) -> str:
        return f"{self.target}:{self.tag}"


class Arrivals:
    """The tags that one run puts here, or finds here as they are at the source."""

    def __init__(self) -> None:
        self._placed: dict[tuple[RepositoryName, Tag], Placed] = {}
        # Repositories at the source of which something could not be copied, though nobody decided against it.
        self.failed: set[RepositoryName] = set()

    def note(self, event: Event) -> None:
        """Take in what the run tells."""
        match event:
            case Listed(items):
                for item in items:
                    if item.change is Change.SAME:
                        self._add_item(item)
            case ItemFinished(item):
                self._add_item(item)
            case CompanionNamed(route, tag, digest):
                self._add(Placed(route.origin, route.target, tag, digest))
            case ItemFailed(item, error):
                self._note_failure(item.origin, error)
            case _:
                pass

    def take(self) -> list[Placed]:
        """The tags so far."""
        taken, self._placed = list(self._placed.values()), {}
        return taken

    def _add_item(self, item: Item) -> None:
        # An index may have been made anew from the source's: then it has another digest here.
        if item.here is not None:
            self._add(Placed(item.origin, item.target, item.tag, item.here))

    def _add(self, placed: Placed) -> None:
        self._placed[placed.target, placed.tag] = placed

    def _note_failure(self, origin: RepositoryName, error: EntrepotError) -> None:
        if not is_refusal(error):
            self.failed.add(origin)


class Provenance:
    """The tags that one rule put here from one source.

    Once the rule copies from another source, nothing more is written down: what came from the one before stays.
    """

    def __init__(self, database: Database, rule: str, spec: SourceSpec) -> None:
        self._database = database
        self._rule = rule
        self._spec = spec

    async def list_placed(self) -> list[Placed]:
        """All of them."""
        rows = await self._database.read(lambda connection: records.list_placed(connection, self._rule))
        return [Placed.read(row) for row in rows]

    async def keep(self, arrived: Iterable[Placed]) -> None:
        """Write down what has arrived; what is known already is not written again."""
        rows = [one.to_row(self._rule) for one in arrived]
        targets = {row["repository"] for row in rows}
        if not rows:
            return
        known = {
            (row["repository"], row["tag"]): row
            for row in await self._database.read(lambda found: records.list_placed(found, self._rule, targets))
        }
        await self._put([row for row in rows if known.get((row["repository"], row["tag"])) != row])

    async def update(self, placed: Iterable[Placed]) -> None:
        """Write down what was found out about tags."""
        await self._put([one.to_row(self._rule) for one in placed])

    async def forget(self, placed: Iterable[Placed]) -> None:
        """Tags that are not here any more, or that somebody else has moved, are not the rule's any more."""
        rows = _ordered([one.to_row(self._rule) for one in placed])
        for start in range(0, len(rows), records.BATCH):
            some = rows[start : start + records.BATCH]
            await self._database.write(lambda connection, some=some: records.forget_placed(connection, some))  # type: ignore[misc]

    async def _put(self, rows: list[records.Row]) -> None:
        rows = _ordered(rows)
        for start in range(0, len(rows), records.BATCH):
            some = rows[start : start + records.BATCH]

            def work(connection: sa.Connection, some: list[records.Row] = some) -> None:
                if is_still_from(connection, self._rule, self._spec):
                    records.put_placed(connection, some)

            await self._database.write(work)


def _ordered(rows: list[records.Row]) -> list[records.Row]:
    """In the order in which everybody writes them, so that no two wait for each other."""
    return sorted(rows, key=lambda row: (row["repository"], row["tag"]))
