"""API keys: what guards the platform API."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import sqlalchemy as sa
import structlog

from entrepot.access.api_scopes import ApiScope, covers
from entrepot.access.keys import Keys
from entrepot.access.plans import parse_name
from entrepot.access.secrets import API_KEY_PREFIX, Secret, is_same_hash
from entrepot.access.visitors import Address
from entrepot.accounts import key_records, records
from entrepot.accounts.answers import Once, once_only
from entrepot.accounts.audit import Actor, note
from entrepot.accounts.reach import AccountReach
from entrepot.errors import (
    ApiKeyDenied,
    ApiKeyExists,
    ApiKeyInvalid,
    ApiKeyUnknown,
    Conflict,
    EntrepotError,
    PlanMissing,
    RequestInvalid,
)
from entrepot.storage.cache import Cache
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

Network = IPv4Network | IPv6Network

MAX_OVERLAP = timedelta(days=30)
DEFAULT_OVERLAP = timedelta(days=1)
MAX_REQUESTS_PER_MINUTE = 1_000_000
_MAX_NETWORKS = 64
_CACHED = 1_000
_FLUSH_SECONDS = 1.0
# A key's last use is written down to the minute.
_USE = timedelta(minutes=1)
ADMIN_LIMITED = "a key with the scope admin can make any other, so plans and own_accounts_only would not limit it"
# One sentence for a key that nobody has and for one that is used from elsewhere, so that a thief learns nothing.
_UNKNOWN = "this API key is not known here, or not for use from this address"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key; None does not restrict. `last_used_at` is to the minute.

    The secret before the last rotation holds until `previous_until`. `workload` is the program that got the key by a
    token of its platform.
    """

    id: str
    name: str
    scopes: frozenset[ApiScope]
    plans: frozenset[str] | None
    created_at: datetime
    revoked_at: datetime | None = None
    networks: tuple[Network, ...] | None = None
    expires_at: datetime | None = None
    requests_per_minute: int | None = None
    own_accounts_only: bool = False
    last_used_at: datetime | None = None
    previous_until: datetime | None = None
    workload: str | None = None

    @property
    def owner(self) -> str:
        """In whose name it creates accounts: its own, or that of the workload whatever key it has at the moment."""
        return self.name if self.workload is None else f"oidc:{self.workload}"

    @property
    def reach(self) -> AccountReach:
        """The accounts that it may see and change."""
        return AccountReach(self.plans, self.owner if self.own_accounts_only else None)

    def verify_scope(self, needed: ApiScope) -> None:
        """Raises ApiKeyDenied unless the key has the scope."""
        if not covers(self.scopes, needed):
            raise ApiKeyDenied(f"API key '{self.name}' lacks the scope {needed}; ask for a key that has it")

    def verify_plan(self, plan: str) -> None:
        """Raises ApiKeyDenied unless the key may put accounts on the plan."""
        if not self.may_touch(plan):
            raise ApiKeyDenied(f"API key '{self.name}' is not for plan {plan[:80]!r}; ask for a key that is")

    def may_touch(self, plan: str) -> bool:
        """Whether the key may have to do with the plan."""
        return self.plans is None or plan in self.plans

    def verify_may_give(self, other: "ApiKey") -> None:
        """Raises ApiKeyDenied where a key that an administrator makes would hold elsewhere, or longer, than its own."""
        if self.networks is not None and not _are_within(other.networks, self.networks):
            raise ApiKeyDenied(f"API key '{self.name}' gives no key other networks than it has itself")
        if self.expires_at is not None and (other.expires_at is None or other.expires_at > self.expires_at):
            raise ApiKeyDenied(f"API key '{self.name}' gives no key more time than it has itself")


