"""The one place where parts are put together: settings -> storage -> features -> ASGI application.

Nothing below this module reads settings, and nothing is global: what a part needs comes through its constructor.
"""

import asyncio
import ctypes
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from entrepot.access.keys import Keys
from entrepot.accounts.api_keys import ApiKeys
from entrepot.accounts.audit import AuditLog
from entrepot.accounts.authentication import Authenticator
from entrepot.accounts.directory import Directory
from entrepot.accounts.plans import Plans
from entrepot.accounts.service import Accounts
from entrepot.accounts.tokens import Tokens
from entrepot.accounts.usage import UsageCounter
from entrepot.errors import DatabaseUnavailable, SettingsInvalid
from entrepot.logs import configure_logs
from entrepot.registry.service import Registry
from entrepot.registry.uploads import Uploads
from entrepot.replication.runs import Replications
from entrepot.settings import LogFormat, LogLevel, Settings, load_settings
from entrepot.storage.blobs import BlobStore
from entrepot.storage.clock import utc_now
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals

if TYPE_CHECKING:
    from entrepot.web.asgi import App
    from entrepot.web.front import Front

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
    authenticator: Authenticator
    tokens: Tokens
    usage: UsageCounter
    audit: AuditLog
    replications: Replications


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
    database = Database(settings.effective_database_url)
    database.migrate()
    signals = Signals(database, utc_now)
    blobs = BlobStore(settings.effective_storage_url)
    keys = Keys.derive(read_secret_key(settings))
    limit = settings.limits.blob_bytes
    registry = Registry(database, blobs, signals, utc_now, max_blob_bytes=limit)
    directory = Directory(database, signals)
    tokens = Tokens(keys, utc_now, service=settings.registry_host)
    parts = Parts(
        settings=settings,
        database=database,
        blobs=blobs,
        signals=signals,
        registry=registry,
        uploads=Uploads(database, blobs, registry, utc_now, max_blob_bytes=limit),
        plans=Plans(database, signals, utc_now),
        accounts=Accounts(database, signals, utc_now, keys),
        api_keys=ApiKeys(database, signals, utc_now, keys),
        authenticator=Authenticator(directory, tokens, keys, utc_now),
        tokens=tokens,
        usage=UsageCounter(database, utc_now),
        audit=AuditLog(database),
        replications=Replications(database, registry, utc_now, concurrency=settings.replication.concurrency),
    )
    signals.start()
    return parts


def close_parts(parts: Parts) -> None:
    """Stop listening, and let go of the database."""
    parts.signals.stop()
    parts.database.close()


def create_app() -> "Front":
    """The ASGI application of one server process, from the settings in its environment."""
    die_with_parent()
    settings = load_settings()
    configure_logging(settings)
    return build_app(build_parts(settings))


def build_app(parts: Parts) -> "Front":
    """The ASGI application over `parts`, which it closes when it stops."""
    # Loaded here, so that commands which serve nothing do not wait for it.
    from entrepot.web.api.app import create_api
    from entrepot.web.api.services import Services
    from entrepot.web.front import Front
    from entrepot.web.oci.face import OciFace
    from entrepot.web.ops import OpsFace
    from entrepot.web.token.face import TokenFace

    settings = parts.settings
    oci: App = OciFace(
        parts.registry,
        parts.uploads,
        parts.authenticator,
        parts.usage,
        realm=settings.effective_public_url + TOKEN_PATH,
        service=settings.registry_host,
        stall_seconds=settings.limits.stall_seconds,
    )
    token: App = TokenFace(
        parts.authenticator,
        parts.tokens,
        service=settings.registry_host,
        stall_seconds=settings.limits.stall_seconds,
    )
    services = Services(
        accounts=parts.accounts,
        api_keys=parts.api_keys,
        plans=parts.plans,
        usage=parts.usage,
        audit=parts.audit,
        registry_host=settings.registry_host,
        is_plain_http=settings.effective_public_url.startswith("http:"),
    )
    ops: App = OpsFace(
        _collect_metrics, {"database": lambda: verify_database(parts), "storage": parts.blobs.verify_writable}
    )
    faces: list[tuple[str, App]] = [
        ("/v2", oci),
        (TOKEN_PATH, token),
        ("/api/", create_api(services)),
        ("/livez", ops),
        ("/readyz", ops),
        ("/metrics", ops),
    ]

    async def starting() -> None:
        parts.usage.start()

    async def stopping() -> None:
        await asyncio.to_thread(parts.usage.stop)
        close_parts(parts)

    return Front(faces, starting=starting, stopping=stopping)


def _collect_metrics() -> CollectorRegistry:
    """The metrics of every server process where there are several, of this one else."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


async def verify_database(parts: Parts) -> None:
    """Raises DatabaseUnavailable unless the database answers and has this version's schema."""
    if not await asyncio.to_thread(parts.database.is_migrated):
        raise DatabaseUnavailable("the database has another version's schema; run: entrepot migrate")


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
    """The secret that everything keyed comes from; made once, when no setting gives it."""
    given = settings.secret_key.get_secret_value()
    if given:
        return given.encode()
    path = settings.data / "secret.key"
    if not path.exists():
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
    return path.read_text(encoding="ascii").strip().encode()


def die_with_parent() -> None:
    """Ask Linux to end this process with its supervisor: one killed with -9 must not leave its port taken.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
