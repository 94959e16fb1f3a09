"""SQL of API keys, and of the answers that are kept for them: one function per question."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.storage.statements import insert_missing
from entrepot.storage.tables import api_keys, idempotent_answers

Row = sa.RowMapping


def insert_key(connection: sa.Connection, row: dict[str, Any]) -> bool:
    """Add an API key; False when its name is taken."""
    return insert_missing(connection, api_keys, [row]) == 1


def find_key(connection: sa.Connection, name: str) -> Row | None:
    """The API key of this name, which nobody else changes until this transaction ends."""
    query = sa.select(api_keys).where(api_keys.c.name == name).with_for_update()
    return connection.execute(query).mappings().first()


def find_key_by_hash(connection: sa.Connection, secret_hash: bytes) -> Row | None:
    """The API key with this secret, or with this one before its last rotation."""
    query = sa.select(api_keys).where(
        sa.or_(api_keys.c.secret_hash == secret_hash, api_keys.c.previous_hash == secret_hash)
    )
    return connection.execute(query).mappings().first()


def list_keys(connection: sa.Connection) -> list[Row]:
    """Every API key, by name."""
    return list(connection.execute(sa.select(api_keys).order_by(api_keys.c.name)).mappings())


def update_key(connection: sa.Connection, key_id: str, **values: Any) -> None:
    """Change an API key's columns."""
    connection.execute(api_keys.update().where(api_keys.c.id == key_id).values(**values))


def note_uses(connection: sa.Connection, uses: Mapping[str, datetime]) -> None:
    """Write down when API keys, by id, were last used."""
    for key_id, at in sorted(uses.items()):
        is_newer = sa.or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < at)
        connection.execute(api_keys.update().where(api_keys.c.id == key_id, is_newer).values(last_used_at=at))


def count_keys_of(connection: sa.Connection, workload: str, token_hash: bytes, now: datetime) -> tuple[int, int]:
    """How many keys a workload has that have not expired, and how many of them it got by one token."""
    query = sa.select(
        sa.func.count(), sa.func.count(sa.case((api_keys.c.token_hash == token_hash, 1), else_=None))
    ).where(api_keys.c.workload == workload, api_keys.c.expires_at > now)
    alive, by_token = connection.execute(query).one()
    return alive, by_token


def drop_keys_of_workloads(connection: sa.Connection, before: datetime) -> None:
    """Drop the keys that workloads got and that expired before an instant."""
    connection.execute(api_keys.delete().where(api_keys.c.workload.is_not(None), api_keys.c.expires_at < before))


def find_answer(connection: sa.Connection, api_key: str, key: str, since: datetime) -> Row | None:
    """What a request with this Idempotency-Key was answered, if not before `since`."""
    query = sa.select(idempotent_answers).where(
        idempotent_answers.c.api_key == api_key, idempotent_answers.c.key == key, idempotent_answers.c.at >= since
    )
    return connection.execute(query).mappings().first()


def drop_answer(connection: sa.Connection, api_key: str, key: str, before: datetime) -> None:
    """Forget an answer from before an instant."""
    connection.execute(
        idempotent_answers.delete().where(
            idempotent_answers.c.api_key == api_key, idempotent_answers.c.key == key, idempotent_answers.c.at < before
        )
    )


def insert_answer(connection: sa.Connection, row: dict[str, Any]) -> bool:
    """Keep an answer; False when one is kept under the same key."""
    return insert_missing(connection, idempotent_answers, [row]) == 1


def erase_answers(connection: sa.Connection, account: str) -> None:
    """Empty the answers that tell of an account."""
    connection.execute(idempotent_answers.update().where(idempotent_answers.c.account == account).values(body={}))
