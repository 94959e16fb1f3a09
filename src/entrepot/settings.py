"""Every setting, grouped and documented; docs/reference/settings.md is generated from here.

Sources, the first that speaks wins: command line, environment (`ENTREPOT_*`, nested with `__`), file (`--config`,
TOML), default. A secret may come from a file: `ENTREPOT_X_FILE` names it. An unknown name is an error, in the
environment as in the file, because a misspelt setting that is silently ignored is a hole.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from entrepot.errors import SettingsInvalid

if TYPE_CHECKING:
    from sqlalchemy import URL

PREFIX = "ENTREPOT_"
# Names for the program itself rather than for what it serves.
CONFIG_VARIABLE = "ENTREPOT_CONFIG"

MIN_SECRET_KEY_CHARACTERS = 32


def _split(value: Any) -> Any:
    """A list as a variable has it: separated by commas, or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _split_keys(value: SecretStr) -> list[bytes]:
    return [key.encode() for key in value.get_secret_value().replace(",", " ").split()]


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Texts, separated by commas."""
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]
"""Networks such as `10.0.0.0/8`, separated by commas."""


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _days(default: int, least: int, what: str) -> Any:
    return Field(default=default, ge=least, le=36_500, description=f"How many days jobs keep {what}.")


class Limits(_Group):
    """What one request may ask of the server."""

    blob_bytes: int = Field(default=64 * 1024**3, ge=1, description="The largest blob that may be pushed, in bytes.")
    chunk_bytes_min: int = Field(
        default=0,
        ge=0,
        description="Least length of an upload's chunks that clients are asked for (`OCI-Chunk-Min-Length`); 0: any.",
    )
    stall_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long a client may send nothing of a body or read nothing of an answer before it is given up.",
    )


class DatabaseOptions(_Group):
    """How PostgreSQL is used."""

    connections: int = Field(
        default=10, ge=5, le=200, description="Connections to PostgreSQL that each process opens at most."
    )
    outage_seconds: float = Field(
        default=60,
        ge=0,
        description="How long a process that cannot reach the database goes on serving what it has in memory.",
    )


class Storage(_Group):
    """Object stores. Credentials come from the SDK's default chain; web identity needs no static key."""

    endpoint: str = Field(default="", description="Address of the object store. Default: the cloud's own.")
    public_endpoint: str = Field(
        default="", description="Its address for clients, in presigned URLs. Default: the same."
    )
    region: str = Field(default="", description="The bucket's region. Default: from the environment.")
    stall_seconds: float = Field(
        default=30, gt=0, description="How long the object store may send nothing before a request to it is given up."
    )
    redirect: bool = Field(
        default=True,
        description="Whether clients fetch blobs from the object store itself, by presigned URLs; else through here.",
    )
    redirect_seconds: int = Field(default=60, ge=1, le=3600, description="How long a presigned URL is valid.")
    redirect_except: Networks = Field(
        default=(),
        description="Networks whose clients get blobs through this server all the same, separated by commas.",
    )


class RepositoryPolicies(_Group):
    """What holds for repositories, whoever uses them."""

    immutable_tags: Words = Field(
        default=(),
        description="Tags that never move and cannot be deleted: `REPOSITORY:TAG` globs such as `smm/**:v*`, "
        "separated by commas.",
    )
    quotas: dict[str, str] = Field(
        default_factory=dict,
        description='The most that a repository may hold, by glob, as JSON: `{"sandbox/**": "20GB"}`. '
        "The least of what matches counts.",
    )
    sparse_manifests: Words = Field(
        default=(),
        description="Repositories (globs) where a manifest may name blobs and manifests that are not here, "
        "separated by commas.",
    )


class GarbageCollection(_Group):
    """What is removed, and when."""

    interval_seconds: int = Field(default=3600, ge=0, description="How often jobs collect garbage; 0: never.")
    grace_seconds: int = Field(
        default=86400,
        ge=0,
        description="How long what nothing refers to is left alone. Every process must have the same; below some "
        "minutes, slow pushes fail.",
    )
    untagged: bool = Field(
        default=False, description="Whether manifests go that no tag, index or present subject leads to."
    )


