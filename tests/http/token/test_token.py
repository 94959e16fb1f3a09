"""`/token`, as every kind of client asks."""

import base64
from typing import Any

import jwt
import pytest

from tests.support.served import RegistryClient, Served

API_PULL = {"type": "repository", "name": "smm/api", "actions": ["pull"]}
WEB_PULL = {"type": "repository", "name": "smm/web", "actions": ["pull"]}


def access(token: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False})["access"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("account=x&client_id=docker&offline_token=true&service=127.0.0.1:8080", [], id="docker login"),
        pytest.param("scope=repository:smm/api:pull", [API_PULL], id="podman"),
        pytest.param("scope=repository:smm/api:pull,push", [API_PULL], id="more than the plan grants"),
        pytest.param("scope=repository:smm/api:*", [API_PULL], id="every action"),
        pytest.param("scope=repository(plugin):smm/api:pull", [API_PULL], id="class of a repository"),
        pytest.param(
            "scope=repository:smm/api:pull&scope=repository:smm/web:pull", [API_PULL, WEB_PULL], id="repeated"
        ),
        pytest.param("scope=repository:smm/api:pull+repository:smm/web:pull", [API_PULL, WEB_PULL], id="in one"),
        pytest.param("scope=repository:internal/api:pull", [], id="nothing of it granted"),
        pytest.param("scope=repository:UPPER:pull", [], id="no repository's name"),
        pytest.param(
            "scope=registry:catalog:*", [{"type": "registry", "name": "catalog", "actions": ["*"]}], id="catalog"
        ),
        pytest.param("scope=cluster:x:admin", [], id="unknown type"),
        pytest.param("scope=", [], id="empty"),
    ],
)
async def test_grants_what_the_plan_allows(
    served: Served, customer: RegistryClient, query: str, expected: list[Any]
) -> None:
    answer = await served.http.get(f"/token?{query}", headers=customer.basic)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["token"] == document["access_token"]
    assert document["expires_in"] == 300
    assert document["issued_at"].endswith("Z")
    assert answer.headers["cache-control"] == "no-store"
    assert access(document["token"]) == expected


async def test_password_grant(served: Served, customer: RegistryClient) -> None:
    form = {
        "grant_type": "password",
        "service": "127.0.0.1:8080",
        "client_id": "containerd-client",
        "username": customer.credential.username,
        "password": customer.credential.secret.reveal(),
        "scope": "repository:smm/api:pull repository:smm/web:pull",
    }
    answer = await served.http.post("/token", data=form)
    assert answer.status_code == 200
    assert access(answer.json()["access_token"]) == [API_PULL, WEB_PULL]
    answer = await served.http.post("/token", data=form | {"password": "entp_wrong"})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "options"),
    [
        pytest.param("GET", "/token", 401, {}, id="nobody"),
        pytest.param("GET", "/token", 401, {"headers": {"Authorization": "Bearer x"}}, id="token for a token"),
        pytest.param("PUT", "/token", 405, {}, id="method"),
        pytest.param("POST", "/token", 400, {"data": {"grant_type": "authorization_code"}}, id="unknown grant"),
        pytest.param("POST", "/token", 401, {"data": {"grant_type": "refresh_token"}}, id="no refresh token"),
        pytest.param("POST", "/.well-known/jwks.json", 405, {}, id="keys are read"),
        pytest.param("POST", "/token", 400, {"content": b"\xff"}, id="form not UTF-8"),
        pytest.param("POST", "/token", 413, {"content": b"x" * 20_000}, id="form too large"),
        pytest.param("POST", "/token", 401, {"data": {"grant_type": "password"}}, id="no user"),
    ],
)
async def test_refuses(served: Served, method: str, path: str, status: int, options: dict[str, Any]) -> None:
    answer = await served.http.request(method, path, **options)
    assert answer.status_code == status
    assert answer.json()["errors"][0]["message"]
    if status == 401:
        assert answer.headers["www-authenticate"].startswith('Basic realm="entrepot"')


@pytest.mark.parametrize(
    "query", ["service=other", "scope=nonsense", "scope=" + "+".join(["repository:a:pull"] * 40), "scope=" + "a" * 600]
)
async def test_refuses_with_good_credentials(served: Served, customer: RegistryClient, query: str) -> None:
    answer = await served.http.get(f"/token?{query}", headers=customer.basic)
    assert answer.status_code == 400


async def test_wrong_secret_is_refused(served: Served, customer: RegistryClient) -> None:
    pair = base64.b64encode(f"{customer.credential.username}:entp_wrong".encode()).decode()
    answer = await served.http.get("/token", headers={"Authorization": f"Basic {pair}"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (401, "UNAUTHORIZED")
