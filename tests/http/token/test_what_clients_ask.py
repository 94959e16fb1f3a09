"""What each client asks of a token server, as seen on the wire, and what it needs to find in the answer."""

from collections.abc import Sequence
from typing import Any

import jwt
import pytest

from tests.support.served import RegistryClient, Served

SERVICE = "127.0.0.1:8080"
API, WEB = "repository:smm/api:pull", "repository:smm/web:pull"
PUSH = "repository:smm/api:pull,push"
Pairs = Sequence[tuple[str, str]]


def granted(answer: Any) -> list[str]:
    """The scopes of a token, as a client would write them."""
    document = answer.json()
    assert document["token"] == document["access_token"]
    assert document["expires_in"] >= 60
    claims = jwt.decode(document["token"], options={"verify_signature": False})
    return [f"{one['type']}:{one['name']}:{','.join(one['actions'])}" for one in claims["access"]]


@pytest.mark.parametrize(
    ("query", "scopes", "is_offline"),
    [
        pytest.param(
            [("account", "{username}"), ("client_id", "docker"), ("offline_token", "true"), ("service", SERVICE)],
            [],
            True,
            id="docker login",
        ),
        pytest.param([("account", "{username}"), ("scope", API), ("service", SERVICE)], [API], False, id="docker pull"),
        pytest.param(
            [("account", "{username}"), ("scope", PUSH), ("service", SERVICE)], [API], False, id="docker push"
        ),
        pytest.param([("account", "{username}"), ("service", SERVICE)], [], False, id="podman, skopeo login"),
        pytest.param([("account", "{username}"), ("scope", API), ("service", SERVICE)], [API], False, id="podman pull"),
        pytest.param(
            [("account", "{username}"), ("scope", API), ("scope", WEB), ("service", SERVICE)],
            [API, WEB],
            False,
            id="buildah",
        ),
        pytest.param([("scope", API), ("service", SERVICE)], [API], False, id="containerd after its POST was refused"),
        pytest.param([("scope", API), ("service", SERVICE)], [API], False, id="helm 4 pull"),
        pytest.param([("scope", API), ("scope", WEB), ("service", SERVICE)], [API, WEB], False, id="crane"),
        pytest.param([("service", SERVICE)], [], False, id="oras login"),
        pytest.param(
            [("scope", "registry:catalog:*"), ("service", SERVICE)], ["registry:catalog:*"], False, id="oras repo ls"
        ),
        pytest.param([("scope", ""), ("service", SERVICE)], [], False, id="oras-py, empty scope"),
        pytest.param([("offline_token", "false"), ("service", SERVICE)], [], False, id="offline not wanted"),
    ],
)
async def test_get_with_basic(
    served: Served, customer: RegistryClient, query: Pairs, scopes: list[str], is_offline: bool
) -> None:
    asked = [(key, value.format(username=customer.credential.username)) for key, value in query]
    answer = await served.http.get("/token", params=asked, headers=customer.basic)
    assert answer.status_code == 200, answer.text
    assert granted(answer) == scopes
    assert ("refresh_token" in answer.json()) is is_offline
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("form", "scopes", "is_offline"),
    [
        pytest.param(
            {"client_id": "containerd-client", "scope": API, "service": SERVICE}, [API], False, id="containerd pull"
        ),
        pytest.param(
            {"client_id": "containerd-client", "scope": f"{API} {WEB}", "service": SERVICE},
            [API, WEB],
            False,
            id="containerd mount, helm 3",
        ),
        pytest.param({"client_id": "oras-go", "service": SERVICE}, [], False, id="helm 4 login"),
        pytest.param(
            {"client_id": "buildkit-client", "access_type": "offline", "scope": PUSH, "service": SERVICE},
            [API],
            True,
            id="buildkit",
        ),
        pytest.param(
            {"client_id": "docker", "access_type": "offline", "scope": "", "service": SERVICE}, [], True, id="docker"
        ),
    ],
)
async def test_post_with_password(
    served: Served, customer: RegistryClient, form: dict[str, str], scopes: list[str], is_offline: bool
) -> None:
    login = {"username": customer.credential.username, "password": customer.credential.secret.reveal()}
    answer = await served.http.post("/token", data={"grant_type": "password", **login, **form})
    assert answer.status_code == 200, answer.text
    assert granted(answer) == scopes
    # The OAuth2 variant requires it, also where it is empty.
    assert answer.json()["scope"] == " ".join(scopes)
    assert ("refresh_token" in answer.json()) is is_offline


@pytest.mark.parametrize(
    ("form", "scopes"),
    [
        pytest.param({"client_id": "docker", "scope": API, "service": SERVICE}, [API], id="docker pull"),
        pytest.param({"client_id": "docker", "scope": "", "service": SERVICE}, [], id="docker login again"),
        pytest.param(
            {"client_id": "containers/image", "scope": API, "service": SERVICE}, [API], id="podman, docker's config"
        ),
        pytest.param({"client_id": "go-containerregistry", "scope": f"{API} {WEB}"}, [API, WEB], id="crane"),
        pytest.param(
            {"client_id": "containerd-client", "scope": PUSH, "service": SERVICE},
            [API],
            id="containerd, more than granted",
        ),
    ],
)
async def test_post_with_refresh_token(
    served: Served, customer: RegistryClient, form: dict[str, str], scopes: list[str]
) -> None:
    login = await served.http.get("/token?offline_token=true", headers=customer.basic)
    refresh = login.json()["refresh_token"]
    answer = await served.http.post("/token", data={"grant_type": "refresh_token", "refresh_token": refresh, **form})
    assert answer.status_code == 200, answer.text
    assert granted(answer) == scopes
    # The spec: the same one, and no new one.
    assert answer.json()["refresh_token"] == refresh
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await served.http.get("/v2/", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("GET", {"params": {"scope": API, "service": SERVICE}}, id="docker, crane"),
        pytest.param("GET", {"params": {"service": SERVICE}}, id="podman"),
        pytest.param(
            "POST", {"data": {"grant_type": "password", "scope": API, "username": "", "password": ""}}, id="containerd"
        ),
    ],
)
async def test_anonymous_is_told_to_log_in(served: Served, method: str, options: dict[str, Any]) -> None:
    """There is nothing here for nobody; a 200 with an empty token would hide why the pull fails."""
    answer = await served.http.request(method, "/token", **options)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"].startswith("Basic ")