class Retention(_Group):
    """How long jobs keep what accounts do. A deleted account's networks and identity go at once."""

    hourly_usage_days: int = _days(90, 1, "counts by hour")
    daily_usage_days: int = _days(730, 60, "counts by day")
    networks_days: int = _days(
        30, 1, "networks that accounts pulled from (truncated to /24 and /48), since their last pull"
    )
    refusals_days: int = _days(90, 1, "what accounts were refused, and why")
    audit_days: int = _days(400, 1, "rows of the audit log")
    events_days: int = _days(90, 7, "events, and what is known of their deliveries")


class WebhookOptions(_Group):
    """Where webhooks may lead besides public addresses by https."""

    networks: Networks = Field(
        default=(),
        description="Networks whose addresses webhooks may lead to although they are not public, separated by commas.",
    )
    plain_http: bool = Field(
        default=False, description="Whether webhooks may lead to other hosts than this one by plain http."
    )


class Throttle(_Group):
    """How many wrong credentials are answered as such, in a minute; right ones always are."""

    failures_per_site: int = Field(
        default=60,
        ge=0,
        description="Wrong credentials from one address (IPv6: one /64) in a minute, beyond which the answer is 429; "
        "0: never.",
    )
    failures_per_account: int = Field(
        default=300,
        ge=0,
        description="Wrong secrets for one username in a minute, wherever they come from, beyond which the answer is "
        "429; 0: never.",
    )


class Log(_Group):
    """Log lines on standard error."""

    format: LogFormat = Field(
        default=LogFormat.AUTO, description="`json`, `console`, or `auto`: console on a terminal."
    )
    level: LogLevel = Field(default=LogLevel.INFO, description="The least severe lines that are written.")


class SecretScanning(_Group):
    """Reports of leaked secrets, in the shape of GitHub's secret scanning partner program."""

    enabled: bool = Field(
        default=False, description="Whether signed reports of leaked secrets are taken, and what they name is revoked."
    )
    keys_url: str = Field(
        default="https://api.github.com/meta/public_keys/secret_scanning",
        description="Where the scanner publishes its keys; empty: only `PUBLIC_KEYS` hold.",
    )
    public_keys: dict[str, str] = Field(
        default_factory=dict,
        description="P-256 public keys (PEM) of scanners, by identifier, as JSON; these are not fetched.",
    )


class Replication(_Group):
    """How content is copied from sources."""

    concurrency: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Blobs that one run copies at the same time, unless its rule says otherwise.",
    )
    runs: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Runs of whole rules that one process carries on at the same time; as many again of pushes.",
    )
    runs_per_source: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Runs that copy from one source at the same time, over all processes, unless the source says "
        "otherwise; as many again of pushes.",
    )
    tries: int = Field(
        default=10,
        ge=1,
        le=100,
        description="How often a run is begun before temporary errors fail it; waits between are 10 s to 10 minutes.",
    )
    part_bytes: int = Field(
        default=256 * 1024**2,
        ge=1024**2,
        description="A larger blob is copied in parts of this size, and after a crash goes on behind the last one.",
    )
    kept_runs: int = Field(
        default=200, ge=1, le=10_000, description="Ended runs that are kept of each rule, and as many of pulls."
    )
    kept_days: int = Field(default=90, ge=1, description="How long ended runs are kept.")


class OidcWorkload(_Group):
    """A program that may get an API key, and what that key may do."""

    name: str = Field(pattern=r"^[a-z0-9]+(?:[._-][a-z0-9]+)*$", max_length=50)
    claims: dict[str, str] = Field(min_length=1)
    scopes: tuple[str, ...] = Field(min_length=1)
    plans: tuple[str, ...] | None = None
    own_accounts_only: bool = False
    requests_per_minute: int | None = Field(default=None, ge=1)
    lifetime_seconds: int = Field(default=900, ge=60, le=3600)