class ApiKeys:
    """Every API key. A secret is shown when its key is made, and never again."""

    def __init__(self, database: Database, signals: Signals, clock: Clock, keys: Keys) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock
        self._hash_key = keys.secrets
        self._hash_keys = keys.hashing
        self._cache: Cache[bytes, _Held] = Cache(_CACHED, signals.is_current)
        signals.listen("api_key", lambda _key: self._cache.clear())
        # Uses since the last flush, and those that are written down, by id.
        self._uses: dict[str, datetime] = {}
        self._written: dict[str, datetime] = {}
        self._task: asyncio.Task[None] | None = None

    async def create(
        self,
        name: str,
        scopes: frozenset[ApiScope],
        plans: frozenset[str] | None,
        actor: Actor,
        *,
        networks: Sequence[str] | None = None,
        expires_at: datetime | None = None,
        requests_per_minute: int | None = None,
        own_accounts_only: bool = False,
        giver: ApiKey | None = None,
        once: Once[tuple[ApiKey, Secret]] | None = None,
    ) -> tuple[ApiKey, Secret]:
        """A new key and its secret. `giver` is the key that asks for it.

        Raises ApiKeyExists, PlanMissing, PlanInvalid (for its name), RequestInvalid, or ApiKeyDenied where it might do
        what its giver may not.
        """
        now = self._clock()
        if expires_at is not None and expires_at <= now:
            raise RequestInvalid("expires_at lies in the past")
        if requests_per_minute is not None and not 1 <= requests_per_minute <= MAX_REQUESTS_PER_MINUTE:
            raise RequestInvalid(f"requests_per_minute must be 1 to {MAX_REQUESTS_PER_MINUTE}")
        if ApiScope.ADMIN in scopes and (own_accounts_only or plans is not None):
            raise RequestInvalid(ADMIN_LIMITED)
        key = ApiKey(
            id=str(uuid.uuid4()),
            name=parse_name(name),
            scopes=scopes,
            plans=plans,
            created_at=now,
            networks=None if networks is None else parse_networks(networks),
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            own_accounts_only=own_accounts_only,
        )
        if giver is not None:
            giver.verify_may_give(key)
        secret = Secret.generate(API_KEY_PREFIX)

        def work(connection: sa.Connection) -> tuple[ApiKey, Secret]:
            for plan in sorted(plans or ()):
                if records.find_plan(connection, plan) is None:
                    raise PlanMissing(f"there is no plan {plan[:80]!r}; apply it first: entrepot plan apply FILE")
            self.add(connection, key, secret, actor)
            return key, secret

        return await self._database.write(once_only(work, once, now))

    def add(
        self,
        connection: sa.Connection,
        key: ApiKey,
        secret: Secret,
        actor: Actor,
        *,
        token_hash: bytes | None = None,
        **detail: Any,
    ) -> None:
        """Keep a key with this secret, which a workload got by the token of this hash. Raises ApiKeyExists."""
        row = {
            "id": key.id,
            "name": key.name,
            "secret_hash": secret.hash(self._hash_key),
            "scopes": sorted(scope.value for scope in key.scopes),
            "plans": None if key.plans is None else sorted(key.plans),
            "created_at": key.created_at,
            "revoked_at": None,
            "networks": None if key.networks is None else [str(network) for network in key.networks],
            "expires_at": key.expires_at,
            "requests_per_minute": key.requests_per_minute,
            "own_accounts_only": key.own_accounts_only,
            "workload": key.workload,
            "token_hash": token_hash,
        }
        if not key_records.insert_key(connection, row):
            raise ApiKeyExists(f"there is an API key {key.name!r} already; revoked ones keep their name, too")
        note(connection, actor, "api_key.created", key.name, key.created_at, **_describe(key), **detail)

    async def list_keys(self) -> list[ApiKey]:
        """Every key, revoked ones included, by name."""
        return [_read(row) for row in await self._database.read(key_records.list_keys)]

    async def rotate(
        self, name: str, overlap: timedelta, actor: Actor, *, giver: ApiKey | None = None
    ) -> tuple[ApiKey, Secret]:
        """A new secret for a key; the one that it had holds until the overlap has passed.

        Raises ApiKeyUnknown, ApiKeyDenied where the key may do what its giver may not, RequestInvalid, or Conflict for
        a key that has ended, is a workload's, or whose earlier secret still holds: a rotation locks nobody out.
        """
        if not timedelta(0) <= overlap <= MAX_OVERLAP:
            raise RequestInvalid(f"the overlap must be 0 to {int(MAX_OVERLAP.total_seconds())} seconds")
        secret = Secret.generate(API_KEY_PREFIX)

        def work(connection: sa.Connection) -> tuple[ApiKey, Secret]:
            now = self._clock()
            row = _get_row(connection, name)
            key = _read(row)
            if giver is not None:
                giver.verify_may_give(key)
            _verify_rotatable(key, overlap, now)
            rotated = replace(key, previous_until=now + overlap if overlap else None)
            key_records.update_key(
                connection,
                key.id,
                secret_hash=secret.hash(self._hash_key),
                previous_hash=row["secret_hash"] if overlap else None,
                previous_until=rotated.previous_until,
            )
            note(connection, actor, "api_key.rotated", name, now, overlap_seconds=int(overlap.total_seconds()))
            publish(connection, "api_key", key.id, now)
            return rotated, secret

        return await self._signals.commit(work)

    async def revoke(self, name: str, actor: Actor) -> None:
        """Let a key be refused from now on. Raises ApiKeyUnknown."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            row = _get_row(connection, name)
            if row["revoked_at"] is None:
                key_records.update_key(connection, row["id"], revoked_at=now)
                note(connection, actor, "api_key.revoked", name, now, **_describe(_read(row)))
                publish(connection, "api_key", row["id"], now)

        await self._signals.commit(work)

    async def authenticate(self, secret: Secret, address: Address | None) -> ApiKey:
        """The key with this secret, used from this address. Raises ApiKeyInvalid.

        Only who has the secret and is where it may be used from is told that the key was revoked or has expired.
        """
        if not secret.is_wellformed(API_KEY_PREFIX):
            raise ApiKeyInvalid("this is not an API key of ours; send: Authorization: Bearer entk_...")
        held = None
        for hash_key in self._hash_keys:
            held = held or await self._find(secret.hash(hash_key))
        if held is None:
            raise ApiKeyInvalid(_UNKNOWN)
        key, now = held.key, self._clock()
        if key.networks is not None and not _is_from(address, key.networks):
            log.warning("api_key_from_elsewhere", api_key=key.name, address=str(address))
            raise ApiKeyInvalid(_UNKNOWN)
        if key.revoked_at is not None:
            raise ApiKeyInvalid(f"API key '{key.name}' was revoked on {key.revoked_at:%Y-%m-%d}")
        if key.expires_at is not None and key.expires_at <= now:
            raise ApiKeyInvalid(f"API key '{key.name}' expired on {key.expires_at:%Y-%m-%d %H:%M} UTC")
        if held.until is not None and held.until <= now:
            raise ApiKeyInvalid(
                f"API key '{key.name}' was rotated; this secret held until {held.until:%Y-%m-%d %H:%M} UTC"
            )
        self._note_use(key, now)
        return key

    async def _find(self, hashed: bytes) -> "_Held | None":
        held = self._cache.find(hashed)
        if held is None:
            mark = self._cache.mark()
            row = await self._database.read(lambda connection: key_records.find_key_by_hash(connection, hashed))
            if row is None:
                return None
            is_previous = not is_same_hash(bytes(row["secret_hash"]), hashed)
            held = _Held(_read(row), row["previous_until"] if is_previous else None)
            self._cache.keep(hashed, held, mark)
        return held

    def start(self) -> None:
        """Begin to write down when keys were used, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="api-key-uses")

    async def stop(self) -> None:
        """Write down what is left, and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    async def flush(self) -> None:
        """Write down when keys were used; what cannot be written now stays for the next time."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            await self._database.write(lambda connection: key_records.note_uses(connection, uses))
        except EntrepotError as error:
            log.warning("api_key_uses_not_written", error=str(error))
            self._uses = uses | self._uses

    def _note_use(self, key: ApiKey, now: datetime) -> None:
        last = self._written.get(key.id)
        # A clock that was put back must not keep later uses from being seen.
        if last is None or not timedelta(0) <= now - last < _USE:
            if len(self._written) > _CACHED:
                self._written.clear()
            self._written[key.id] = self._uses[key.id] = now

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()


