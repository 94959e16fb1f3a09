"""The one place where parts are put together: settings -> storage -> features -> ASGI application.

Nothing below this module reads settings, and nothing is global: what a part needs comes through its constructor.
"""

import asyncio
import ctypes
import hmac
import multiprocessing
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from entrepot.access.api_scopes import ApiScope, parse_api_scopes
from entrepot.access.destinations import Destinations
from entrepot.access.keys import Keys
from entrepot.access.workloads import ClaimPattern, Workload
from entrepot.accounts.answers import Answers
from entrepot.accounts.api_keys import ADMIN_LIMITED, ApiKeys
from entrepot.accounts.audit import AuditLog
from entrepot.accounts.authentication import Authenticator
from entrepot.accounts.deliveries import Deliveries
from entrepot.accounts.directory import Directory
from entrepot.accounts.events import Events
from entrepot.accounts.explanation import Explanations
from entrepot.accounts.issuers import Issuer, is_safe_url
from entrepot.accounts.key_rates import KeyRates
from entrepot.accounts.leaks import LeakedSecrets
from entrepot.accounts.limits import Limiter
from entrepot.accounts.plans import Plans
from entrepot.accounts.rechecks import Rechecks
from entrepot.accounts.service import Accounts
from entrepot.accounts.signing import SigningKeys
from entrepot.accounts.throttle import Throttle
from entrepot.accounts.tokens import Tokens
from entrepot.accounts.upkeep import Retention, Upkeep
from entrepot.accounts.usage import UsageCounter
from entrepot.accounts.usage_reports import UsageReports
from entrepot.accounts.webhooks import Webhooks
from entrepot.accounts.workloads import Workloads
from entrepot.errors import GlobInvalid, RequestInvalid, SettingsInvalid
from entrepot.logs import configure_logs
from entrepot.registry.garbage import GarbageCollector
from entrepot.registry.policies import Policies
from entrepot.registry.service import Registry
from entrepot.registry.uploads import Uploads
from entrepot.replication.pull_through import PullThrough
from entrepot.replication.replications import Replications
from entrepot.replication.rulebook import Rulebook
from entrepot.replication.runs import RunLimits, Runs
from entrepot.replication.sources import Sources
from entrepot.replication.spools import Spools
from entrepot.settings import (
    MIN_SECRET_KEY_CHARACTERS,
    LogFormat,
    LogLevel,
    OidcIssuer,
    OidcWorkload,
    Settings,
    load_settings,
)
from entrepot.storage.blobs import BlobStore, StoreOptions
from entrepot.storage.clock import utc_now
from entrepot.storage.counters import Counters, CounterStore
from entrepot.storage.database import Database
from entrepot.storage.database_counters import DatabaseCounters
from entrepot.storage.signals import Signals

if TYPE_CHECKING:
    from entrepot.accounts.scanners import Scanner
    from entrepot.storage.redis_wire import RedisWire
    from entrepot.web.api.services import Services
    from entrepot.web.asgi import App
    from entrepot.web.front import Front
    from entrepot.web.oci.pull import Redirects
    from entrepot.web.replication_metrics import ReplicationMetrics

_PUBLIC_URL = "public_url"
_COUNTING_SPACE = "counting_space"
# Tallies in memory: four for each account that pulls; two for each guess; two for each API key with a rate.
_LIMITED, _THROTTLED, _RATED = 40_000, 40_000, 2_000
_SIGNING_SINCE = "signing_keys_since"
_FINGERPRINT = "secret_key_fingerprint"
TOKEN_PATH = "/token"  # noqa: S105 - a path


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a command or a server process works with."""

    settings: Settings
    database: Database
    blobs: BlobStore
    signals: Signals
    registry: Registry
    uploads: Uploads
    plans: Plans
    accounts: Accounts
    api_keys: ApiKeys
    workloads: Workloads
    answers: Answers
    key_rates: KeyRates
    authenticator: Authenticator
    throttle: Throttle
    explanations: Explanations
    tokens: Tokens
    usage: UsageCounter
    limiter: Limiter
    reports: UsageReports
    audit: AuditLog
    events: Events
    webhooks: Webhooks
    deliveries: Deliveries
    upkeep: Upkeep
    leaks: LeakedSecrets
    rulebook: Rulebook
    runs: Runs
    replications: Replications
    pulls: PullThrough
    garbage: GarbageCollector

    async def start(self) -> None:
        """Begin to count what is served, on the running loop."""
        self.usage.start()
        self.limiter.start()
        self.throttle.start()
        self.api_keys.start()
        self.key_rates.start()
        self.pulls.start()

    async def stop(self) -> None:
        """Write down and share what was counted, and end."""
        await self.pulls.stop()
        await self.usage.stop()
        await self.limiter.stop()
        await self.throttle.stop()
        await self.api_keys.stop()
        await self.key_rates.stop()

    def remember_public_url(self) -> None:
        """Note by which address this server is reached, for commands that were not told."""
        self.database.remember(_PUBLIC_URL, self.settings.effective_public_url)

    def find_public_url(self) -> str:
        """The address by which clients reach the server: as set, else as the last that served had it."""
        return self.settings.public_url or self.database.recall(_PUBLIC_URL) or self.settings.effective_public_url


@contextmanager
def opened_parts(settings: Settings) -> Iterator[Parts]:
    """The parts, on a database that has this version's schema; closed at the end."""
    parts = build_parts(settings)
    try:
        yield parts
    finally:
        close_parts(parts)


