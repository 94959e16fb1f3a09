"""Sources as replication.yaml describes them: one class per kind.

Pure: passwords and keys are named here by their file or environment variable, and read only when a source is opened.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from yarl import URL

from entrepot.errors import NameInvalid, RuleInvalid
from entrepot.oci.reference import RepositoryName
from entrepot.replication.fields import (
    find_origin,
    parse_mapping,
    parse_name,
    parse_origin,
    parse_path,
    parse_text,
    parse_variable,
    verify_known,
    without_nothing,
)

_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,576}", re.ASCII)
# API_AssumeRole: what an external id may be.
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)
_KEY_ID = re.compile(r"[A-Z0-9]{16,128}")
_MAX_ROLES = 5
_MAX_RUNS = 64
_QUEUE = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,255}/[0-9]{12}/[A-Za-z0-9_-]{1,80}(?:\.fifo)?", re.ASCII)
_PRIVATE_REDIRECTS = {"allow": True, "refuse": False}
_WORDS = {allowed: word for word, allowed in _PRIVATE_REDIRECTS.items()}


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """Where a secret is read from when it is needed: a file, or an environment variable."""

    file: str | None = None
    env: str | None = None

    @classmethod
    def find(cls, fields: Mapping[str, Any], field: str, where: str) -> Self | None:
        """The place that `field`_file or `field`_env names, None where neither does."""
        if field in fields:
            raise RuleInvalid(
                f"{where}.{field}: a {field.replace('_', ' ')} does not belong in this file; "
                f"name a file ({field}_file) or an environment variable ({field}_env) that holds it"
            )
        place = cls(
            parse_path(fields.get(f"{field}_file"), f"{where}.{field}_file"),
            parse_variable(fields.get(f"{field}_env"), f"{where}.{field}_env"),
        )
        if place.file and place.env:
            raise RuleInvalid(f"{where}: has {field}_file and {field}_env; keep one")
        return place if place.file or place.env else None

    def to_document(self, field: str) -> dict[str, Any]:
        """The two fields."""
        return {f"{field}_file": self.file, f"{field}_env": self.env}


@dataclass(frozen=True, slots=True)
class Network:
    """How a source is reached.

    `ca_file` holds the authorities to trust instead of the system's. `allows_private_redirects` says whether it may
    send us to private addresses; None: if it has one itself.
    """

    proxy: URL | None = None
    ca_file: str | None = None
    allows_private_redirects: bool | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The fields of a source that are about the network."""
        redirects = fields.get("private_redirects")
        if redirects is not None and not (isinstance(redirects, str) and redirects in _PRIVATE_REDIRECTS):
            raise RuleInvalid(f"{where}.private_redirects: must be allow or refuse")
        return cls(
            proxy=find_origin(fields.get("proxy"), f"{where}.proxy"),
            ca_file=parse_path(fields.get("ca_file"), f"{where}.ca_file"),
            allows_private_redirects=None if redirects is None else _PRIVATE_REDIRECTS[redirects],
        )

    def to_document(self) -> dict[str, Any]:
        """The same fields."""
        redirects = self.allows_private_redirects
        return {
            "proxy": self.proxy,
            "ca_file": self.ca_file,
            "private_redirects": None if redirects is None else _WORDS[redirects],
        }


_LIMIT_FIELDS = frozenset({"concurrent_runs"})


def _parse_concurrent_runs(fields: Mapping[str, Any], where: str) -> int | None:
    """How many runs may copy from the source at the same time; None: as many as the settings say."""
    value = fields.get("concurrent_runs")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_RUNS):
        raise RuleInvalid(f"{where}.concurrent_runs: must be a whole number from 1 to {_MAX_RUNS}")
    return value


_NETWORK_FIELDS = frozenset({"proxy", "ca_file", "private_redirects"})