@dataclass(frozen=True, slots=True)
class _Held:
    """A key as one of its secrets finds it; a secret from before the last rotation holds `until` then."""

    key: ApiKey
    until: datetime | None


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks such as `10.0.0.0/8`. Raises RequestInvalid."""
    if not 1 <= len(texts) <= _MAX_NETWORKS:
        raise RequestInvalid(f"{len(texts)} networks; use 1 to {_MAX_NETWORKS}, or leave them out for any")
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            raise RequestInvalid(
                f"network {text[:50]!r}: use an address and the bits that count, the others 0, such as 10.0.0.0/8"
            ) from error
    return tuple(networks)


def _is_from(address: Address | None, networks: tuple[Network, ...]) -> bool:
    return address is not None and any(address in network for network in networks)


def _are_within(inner: tuple[Network, ...] | None, outer: tuple[Network, ...]) -> bool:
    return inner is not None and all(any(_is_subnet(one, other) for other in outer) for one in inner)


def _is_subnet(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _get_row(connection: sa.Connection, name: str) -> key_records.Row:
    row = key_records.find_key(connection, name)
    if row is None:
        raise ApiKeyUnknown(f"there is no API key {name[:80]!r}; see: entrepot api-key list")
    return row


def _verify_rotatable(key: ApiKey, overlap: timedelta, now: datetime) -> None:
    if key.workload is not None:
        raise Conflict(f"API key '{key.name}' is a workload's, which gets a new one by itself")
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise Conflict(f"API key '{key.name}' was revoked or has expired; make another")
    if overlap and key.previous_until is not None and key.previous_until > now:
        raise Conflict(
            f"API key '{key.name}' was rotated before, and its earlier secret holds until "
            f"{key.previous_until:%Y-%m-%d %H:%M} UTC; wait, or rotate with an overlap of 0, which ends both at once"
        )


def _describe(key: ApiKey) -> dict[str, Any]:
    """What a key may do, for the audit log."""
    detail: dict[str, Any] = {
        "scopes": sorted(scope.value for scope in key.scopes),
        "plans": None if key.plans is None else sorted(key.plans),
    }
    if key.networks is not None:
        detail["networks"] = [str(network) for network in key.networks]
    if key.expires_at is not None:
        detail["expires_at"] = key.expires_at.isoformat()
    if key.requests_per_minute is not None:
        detail["requests_per_minute"] = key.requests_per_minute
    if key.own_accounts_only:
        detail["own_accounts_only"] = True
    return detail


def _read(row: key_records.Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        scopes=frozenset(ApiScope(scope) for scope in row["scopes"]),
        plans=None if row["plans"] is None else frozenset(row["plans"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        networks=None if row["networks"] is None else tuple(ip_network(text) for text in row["networks"]),
        expires_at=row["expires_at"],
        requests_per_minute=row["requests_per_minute"],
        own_accounts_only=row["own_accounts_only"],
        last_used_at=row["last_used_at"],
        previous_until=row["previous_until"],
        workload=row["workload"],
    )
