"""SQL of what is fetched because somebody pulls it: one function per question."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.replication.records import FINISHED, UNFINISHED
from entrepot.storage.statements import insert_missing
from entrepot.storage.tables import replication_arrivals as arrivals
from entrepot.storage.tables import replication_pulls as pulls
from entrepot.storage.tables import replication_runs as runs

# Tags that are being fetched and lead to one digest; of more, the rest is as good.
_MAX_FOUND = 100


@dataclass(frozen=True, slots=True)
class PullRow:
    """A tag that is being fetched by a run, which `runner` showed life in at `seen_at`.

    `content` is the manifest that it names, None until it may be served.
    """

    run_id: str
    tag: str
    status: str
    runner: str | None
    seen_at: datetime | None
    digest: str | None
    size: int | None
    media_type: str | None
    content: bytes | None


@dataclass(frozen=True, slots=True)
class ArrivalRow(PullRow):
    """A manifest or blob that such a tag leads to; `content` None: a blob. `is_root`: the tag names it."""

    is_root: bool


_OF_PULL = (pulls.c.run_id, pulls.c.tag, runs.c.status, runs.c.runner, runs.c.seen_at)
_OF_ARRIVAL = (arrivals.c.size_bytes, arrivals.c.media_type, arrivals.c.content)


def find_pull(connection: sa.Connection, repository: str, tag: str) -> PullRow | None:
    """The run that fetches a tag, finished or not."""
    query = (
        sa.select(*_OF_PULL, pulls.c.digest, *_OF_ARRIVAL)
        .join(runs, runs.c.id == pulls.c.run_id)
        .join(arrivals, (arrivals.c.run_id == pulls.c.run_id) & (arrivals.c.digest == pulls.c.digest), isouter=True)
        .where(pulls.c.repository == repository, pulls.c.tag == tag)
    )
    row = connection.execute(query).first()
    return None if row is None else PullRow(*row)


def list_arrivals(connection: sa.Connection, repository: str, digest: str) -> list[ArrivalRow]:
    """What is said of a digest by unfinished runs that fetch tags which lead to it, the liveliest first."""
    query = (
        sa.select(*_OF_PULL, arrivals.c.digest, *_OF_ARRIVAL, (pulls.c.digest == arrivals.c.digest).label("is_root"))
        .select_from(arrivals)
        .join(pulls, pulls.c.run_id == arrivals.c.run_id)
        .join(runs, runs.c.id == pulls.c.run_id)
        .where(arrivals.c.repository == repository, arrivals.c.digest == digest, runs.c.status.in_(UNFINISHED))
        .order_by(runs.c.seen_at.desc())
        .limit(_MAX_FOUND)
    )
    return [ArrivalRow(*row) for row in connection.execute(query)]


def insert_pull(connection: sa.Connection, run_id: str, repository: str, tag: str) -> bool:
    """Let a run fetch a tag; False when another one does already (which the database sees to)."""
    row = {"run_id": run_id, "repository": repository, "tag": tag, "digest": None}
    return insert_missing(connection, pulls, [row]) == 1


def insert_arrivals(
    connection: sa.Connection, run_id: str, repository: str, digest: str, rows: Sequence[dict[str, Any]]
) -> None:
    """Say what a run's tag names, and all that it leads to."""
    insert_missing(connection, arrivals, [{"run_id": run_id, "repository": repository, **row} for row in rows])
    connection.execute(pulls.update().where(pulls.c.run_id == run_id).values(digest=digest))


def delete_pull(connection: sa.Connection, run_id: str) -> None:
    """Forget that a run fetches a tag."""
    connection.execute(pulls.delete().where(pulls.c.run_id == run_id))


def delete_finished(connection: sa.Connection) -> None:
    """Forget what finished runs fetched: of those that another process than the first one ended."""
    finished = sa.select(runs.c.id).where(runs.c.id == pulls.c.run_id, runs.c.status.in_(FINISHED))
    connection.execute(pulls.delete().where(sa.exists(finished)))


def delete_run(connection: sa.Connection, run_id: str) -> None:
    """Drop a run that turned out not to be needed, before anybody saw it."""
    connection.execute(runs.delete().where(runs.c.id == run_id))
