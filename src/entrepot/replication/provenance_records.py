"""SQL of the tags that replication put here: one function per question."""

from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa

from entrepot.storage.statements import upsert_all
from entrepot.storage.tables import replicated_tags as placed

Row = dict[str, Any]
# Rows of one statement, so that others may write between them.
BATCH = 1000


def list_placed(connection: sa.Connection, rule: str, repositories: Collection[str] | None = None) -> list[Row]:
    """The tags that a rule put here, of all repositories or of some."""
    query = sa.select(placed).where(placed.c.rule == rule)
    if repositories is None:
        return [dict(row) for row in connection.execute(query).mappings()]
    found: list[Row] = []
    names = sorted(repositories)
    for start in range(0, len(names), BATCH):
        some = query.where(placed.c.repository.in_(names[start : start + BATCH]))
        found += [dict(row) for row in connection.execute(some).mappings()]
    return found


def put_placed(connection: sa.Connection, rows: list[Row]) -> None:
    """Note what tags a rule put here, or what it found out about them."""
    upsert_all(connection, placed, rows)


def forget_placed(connection: sa.Connection, rows: Iterable[Row]) -> None:
    """Forget tags that name what these rows say: others may have been put here since."""
    keys = [
        {"of_rule": row["rule"], "in_repository": row["repository"], "named": row["tag"], "was": row["digest"]}
        for row in rows
    ]
    if keys:
        is_it = (
            (placed.c.rule == sa.bindparam("of_rule"))
            & (placed.c.repository == sa.bindparam("in_repository"))
            & (placed.c.tag == sa.bindparam("named"))
            & (placed.c.digest == sa.bindparam("was"))
        )
        connection.execute(placed.delete().where(is_it), keys)


def forget_rule(connection: sa.Connection, rule: str) -> None:
    """Forget whatever a rule put here: it stays, since nobody may take it away any more."""
    connection.execute(placed.delete().where(placed.c.rule == rule))