@dataclass(frozen=True, slots=True)
class OciSpec:
    """Any registry that speaks the OCI distribution protocol. `username` and `password` are both set or both not."""

    name: str
    url: URL
    username: str | None = None
    password: SecretPlace | None = None
    network: Network = Network()
    concurrent_runs: int | None = None

    @classmethod
    def parse(cls, name: str, fields: Mapping[str, Any], where: str) -> Self:
        """The source in a document."""
        password = SecretPlace.find(fields, "password", where)
        known = {"type", "url", "username", "password_file", "password_env", *_NETWORK_FIELDS, *_LIMIT_FIELDS}
        verify_known(fields, where, known)
        spec = cls(
            name=name,
            url=parse_origin(fields.get("url"), f"{where}.url"),
            username=parse_text(fields.get("username"), f"{where}.username"),
            password=password,
            network=Network.parse(fields, where),
            concurrent_runs=_parse_concurrent_runs(fields, where),
        )
        if (spec.username is None) != (password is None):
            raise RuleInvalid(f"{where}: a login is a username and a password_file or password_env; give both or none")
        return spec

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml, without the name."""
        password = self.password or SecretPlace()
        document = {"type": "oci", "url": self.url, "username": self.username, **password.to_document("password")}
        limits = {"concurrent_runs": self.concurrent_runs}
        return without_nothing(document | self.network.to_document() | limits)


@dataclass(frozen=True, slots=True)
class AwsRole:
    """A role to assume, and the external id that its trust policy may ask for."""

    arn: str
    external_id: str | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The role in a mapping with `role_arn` and maybe `external_id`."""
        arn = parse_text(fields.get("role_arn"), f"{where}.role_arn")
        if arn is None or not _ROLE.fullmatch(arn):
            raise RuleInvalid(f"{where}.role_arn: must be arn:aws:iam::ACCOUNT:role/NAME")
        external_id = fields.get("external_id")
        if external_id is not None and not (isinstance(external_id, str) and _EXTERNAL_ID.fullmatch(external_id)):
            raise RuleInvalid(f"{where}.external_id: must be 2 to 1224 letters, digits or _ + = , . @ : / -, in quotes")
        return cls(arn, external_id)

    def to_document(self) -> dict[str, Any]:
        """The same mapping."""
        return without_nothing({"role_arn": self.arn, "external_id": self.external_id})


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """As whom AWS is asked, in which region, and where.

    Without keys, credentials come from the SDK's default chain. Then `roles` are assumed, each with the one before.
    `access_key_id` and `secret_access_key` are both set or both not.
    """

    region: str
    roles: tuple[AwsRole, ...] = ()
    access_key_id: str | None = None
    secret_access_key: SecretPlace | None = None
    sts_endpoint: URL | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The fields of a source that are about AWS."""
        region = fields.get("region")
        if not isinstance(region, str) or not _REGION.fullmatch(region):
            raise RuleInvalid(f"{where}.region: must be an AWS region such as eu-west-1")
        key_id = parse_text(fields.get("access_key_id"), f"{where}.access_key_id")
        if key_id is not None and not _KEY_ID.fullmatch(key_id):
            raise RuleInvalid(f"{where}.access_key_id: must be the id of an access key, such as AKIA...")
        access = cls(
            region=region,
            roles=_parse_roles(fields, where),
            access_key_id=key_id,
            secret_access_key=SecretPlace.find(fields, "secret_access_key", where),
            sts_endpoint=find_origin(fields.get("sts_endpoint"), f"{where}.sts_endpoint"),
        )
        if (access.access_key_id is None) != (access.secret_access_key is None):
            raise RuleInvalid(
                f"{where}: a static key is an access_key_id and a secret_access_key_file or secret_access_key_env; "
                "give both or none"
            )
        return access

    def to_document(self) -> dict[str, Any]:
        """The same fields."""
        roles = [role.to_document() for role in self.roles]
        secret = self.secret_access_key or SecretPlace()
        return {
            "region": self.region,
            "access_key_id": self.access_key_id,
            **secret.to_document("secret_access_key"),
            "sts_endpoint": self.sts_endpoint,
            **(roles[0] if len(roles) == 1 else {"roles": roles or None}),
        }


_AWS_FIELDS = frozenset(
    {
        "region",
        "role_arn",
        "external_id",
        "roles",
        "access_key_id",
        "secret_access_key_file",
        "secret_access_key_env",
        "sts_endpoint",
    }
)


def _parse_roles(fields: Mapping[str, Any], where: str) -> tuple[AwsRole, ...]:
    """The one role of `role_arn`, or the chain in `roles`."""
    chain = fields.get("roles")
    if "role_arn" in fields or "external_id" in fields:
        if chain is not None:
            raise RuleInvalid(f"{where}: has role_arn and roles; put every role into roles")
        return (AwsRole.parse(fields, where),)
    if chain is None:
        return ()
    if not isinstance(chain, list) or not 0 < len(chain) <= _MAX_ROLES:
        raise RuleInvalid(f"{where}.roles: must be a list of 1 to {_MAX_ROLES} roles")
    roles = []
    for number, entry in enumerate(chain):
        place = f"{where}.roles[{number}]"
        verify_known(parse_mapping(entry, place), place, {"role_arn", "external_id"})
        roles.append(AwsRole.parse(entry, place))
    return tuple(roles)


@dataclass(frozen=True, slots=True)
class PushQueue:
    """The SQS queue that EventBridge tells of pushes, and where SQS is asked, when AWS's own address is not meant."""

    url: str
    region: str | None = None
    endpoint: URL | None = None

    @classmethod
    def find(cls, fields: Mapping[str, Any], where: str) -> Self | None:
        """The queue in the field `events`, None where there is none."""
        if fields.get("events") is None:
            return None
        place = f"{where}.events"
        events = parse_mapping(fields["events"], place)
        verify_known(events, place, {"queue_url", "region", "endpoint"})
        url = parse_text(events.get("queue_url"), f"{place}.queue_url")
        if url is None or not _QUEUE.fullmatch(url):
            raise RuleInvalid(f"{place}.queue_url: must be the URL of an SQS queue: https://HOST/ACCOUNT/NAME")
        region = events.get("region")
        if region is not None and not (isinstance(region, str) and _REGION.fullmatch(region)):
            raise RuleInvalid(f"{place}.region: must be an AWS region such as eu-west-1")
        return cls(url, region, find_origin(events.get("endpoint"), f"{place}.endpoint"))

    def to_document(self) -> dict[str, Any]:
        """The same mapping."""
        return without_nothing({"queue_url": self.url, "region": self.region, "endpoint": self.endpoint})


