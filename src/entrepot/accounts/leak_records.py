"""SQL of leaked secrets: one function per question."""

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from entrepot.storage.tables import accounts, api_keys, credentials

Row = sa.RowMapping

_credentials = sa.select(
    credentials.c.id, credentials.c.secret_hash, accounts.c.id.label("account_id"), accounts.c.name
)
_credentials = _credentials.join(accounts, accounts.c.id == credentials.c.account_id)


def find_credentials_by_hash(connection: sa.Connection, hashes: Collection[bytes]) -> list[Row]:
    """The credentials with these secrets, dead ones included, and whose they are."""
    return list(connection.execute(_credentials.where(credentials.c.secret_hash.in_(hashes))).mappings())


def find_credentials_by_id(connection: sa.Connection, ids: Collection[str]) -> list[Row]:
    """The credentials with these ids, dead ones included, and whose they are."""
    return list(connection.execute(_credentials.where(credentials.c.id.in_(ids))).mappings())


def revoke_credential(connection: sa.Connection, credential_id: str, now: datetime) -> bool:
    """Let a credential die now; False when it is dead already."""
    statement = credentials.update().where(
        credentials.c.id == credential_id,
        sa.or_(credentials.c.revoked_at.is_(None), credentials.c.revoked_at > now),
        sa.or_(credentials.c.expires_at.is_(None), credentials.c.expires_at > now),
    )
    return connection.execute(statement.values(revoked_at=now)).rowcount > 0


def find_api_keys_by_hash(connection: sa.Connection, hashes: Collection[bytes]) -> list[Row]:
    """The API keys with these secrets, or with these before their last rotation."""
    query = sa.select(api_keys.c.id, api_keys.c.name, api_keys.c.secret_hash, api_keys.c.previous_hash).where(
        sa.or_(api_keys.c.secret_hash.in_(hashes), api_keys.c.previous_hash.in_(hashes))
    )
    return list(connection.execute(query).mappings())


def revoke_api_key(connection: sa.Connection, key_id: str, now: datetime) -> bool:
    """Let an API key die now; False when it is dead already."""
    statement = api_keys.update().where(
        api_keys.c.id == key_id,
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )
    return connection.execute(statement.values(revoked_at=now)).rowcount > 0


def end_previous_secret(connection: sa.Connection, key_id: str, now: datetime) -> bool:
    """Let the secret that an API key had before its last rotation die now; False when it is dead already."""
    statement = api_keys.update().where(
        api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None), api_keys.c.previous_until > now
    )
    return connection.execute(statement.values(previous_until=now)).rowcount > 0