def build_parts(settings: Settings) -> Parts:
    """The parts, listening for changes of other processes. Raises SettingsInvalid or DatabaseUnavailable."""
    prepare_folder(settings.data)
    database = open_database(settings)
    if database.is_embedded:
        database.migrate()
    else:
        database.verify_migrated()
    keys = _read_keys(settings, database)
    signals = Signals(database, utc_now, wire=_open_wire(settings), outage_seconds=settings.database.outage_seconds)
    blobs = open_storage(settings)
    limit = settings.limits.blob_bytes
    grace = timedelta(seconds=settings.gc.grace_seconds)
    registry = Registry(
        database, blobs, signals, utc_now, max_blob_bytes=limit, grace=grace, policies=_read_policies(settings)
    )
    uploads = Uploads(database, blobs, registry, utc_now, max_blob_bytes=limit)
    rulebook = Rulebook(database, signals, utc_now)
    runs = Runs(database, signals, rulebook, utc_now, _read_run_limits(settings))
    directory = Directory(database, signals)
    tokens = Tokens(_read_signing_keys(database, keys), utc_now, service=settings.registry_host)
    api_keys = ApiKeys(database, signals, utc_now, keys)
    destinations = Destinations(settings.webhooks.networks, settings.webhooks.plain_http)
    webhooks = Webhooks(database, utc_now, keys, destinations)
    rechecks = Rechecks()
    limiter = Limiter(database, _open_counters(settings, database, capacity=_LIMITED), rechecks)
    throttle = _open_throttle(settings, database, keys)
    sources = Sources()
    replications = Replications(
        database,
        runs,
        rulebook,
        registry,
        uploads,
        utc_now,
        open_source=sources.open,
        host=settings.registry_host,
    )
    parts = Parts(
        settings=settings,
        database=database,
        blobs=blobs,
        signals=signals,
        registry=registry,
        uploads=uploads,
        plans=Plans(database, signals, utc_now),
        accounts=Accounts(database, signals, utc_now, keys),
        api_keys=api_keys,
        key_rates=KeyRates(_open_counters(settings, database, capacity=_RATED)),
        workloads=Workloads(database, utc_now, api_keys, _read_issuers(settings)),
        answers=Answers(database, utc_now),
        authenticator=Authenticator(directory, tokens, keys, utc_now, throttle, service=settings.registry_host),
        throttle=throttle,
        explanations=Explanations(directory, database, utc_now),
        tokens=tokens,
        usage=UsageCounter(database, rechecks, limiter),
        limiter=limiter,
        reports=UsageReports(database),
        audit=AuditLog(database, utc_now),
        events=Events(database),
        webhooks=webhooks,
        deliveries=Deliveries(database, webhooks, utc_now, destinations),
        upkeep=Upkeep(database, utc_now, _read_retention(settings)),
        leaks=LeakedSecrets(signals, utc_now, keys, service=settings.registry_host),
        rulebook=rulebook,
        runs=runs,
        replications=replications,
        pulls=PullThrough(
            database,
            signals,
            rulebook,
            runs,
            replications,
            registry,
            uploads,
            utc_now,
            open_source=sources.open,
            spools=Spools(settings.data / "arriving"),
        ),
        garbage=GarbageCollector(database, blobs, signals, utc_now, grace=grace, untagged=settings.gc.untagged),
    )
    signals.start()
    return parts


def open_database(settings: Settings) -> Database:
    """The database, whatever its schema. Raises SettingsInvalid."""
    return Database(settings.effective_database_url, connections=settings.database.connections)


