"""Insert statements that say what happens when the row is there already, for every database we support."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

Rows = Sequence[dict[str, Any]]


def insert_missing(connection: sa.Connection, table: sa.Table, rows: Rows) -> int:
    """Insert the rows whose keys are not there yet; answers how many were new."""
    if not rows:
        return 0
    # The library forgets the count otherwise, since few drivers know it for an INSERT.
    options = {"preserve_rowcount": True}
    statement = _insert_missing(table, connection.dialect.name)
    return connection.execute(statement, rows, execution_options=options).rowcount


def insert_new(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> sa.RowMapping | None:
    """Insert a row whose keys are not there yet; answers it with all its columns, None when they are."""
    return connection.execute(_insert_new(table, connection.dialect.name), row).mappings().first()


def upsert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert `row`, or give the row with its primary key these values."""
    key = _key(table)
    values = {name: value for name, value in row.items() if name not in key}
    statement = _insert(table, connection.dialect.name).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values))


def upsert_all(connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
    """Insert the rows, or give those whose primary keys are there these values; all rows name the same columns."""
    if not rows:
        return
    statement = _insert(table, connection.dialect.name)
    key = _key(table)
    values = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values), rows)


def delete_some(connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool], limit: int) -> int:
    """Delete up to `limit` rows for which the condition holds; answers how many were found.

    What another process deletes at the same moment counts, so that 0 means that none is left.
    """
    key = list(table.primary_key)
    found = connection.execute(sa.select(*key).where(condition).limit(limit)).all()
    if found:
        # One by one: SQLite reads the whole table for a list of keys that have several columns.
        same = [column == sa.bindparam(f"key_{place}") for place, column in enumerate(key)]
        rows = [{f"key_{place}": value for place, value in enumerate(row)} for row in found]
        connection.execute(table.delete().where(*same), rows)
    return len(found)


def add_up(
    connection: sa.Connection, table: sa.Table, rows: Rows, sums: Sequence[str], *, first: str = "", last: str = ""
) -> None:
    """Insert the rows, or add their `sums` to the rows that are there.

    Of instants, where there are any, the earliest `first` and the latest `last` stay; None says nothing.
    """
    if not rows:
        return
    statement = _insert(table, connection.dialect.name)
    new = statement.excluded
    values: dict[str, Any] = {name: table.c[name] + new[name] for name in sums}
    if first:
        values[first] = sa.func.coalesce(table.c[first], new[first])
    if last:
        values[last] = sa.func.coalesce(new[last], table.c[last])
    connection.execute(statement.on_conflict_do_update(index_elements=_key(table), set_=values), rows)


def raise_and_add(connection: sa.Connection, table: sa.Table, rows: Rows, column: str) -> None:
    """Raise `column` of each row to at least `known`, then add `added`; a row that is not there had nothing."""
    if not rows:
        return
    statement = _insert(table, connection.dialect.name)
    known = sa.bindparam("known", type_=sa.BigInteger)
    least = sa.case((table.c[column] < known, known), else_=table.c[column])
    values = {column: least + sa.bindparam("added", type_=sa.BigInteger)}
    complete = [{**row, column: row["known"] + row["added"]} for row in rows]
    connection.execute(statement.on_conflict_do_update(index_elements=_key(table), set_=values), complete)


def _key(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _insert(table: sa.Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def _insert_new(table: sa.Table, dialect: str) -> ReturningInsert[Any]:
    return _insert(table, dialect).on_conflict_do_nothing().returning(*table.c)


@cache
def _insert_missing(table: sa.Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Made once: making a statement costs more than running it does."""
    return _insert(table, dialect).on_conflict_do_nothing()