class OidcIssuer(_Group):
    """Who vouches for workloads."""

    url: str
    audience: str = Field(min_length=1)
    workloads: tuple[OidcWorkload, ...] = Field(min_length=1)
    keys_url: str | None = None
    ca_file: Path | None = None
    token_file: Path | None = None


class Oidc(_Group):
    """Programs that get API keys by a token of their platform."""

    issuers: tuple[OidcIssuer, ...] = Field(
        default=(),
        description="Issuers whose tokens may be exchanged for short-lived API keys, and what these may do; as JSON, "
        "or as tables in the file. See [use-workload-identity.md](../how-to/use-workload-identity.md).",
    )


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data: Path = Field(default=Path("entrepot-data"), description="The folder that holds everything by default.")
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=8080, ge=1, le=65535, description="The port to listen on.")
    workers: int = Field(default=1, ge=1, le=256, description="Server processes; one per core is a good number.")
    jobs: bool = Field(default=True, description="Whether `serve` also runs jobs: replications, webhooks, upkeep.")
    public_url: str = Field(
        default="", description="The address by which clients reach this server. Default: `http://HOST:PORT`."
    )
    help_url: str = Field(
        default="",
        description="Where customers find help; it stands in what they are told when a request is refused. `{account}` "
        "and `{reason}` in it are filled in.",
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Networks of the proxies in front of this server, whose `X-Forwarded-For` is believed, "
        "separated by commas.",
    )
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="`postgresql://USER:PASSWORD@HOST/NAME`. Default: `sqlite:///DATA/entrepot.db`.",
    )
    redis_url: SecretStr = Field(
        default=SecretStr(""),
        description="`redis://[:PASSWORD@]HOST[:PORT]`, or `rediss://` for TLS: carries change notices between "
        "processes sooner, and counts what is limited. Default: the database alone does.",
    )
    storage_url: str = Field(
        default="", description="Where blobs are kept: `s3://BUCKET/PREFIX`. Default: `file://DATA/blobs`."
    )
    secret_key: SecretStr = Field(
        default=SecretStr(""),
        description="From it come account names, stored secrets and token signatures, so every process must have the "
        "same one and losing it voids every credential. Default: made once, in `DATA/secret.key`.",
    )
    earlier_secret_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Secret keys that were in force before, or are about to be, separated by white space or commas: "
        "what was stored or signed with them holds. See [Tokens](tokens.md#replacing-the-secret-key).",
    )
    leaked_secret_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Earlier secret keys that somebody else may know: what was stored with them holds, tokens and "
        "logins that were signed with them do not.",
    )
    database: DatabaseOptions = DatabaseOptions()
    storage: Storage = Storage()
    repositories: RepositoryPolicies = RepositoryPolicies()
    gc: GarbageCollection = GarbageCollection()
    limits: Limits = Limits()
    retention: Retention = Retention()
    webhooks: WebhookOptions = WebhookOptions()
    throttle: Throttle = Throttle()
    log: Log = Log()
    replication: Replication = Replication()
    oidc: Oidc = Oidc()
    secret_scanning: SecretScanning = SecretScanning()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - a stray .env file must not reconfigure a server
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, secret files, configuration file."""
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings, _SecretFiles(settings_cls)]
        if path := os.environ.get(CONFIG_VARIABLE):
            with Path(path).open("rb"):  # the library would pass over a file that is not there
                sources.append(TomlConfigSettingsSource(settings_cls, Path(path)))
        return tuple(sources)

    @field_validator("public_url")
    @classmethod
    def _is_origin(cls, value: str) -> str:
        """Clients derive the registry's name from it, so it must be an origin and nothing more."""
        if value:
            parts = urlsplit(value)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError("use http(s)://HOST[:PORT], without a path")
        return value.rstrip("/")

    @field_validator("secret_key")
    @classmethod
    def _is_long(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < MIN_SECRET_KEY_CHARACTERS:
            raise ValueError(f"use at least {MIN_SECRET_KEY_CHARACTERS} random characters: openssl rand -hex 32")
        return value

    @field_validator("earlier_secret_keys", "leaked_secret_keys")
    @classmethod
    def _are_long(cls, value: SecretStr) -> SecretStr:
        if any(len(key) < MIN_SECRET_KEY_CHARACTERS for key in _split_keys(value)):
            raise ValueError(f"a secret key has at least {MIN_SECRET_KEY_CHARACTERS} characters")
        return value

    @property
    def earlier_keys(self) -> list[bytes]:
        """The secret keys before this one."""
        return _split_keys(self.earlier_secret_keys)

    @property
    def leaked_keys(self) -> list[bytes]:
        """The secret keys before this one that somebody else may know."""
        return _split_keys(self.leaked_secret_keys)

    @property
    def effective_public_url(self) -> str:
        """The address by which clients reach this server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url or f"http://{host}:{self.port}"

    @property
    def registry_host(self) -> str:
        """What stands before the first slash of an image's name."""
        return urlsplit(self.effective_public_url).netloc

    @property
    def effective_database_url(self) -> "str | URL":
        """Where the database is."""
        from sqlalchemy import URL

        path = self.data.absolute() / "entrepot.db"
        return self.database_url.get_secret_value() or URL.create("sqlite", database=str(path))

    @property
    def effective_storage_url(self) -> str:
        """Where blobs are."""
        return self.storage_url or f"file://{self.data.absolute() / 'blobs'}"


def setting_fields(model: type[BaseModel] = Settings, prefix: str = PREFIX) -> Iterator[tuple[str, Any]]:
    """(environment name, field) of every setting, for the reader below and for the reference."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_fields(field.annotation, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), field


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """The settings of this process; `overrides` are the command line's, None where it is silent.

    `config` is remembered in the environment, so that processes started from here read the same file. Raises
    SettingsInvalid.
    """
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config.absolute())
    _drop_service_links(os.environ)
    _verify_names(os.environ)
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsInvalid(_explain(error)) from error
    except SettingsError as error:
        raise SettingsInvalid(str(error)) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"configuration file {os.environ.get(CONFIG_VARIABLE)}: {error}") from error


# For a Service named `entrepot`, Kubernetes puts variables of these names into every pod of its namespace (Kubernetes,
# "Accessing the Service", environment variables).
_SERVICE_LINK = re.compile(r"ENTREPOT_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_.+)?)")


def _drop_service_links(environment: MutableMapping[str, str]) -> None:
    """Forget what only looks like settings; the port is taken for one unless it is an address."""
    for name in list(environment):
        is_address = name == "ENTREPOT_PORT" and "://" in environment[name]
        if is_address or _SERVICE_LINK.fullmatch(name):
            del environment[name]


def _secret_files() -> dict[str, str]:
    """The variable that names a file, for each secret."""
    return {f"{name}_FILE": name for name, field in setting_fields() if field.annotation is SecretStr}


def _verify_names(environment: Mapping[str, str]) -> None:
    known = {name for name, _ in setting_fields()} | _secret_files().keys() | {CONFIG_VARIABLE}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name not in known:
            raise SettingsInvalid(f"{name} is not a setting; see docs/reference/settings.md")


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads `ENTREPOT_X_FILE` for every secret X of the first level."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Unused: `__call__` answers for all fields at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """The secrets that files hold."""
        found: dict[str, Any] = {}
        for variable, target in _secret_files().items():
            path = os.environ.get(variable)
            if path is None:
                continue
            if target in os.environ:
                raise SettingsInvalid(f"{variable} and {target} are both set; keep one")
            try:
                secret = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsInvalid(f"{variable}: {error}") from error
            if not secret:
                raise SettingsInvalid(f"{variable}: {path} is empty")
            found[target.removeprefix(PREFIX).lower()] = secret
        return found


def _explain(error: ValidationError) -> str:
    """One line per wrong setting, without its value, which may be a secret."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = PREFIX + "__".join(str(part) for part in problem["loc"]).upper()
        what = (
            "is not a setting" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{name}: {what}")
    return "; ".join(lines)