def open_storage(settings: Settings) -> BlobStore:
    """Blob storage. Raises SettingsInvalid."""
    options = StoreOptions(
        endpoint=settings.storage.endpoint,
        public_endpoint=settings.storage.public_endpoint,
        region=settings.storage.region,
        stall_seconds=settings.storage.stall_seconds,
    )
    return BlobStore(settings.effective_storage_url, options)


def _read_keys(settings: Settings, database: Database) -> Keys:
    """The keys of this installation. Raises SettingsInvalid when its database belongs to others."""
    secret_key = read_secret_key(settings)
    earlier, leaked = settings.earlier_keys, settings.leaked_keys
    verify_same_key(database, secret_key, [*earlier, *leaked])
    return Keys.derive(secret_key, earlier=earlier, leaked=leaked)


def _read_signing_keys(database: Database, keys: Keys) -> SigningKeys:
    """What signs tokens; its periods count from when the first process that knew of them started."""
    since = database.agree_on(_SIGNING_SINCE, str(int(utc_now().timestamp())))
    return SigningKeys(keys, float(since))


def _open_wire(settings: Settings) -> "RedisWire | None":
    url = settings.redis_url.get_secret_value()
    if not url:
        return None
    from entrepot.storage.redis_wire import RedisWire

    return RedisWire(url)


