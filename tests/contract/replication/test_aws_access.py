"""Who we are in AWS: every way that the SDK knows, roles on the way, and the least that a role must be allowed."""

import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from entrepot.errors import SourceDenied, SourceLoginMissing, SourceMissing
from entrepot.oci import media_types
from entrepot.oci.reference import RepositoryName
from entrepot.replication.backoff import Backoff
from entrepot.replication.source import Source
from entrepot.replication.source_specs import EcrSpec, parse_source
from entrepot.replication.sources import Sources
from tests.support.aws import ACCOUNT, TOKEN_OF, Moto, Watched, watching
from tests.support.content import Image
from tests.support.programs import docker_registry, free_port

# Of our own, so that other tests do not see these repositories.
REGION = "eu-central-1"
API = RepositoryName("smm/api")
IMAGE = Image()
QUICK = Backoff(attempts=2, first_seconds=0.01)
HOW_TO = Path(__file__).parents[3] / "docs" / "how-to" / "replicate-from-ecr.md"


@pytest.fixture(scope="module")
def registry_url(moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that takes moto's token, and a repository that ECR's API knows."""
    moto.put_manifest(REGION, API.value, "v1", IMAGE.manifest, media_types.OCI_MANIFEST)
    token = TOKEN_OF.format(account=ACCOUNT)
    with docker_registry(tmp_path_factory.mktemp("registry"), "AWS", token) as host:
        yield f"http://{host}"


@pytest.fixture
async def watched(moto: Moto) -> AsyncIterator[Watched]:
    async with watching(moto) as server:
        yield server


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing for the SDK to find."""
    for name in os.environ:
        if name.startswith("AWS_") and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def spec(endpoint: str, url: str = "http://127.0.0.1:1", **more: Any) -> EcrSpec:
    document = {"type": "ecr", "account": ACCOUNT, "region": REGION, "endpoint": endpoint, "url": url, **more}
    parsed = parse_source("internal", document)
    assert isinstance(parsed, EcrSpec)
    assert parse_source("internal", parsed.to_document()) == parsed
    return parsed


async def repositories(source: Source) -> list[str]:
    return [name.value async for name in source.list_repositories()]


async def tags(source: Source) -> list[str]:
    return [entry.tag.value async for entry in source.list_tags(API)]


async def test_a_web_identity_is_traded_again_with_the_token_that_is_there_then(
    watched: Watched, registry_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", f"arn:aws:iam::{ACCOUNT}:role/entrepot-reader")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", watched.url)
    # So near that the SDK renews the credentials before it uses them again.
    watched.expiration = f"{datetime.now(UTC) + timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}"
    async with Sources(backoff=QUICK).open(spec(watched.url)) as source:
        assert API.value in await repositories(source)
        token.write_text("second")
        assert API.value in await repositories(source)
    trades = [call for call in watched.calls if call.operation == "AssumeRoleWithWebIdentity"]
    assert [trades[0].arguments["WebIdentityToken"], trades[-1].arguments["WebIdentityToken"]] == ["first", "second"]
    lists = [call.key_id for call in watched.calls if call.operation == "DescribeRepositories"]
    assert len(set(lists)) == 2
    assert all(key and key.startswith("ASIA") for key in lists)


async def test_an_instance_has_a_role(watched: Watched, registry_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", watched.url)
    async with Sources(backoff=QUICK).open(spec(watched.url)) as source:
        assert API.value in await repositories(source)
    assert watched.operations()[0] == "/latest/api/token"
    assert watched.calls[-1].key_id == "test-key"


async def test_without_credentials_nothing_is_asked(watched: Watched) -> None:
    with pytest.raises(SourceLoginMissing, match="no AWS credentials are found here"):
        async with Sources(backoff=QUICK).open(spec(watched.url)):
            pass
    assert watched.calls == []


async def test_a_token_is_fetched_once_although_its_end_has_passed(
    watched: Watched, registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    # A proxy from the environment would not hold for the content, and so does not hold for the API.
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    sources = Sources(backoff=QUICK)
    for _ in range(3):
        async with sources.open(spec(watched.url, registry_url)) as source:
            for _ in range(3):
                with pytest.raises(SourceMissing, match="404"):
                    await source.get_manifest(API, IMAGE.digest)
    assert watched.operations() == ["GetAuthorizationToken"]


@pytest.fixture
def iam(moto: Moto) -> "Iam":
    return Iam(moto)


class Iam:
    """A user with a key, and roles; all of them die with the session's moto."""

    def __init__(self, moto: Moto) -> None:
        self._iam = moto.client("iam", REGION)

    def make_user(self, policy: dict[str, Any]) -> tuple[str, str, str]:
        """(ARN, key id, secret key) of a user who may do what a policy says."""
        name = f"user-{os.urandom(4).hex()}"
        arn = self._iam.create_user(UserName=name)["User"]["Arn"]
        self._iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        key = self._iam.create_access_key(UserName=name)["AccessKey"]
        return arn, key["AccessKeyId"], key["SecretAccessKey"]

    def make_role(self, trusted: str, external_id: str | None, policy: dict[str, Any]) -> str:
        """The ARN of a role that one principal may assume, and that may do what a policy says."""
        name = f"role-{os.urandom(4).hex()}"
        statement: dict[str, Any] = {"Effect": "Allow", "Principal": {"AWS": trusted}, "Action": "sts:AssumeRole"}
        if external_id is not None:
            statement["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
        trust = {"Version": "2012-10-17", "Statement": [statement]}
        role = self._iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        self._iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        return str(role["Arn"])


def allow(*actions: str) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]}


def session_of(role_arn: str) -> str:
    """Who somebody is that assumed a role."""
    return role_arn.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/") + "/entrepot"


@pytest.mark.parametrize(("external_id", "is_right"), [("right-7f3a", True), ("wrong-7f3a", False)])
async def test_roles_are_assumed_one_after_the_other(
    moto: Moto,
    watched: Watched,
    iam: Iam,
    registry_url: str,
    monkeypatch: pytest.MonkeyPatch,
    external_id: str,
    is_right: bool,
) -> None:
    user, key_id, secret = iam.make_user(allow("sts:AssumeRole"))
    hop = iam.make_role(user, None, allow("sts:AssumeRole"))
    reader = iam.make_role(session_of(hop), "right-7f3a", allow("ecr:DescribeRepositories"))
    monkeypatch.setenv("SOURCE_SECRET_KEY", secret)
    roles = [{"role_arn": hop}, {"role_arn": reader, "external_id": external_id}]
    chain = spec(
        watched.url,
        sts_endpoint=watched.url,
        access_key_id=key_id,
        secret_access_key_env="SOURCE_SECRET_KEY",
        roles=roles,
    )
    with moto.checking_policies():
        async with Sources(backoff=QUICK).open(chain) as source:
            if is_right:
                assert API.value in await repositories(source)
            else:
                with pytest.raises(SourceDenied, match=r"AssumeRole with AccessDenied.*check what the role may do"):
                    await repositories(source)
    assumed = [call for call in watched.calls if call.operation == "AssumeRole"]
    assert [call.arguments["RoleArn"] for call in assumed] == [hop, reader]
    assert assumed[1].arguments["ExternalId"] == external_id
    assert assumed[0].key_id == key_id
    assert assumed[1].key_id != key_id


def policies_of_the_how_to() -> list[dict[str, Any]]:
    blocks = re.findall(r"```json\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    return [json.loads(block) for block in blocks]


def without_action(policy: dict[str, Any], action: str | None) -> dict[str, Any]:
    """The policy less an action, and for every resource: moto asks for ECR's actions on `*` alone."""
    statements = []
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        kept = [one for one in actions if one != action]
        if kept:
            statements.append(statement | {"Action": kept, "Resource": "*"})
    return policy | {"Statement": statements}


@pytest.mark.parametrize(
    "missing", [None, "ecr:GetAuthorizationToken", "ecr:DescribeRepositories", "ecr:DescribeImages"]
)
async def test_the_policy_of_the_how_to_is_enough_and_not_more(
    moto: Moto, iam: Iam, registry_url: str, monkeypatch: pytest.MonkeyPatch, missing: str | None
) -> None:
    policy = policies_of_the_how_to()[0]
    _, key_id, secret = iam.make_user(without_action(policy, missing))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    refused = []
    with moto.checking_policies():
        async with Sources(backoff=QUICK).open(spec(moto.url, registry_url)) as source:
            for action, work in (
                ("ecr:GetAuthorizationToken", lambda: source.get_manifest(API, IMAGE.digest)),
                ("ecr:DescribeRepositories", lambda: repositories(source)),
                ("ecr:DescribeImages", lambda: tags(source)),
            ):
                try:
                    await work()
                except SourceDenied:
                    refused.append(action)
                except SourceMissing:  # the registry behind it has no content
                    assert action == "ecr:GetAuthorizationToken"
    assert refused == ([missing] if missing else [])


def test_the_policy_of_the_how_to_allows_reading_alone() -> None:
    policy = policies_of_the_how_to()[0]
    allowed: dict[str, Any] = {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        allowed |= dict.fromkeys(actions, statement["Resource"])
    # The last two are what ECR itself asks for behind `/v2/`, where moto has nothing.
    assert set(allowed) == {
        "ecr:GetAuthorizationToken",
        "ecr:DescribeRepositories",
        "ecr:DescribeImages",
        "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
    }
    assert allowed.pop("ecr:GetAuthorizationToken") == "*"
    assert all("*" not in (resource if isinstance(resource, list) else [resource]) for resource in allowed.values())