@dataclass(frozen=True, slots=True)
class EcrSpec:
    """The private ECR registry of one AWS account in one region.

    `endpoint` is where ECR's API is asked, `registry_url` where the content is, when AWS's own addresses are not meant.
    """

    name: str
    account: str
    access: AwsAccess
    endpoint: URL | None = None
    registry_url: URL | None = None
    network: Network = Network()
    events: PushQueue | None = None
    concurrent_runs: int | None = None

    @property
    def url(self) -> URL:
        """Where the content is."""
        if self.registry_url is not None:
            return self.registry_url
        suffix = "amazonaws.com.cn" if self.access.region.startswith("cn-") else "amazonaws.com"
        return URL(f"https://{self.account}.dkr.ecr.{self.access.region}.{suffix}")

    @classmethod
    def parse(cls, name: str, fields: Mapping[str, Any], where: str) -> Self:
        """The source in a document."""
        access = AwsAccess.parse(fields, where)
        verify_known(
            fields,
            where,
            {"type", "account", "endpoint", "url", "events", *_AWS_FIELDS, *_NETWORK_FIELDS, *_LIMIT_FIELDS},
        )
        account = fields.get("account")
        if not isinstance(account, str) or not _ACCOUNT.fullmatch(account):
            raise RuleInvalid(f"{where}.account: must be the 12 digits of an AWS account, in quotes")
        return cls(
            name=name,
            account=account,
            access=access,
            endpoint=find_origin(fields.get("endpoint"), f"{where}.endpoint"),
            registry_url=find_origin(fields.get("url"), f"{where}.url"),
            network=Network.parse(fields, where),
            events=PushQueue.find(fields, where),
            concurrent_runs=_parse_concurrent_runs(fields, where),
        )

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml, without the name."""
        document = {
            "type": "ecr",
            "account": self.account,
            "endpoint": self.endpoint,
            "url": self.registry_url,
            "events": None if self.events is None else self.events.to_document(),
            "concurrent_runs": self.concurrent_runs,
        }
        return without_nothing(document | self.access.to_document() | self.network.to_document())


@dataclass(frozen=True, slots=True)
class ArchiveSpec:
    """An OCI image layout: a folder, or a tar file of one.

    `repository` is what tags belong to that stand there without a repository's name.
    """

    name: str
    path: str
    repository: RepositoryName | None = None
    concurrent_runs: int | None = None

    @classmethod
    def parse(cls, name: str, fields: Mapping[str, Any], where: str) -> Self:
        """The source in a document."""
        verify_known(fields, where, {"type", "path", "repository", *_LIMIT_FIELDS})
        path = parse_path(fields.get("path"), f"{where}.path")
        if path is None:
            raise RuleInvalid(f"{where}.path: must be the path of an OCI layout, a folder or a tar file")
        text = parse_text(fields.get("repository"), f"{where}.repository")
        try:
            repository = None if text is None else RepositoryName.parse(text)
        except NameInvalid as error:
            raise RuleInvalid(f"{where}.repository: {error}") from error
        return cls(name, path, repository, _parse_concurrent_runs(fields, where))

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml, without the name."""
        repository = None if self.repository is None else self.repository.value
        limits = {"concurrent_runs": self.concurrent_runs}
        return without_nothing({"type": "archive", "path": self.path, "repository": repository} | limits)


SourceSpec = OciSpec | EcrSpec | ArchiveSpec
"""Where content is copied from."""

_KINDS: dict[str, type[OciSpec] | type[EcrSpec] | type[ArchiveSpec]] = {
    "oci": OciSpec,
    "ecr": EcrSpec,
    "archive": ArchiveSpec,
}


def parse_source(name: str, document: object) -> SourceSpec:
    """The source in a document. Raises RuleInvalid, whose message begins with the place within the document."""
    where = f"sources.{parse_name(name, 'sources')}"
    fields = parse_mapping(document, where)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RuleInvalid(f"{where}.type: must be one of {', '.join(sorted(_KINDS))}")
    return _KINDS[kind].parse(name, fields, where)