def _open_throttle(settings: Settings, database: Database, keys: Keys) -> Throttle:
    per_site, per_account = settings.throttle.failures_per_site, settings.throttle.failures_per_account
    # What is far from a budget is not worth an exchange.
    least = max(1, min(per_site or per_account, per_account or per_site) // 16)
    counters = _open_counters(settings, database, capacity=_THROTTLED, least=least)
    return Throttle(counters, keys.secrets, per_site=per_site, per_account=per_account)


def _open_counters(settings: Settings, database: Database, *, capacity: int, least: int = 1) -> Counters:
    stores: list[CounterStore] = [DatabaseCounters(database)]
    if url := settings.redis_url.get_secret_value():
        from entrepot.storage.redis_counters import RedisCounters

        # Accounts are numbered by their database, which may not be the only one that counts in this Redis.
        space = database.agree_on(_COUNTING_SPACE, secrets.token_hex(8))
        stores.insert(0, RedisCounters(url, space=space))
    return Counters(stores, capacity=capacity, least=least)


def _read_policies(settings: Settings) -> Policies:
    wanted = settings.repositories
    try:
        return Policies.parse(wanted.immutable_tags, wanted.quotas, wanted.sparse_manifests)
    except (GlobInvalid, ValueError) as error:
        raise SettingsInvalid(f"ENTREPOT_REPOSITORIES__...: {error}") from error


def _read_issuers(settings: Settings) -> list[Issuer]:
    """Who vouches for workloads. Raises SettingsInvalid."""
    names = [workload.name for issuer in settings.oidc.issuers for workload in issuer.workloads]
    if len(set(names)) < len(names):
        raise SettingsInvalid("ENTREPOT_OIDC__ISSUERS: two workloads have the same name")
    return [_read_issuer(wanted) for wanted in settings.oidc.issuers]


def _read_issuer(wanted: OidcIssuer) -> Issuer:
    for url in filter(None, (wanted.url, wanted.keys_url)):
        if not is_safe_url(url):
            raise SettingsInvalid(f"ENTREPOT_OIDC__ISSUERS: {url!r}: use https://HOST[:PORT][/PATH]")
    return Issuer(
        url=wanted.url,
        audience=wanted.audience,
        workloads=tuple(_read_workload(one) for one in wanted.workloads),
        keys_url=wanted.keys_url,
        ca_file=wanted.ca_file,
        token_file=wanted.token_file,
    )


def _read_workload(wanted: OidcWorkload) -> Workload:
    try:
        workload = Workload(
            name=wanted.name,
            claims=tuple(ClaimPattern.parse(claim, text) for claim, text in wanted.claims.items()),
            scopes=parse_api_scopes(wanted.scopes),
            plans=None if wanted.plans is None else frozenset(wanted.plans),
            own_accounts_only=wanted.own_accounts_only,
            requests_per_minute=wanted.requests_per_minute,
            lifetime=timedelta(seconds=wanted.lifetime_seconds),
        )
    except (GlobInvalid, RequestInvalid) as error:
        raise SettingsInvalid(f"ENTREPOT_OIDC__ISSUERS, workload {wanted.name}: {error}") from error
    if ApiScope.ADMIN in workload.scopes and (workload.own_accounts_only or workload.plans is not None):
        raise SettingsInvalid(f"ENTREPOT_OIDC__ISSUERS, workload {wanted.name}: {ADMIN_LIMITED}")
    return workload


def _read_retention(settings: Settings) -> Retention:
    kept = settings.retention
    return Retention(
        hourly_usage=timedelta(days=kept.hourly_usage_days),
        daily_usage=timedelta(days=kept.daily_usage_days),
        networks=timedelta(days=kept.networks_days),
        refusals=timedelta(days=kept.refusals_days),
        audit=timedelta(days=kept.audit_days),
        events=timedelta(days=kept.events_days),
    )


def _read_run_limits(settings: Settings) -> RunLimits:
    wanted = settings.replication
    return RunLimits(
        concurrency=wanted.concurrency,
        runs_per_source=wanted.runs_per_source,
        tries=wanted.tries,
        part_bytes=wanted.part_bytes,
        kept_runs=wanted.kept_runs,
        kept=timedelta(days=wanted.kept_days),
    )


def close_parts(parts: Parts) -> None:
    """Stop listening, and let go of the database."""
    parts.signals.stop()
    parts.limiter.close()
    parts.throttle.close()
    parts.key_rates.close()
    parts.database.close()


def create_app() -> "Front":
    """The ASGI application of one server process, from the settings in its environment."""
    die_with_parent()
    settings = load_settings()
    configure_logging(settings)
    return build_app(build_parts(settings))


def load_faces() -> None:
    """Load all that `build_app` needs, so that processes which are forked from this one need not."""
    for name in (
        "api.services",
        "front",
        "later",
        "listening",
        "oci.face",
        "ops",
        "refusals",
        "token.face",
        "visitors",
    ):
        import_module(f"entrepot.web.{name}")


def build_app(parts: Parts) -> "Front":
    """The ASGI application over `parts`, which it closes when it stops."""
    # Loaded here, so that commands which serve nothing do not wait for it.
    from entrepot.web.api.services import Services
    from entrepot.web.front import Front
    from entrepot.web.later import Later
    from entrepot.web.listening import give_up_unread
    from entrepot.web.oci.face import OciFace
    from entrepot.web.ops import OpsFace
    from entrepot.web.refusals import Refusals
    from entrepot.web.replication_metrics import ReplicationMetrics
    from entrepot.web.token.face import JWKS_PATH, TokenFace
    from entrepot.web.visitors import Visitors

    settings = parts.settings
    visitors = Visitors(settings.trusted_proxies)
    refusals = Refusals(parts.usage, settings.help_url)
    oci: App = OciFace(
        parts.registry,
        parts.uploads,
        parts.authenticator,
        parts.usage,
        parts.limiter,
        visitors,
        refusals,
        parts.pulls,
        realm=settings.effective_public_url + TOKEN_PATH,
        service=settings.registry_host,
        stall_seconds=settings.limits.stall_seconds,
        redirects=_read_redirects(parts),
        max_blob_bytes=settings.limits.blob_bytes,
        chunk_bytes_min=settings.limits.chunk_bytes_min,
    )
    token: App = TokenFace(
        parts.authenticator,
        parts.tokens,
        parts.usage,
        visitors,
        refusals,
        service=settings.registry_host,
        stall_seconds=settings.limits.stall_seconds,
    )
    services = Services(
        accounts=parts.accounts,
        api_keys=parts.api_keys,
        workloads=parts.workloads,
        answers=parts.answers,
        key_rates=parts.key_rates,
        plans=parts.plans,
        reports=parts.reports,
        audit=parts.audit,
        events=parts.events,
        webhooks=parts.webhooks,
        throttle=parts.throttle,
        leaks=parts.leaks,
        scanner=_open_scanner(settings),
        registry=parts.registry,
        rulebook=parts.rulebook,
        runs=parts.runs,
        public_url=settings.effective_public_url,
        trusted_proxies=settings.trusted_proxies,
    )
    metrics = ReplicationMetrics(parts.runs, utc_now)
    ops: App = OpsFace(
        lambda: _collect_metrics(metrics),
        {"database": parts.database.verify_usable, "storage": parts.blobs.verify_writable},
    )
    faces: list[tuple[str, App]] = [
        ("/v2", oci),
        ("/v2/", oci),
        (TOKEN_PATH, token),
        (JWKS_PATH, token),
        ("/api/", Later(lambda: _create_api(services))),
        ("/livez", ops),
        ("/readyz", ops),
        ("/metrics", ops),
    ]

    tasks: set[asyncio.Task[None]] = set()

    async def starting() -> None:
        await parts.start()
        tasks.add(asyncio.create_task(give_up_unread(settings.limits.stall_seconds)))

    async def stopping() -> None:
        for task in tasks:
            task.cancel()
        await parts.stop()
        close_parts(parts)

    return Front(faces, starting=starting, stopping=stopping)


def _create_api(services: "Services") -> "App":
    # Its framework takes as long to load as all the rest, and much of the memory; servers that only serve pulls need
    # neither.
    from entrepot.web.api.app import create_api

    return create_api(services)


def _open_scanner(settings: Settings) -> "Scanner | None":
    from entrepot.accounts.scanners import Scanner

    wanted = settings.secret_scanning
    return Scanner(wanted.keys_url, wanted.public_keys) if wanted.enabled else None


def _read_redirects(parts: Parts) -> "Redirects | None":
    from entrepot.web.oci.pull import Redirects

    wanted = parts.settings.storage
    if not (wanted.redirect and parts.blobs.can_sign):
        return None
    lifetime = timedelta(seconds=wanted.redirect_seconds)
    return Redirects(lifetime, exempt=wanted.redirect_except, trusted_proxies=parts.settings.trusted_proxies)


async def _collect_metrics(replication: "ReplicationMetrics") -> CollectorRegistry:
    """The metrics of every server process where there are several, of this one else; and those in the database."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    await replication.refresh()
    registry.register(replication)
    return registry


def configure_logging(settings: Settings, *, is_command: bool = False) -> None:
    """Log as the settings say; a command that ends tells what it did itself, so it logs only what is wrong."""
    formats = {LogFormat.AUTO: None, LogFormat.JSON: True, LogFormat.CONSOLE: False}
    level = LogLevel.WARNING if is_command and settings.log.level == LogLevel.INFO else settings.log.level
    configure_logs(is_json=formats[settings.log.format], level=level)


def prepare_folder(data: Path) -> None:
    """Make the data folder, readable for its owner alone. Raises SettingsInvalid."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid(f"the data folder {data} cannot be made: {error.strerror}") from error


def read_secret_key(settings: Settings) -> bytes:
    """The secret that everything keyed comes from; made once, when no setting gives it. Raises SettingsInvalid."""
    given = settings.secret_key.get_secret_value()
    if given:
        return given.encode()
    path = settings.data / "secret.key"
    try:
        if not path.exists():
            _make_secret_key(path)
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"the secret key {path} cannot be read: {error}") from error
    if len(found) < MIN_SECRET_KEY_CHARACTERS:
        raise SettingsInvalid(
            f"the secret key {path} has {len(found)} characters instead of at least {MIN_SECRET_KEY_CHARACTERS}; "
            "restore it from a backup, or remove it to begin anew, which voids every credential"
        )
    return found.encode()


