"""API keys: what guards the platform API."""

import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from entrepot.access.api_scopes import ApiScope, covers
from entrepot.access.keys import Keys
from entrepot.access.plans import parse_name
from entrepot.access.secrets import API_KEY_PREFIX, Secret
from entrepot.accounts import records
from entrepot.accounts.audit import Actor, note
from entrepot.errors import ApiKeyDenied, ApiKeyExists, ApiKeyInvalid, ApiKeyUnknown, PlanMissing
from entrepot.storage.cache import Cache
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

_CACHED = 1_000


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key; `plans` None means any."""

    id: str
    name: str
    scopes: frozenset[ApiScope]
    plans: frozenset[str] | None
    created_at: datetime
    revoked_at: datetime | None

    def verify_scope(self, needed: ApiScope) -> None:
        """Raises ApiKeyDenied unless the key has the scope."""
        if not covers(self.scopes, needed):
            raise ApiKeyDenied(f"API key '{self.name}' lacks the scope {needed}; ask for a key that has it")

    def verify_plan(self, plan: str) -> None:
        """Raises ApiKeyDenied unless the key may put accounts on the plan."""
        if self.plans is not None and plan not in self.plans:
            raise ApiKeyDenied(f"API key '{self.name}' is not for plan {plan!r}; ask for a key that is")


class ApiKeys:
    """Every API key. A secret is shown when its key is made, and never again."""

    def __init__(self, database: Database, signals: Signals, clock: Clock, keys: Keys) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock
        self._hash_key = keys.secrets
        self._cache: Cache[bytes, ApiKey] = Cache(_CACHED, signals.is_current)
        signals.listen("api_key", lambda _key: self._cache.clear())

    async def create(
        self, name: str, scopes: frozenset[ApiScope], plans: frozenset[str] | None, actor: Actor
    ) -> tuple[ApiKey, Secret]:
        """A new key and its secret. Raises ApiKeyExists, PlanMissing or PlanInvalid (for its name)."""
        key = ApiKey(str(uuid.uuid4()), parse_name(name), scopes, plans, self._clock(), None)
        secret = Secret.generate(API_KEY_PREFIX)

        def work(connection: sa.Connection) -> None:
            for plan in sorted(plans or ()):
                if records.find_plan(connection, plan) is None:
                    raise PlanMissing(f"there is no plan {plan!r}; apply it first: entrepot plan apply FILE")
            names = sorted(scope.value for scope in scopes)
            row = {
                "id": key.id,
                "name": name,
                "secret_hash": secret.hash(self._hash_key),
                "scopes": names,
                "plans": None if plans is None else sorted(plans),
                "created_at": key.created_at,
                "revoked_at": None,
            }
            if not records.insert_api_key(connection, row):
                raise ApiKeyExists(f"there is an API key {name!r} already; revoked ones keep their name, too")
            note(connection, actor, "api_key.created", name, key.created_at, scopes=names, plans=row["plans"])

        await self._database.write(work)
        return key, secret

    async def list_keys(self) -> list[ApiKey]:
        """Every key, revoked ones included, by name."""
        return [_read(row) for row in await self._database.read(records.list_api_keys)]

    async def revoke(self, name: str, actor: Actor) -> None:
        """Let a key be refused from now on. Raises ApiKeyUnknown."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            row = records.revoke_api_key(connection, name, now)
            if row is None:
                raise ApiKeyUnknown(f"there is no API key {name[:80]!r}; see: entrepot api-key list")
            if row["revoked_at"] is None:
                note(connection, actor, "api_key.revoked", name, now)
                publish(connection, "api_key", row["id"], now)

        await self._signals.commit(work)

    async def authenticate(self, secret: Secret) -> ApiKey:
        """The key with this secret. Raises ApiKeyInvalid."""
        if not secret.is_wellformed(API_KEY_PREFIX):
            raise ApiKeyInvalid("this is not an API key of ours; send: Authorization: Bearer entk_...")
        hashed = secret.hash(self._hash_key)
        key = self._cache.find(hashed)
        if key is None:
            mark = self._cache.mark()
            row = await self._database.read(lambda connection: records.find_api_key_by_hash(connection, hashed))
            if row is None:
                raise ApiKeyInvalid("this API key is not known here")
            key = _read(row)
            self._cache.keep(hashed, key, mark)
        if key.revoked_at is not None:
            raise ApiKeyInvalid(f"API key '{key.name}' was revoked on {key.revoked_at:%Y-%m-%d}")
        return key


def _read(row: records.Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        scopes=frozenset(ApiScope(scope) for scope in row["scopes"]),
        plans=None if row["plans"] is None else frozenset(row["plans"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