def _make_secret_key(path: Path) -> None:
    # Written aside and linked, so that of two processes one wins and neither reads half a key.
    aside = path.with_name(f"secret.key.{secrets.token_hex(8)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def verify_same_key(database: Database, secret_key: bytes, others: Sequence[bytes] = ()) -> None:
    """Raises SettingsInvalid unless this is the key that the installation has: another one voids everything.

    It may take the place of one of `others`.
    """
    fingerprint, *replaced = map(_fingerprint, (secret_key, *others))
    found = database.agree_on(_FINGERPRINT, fingerprint)
    if found == fingerprint:
        return
    if found not in replaced:
        raise SettingsInvalid(
            f"the database {database} belongs to another secret key, so that no credential in it could be used; "
            "set ENTREPOT_SECRET_KEY (or _FILE) to the same value for every process; to replace a key, name the old "
            "one in ENTREPOT_EARLIER_SECRET_KEYS"
        )
    database.remember(_FINGERPRINT, fingerprint)


def _fingerprint(secret_key: bytes) -> str:
    return hmac.digest(secret_key, b"entrepot secret key fingerprint", "sha256").hex()


def die_with_parent() -> None:
    """Ask Linux to end this process with its supervisor: one killed with -9 must not leave its port taken.

    Raises SystemExit when the supervisor is gone already: the kernel tells only of a death that is still to come.
    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    # A fork inherits the supervisor's handlers, which would swallow the signal until this process has its own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid != os.getppid():
        raise SystemExit(1)
