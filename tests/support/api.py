"""Calls of the platform API."""

from dataclasses import dataclass
from typing import Any

import httpx

from entrepot.access.api_scopes import parse_api_scopes
from tests.support.served import TESTER, Served

ACCOUNTS = "/api/v1/accounts"
API_KEYS = "/api/v1/api-keys"
ADA = {"external_id": "ada", "plan": "free", "identity": {"email": "ada@example.com"}}


@dataclass
class Api:
    """Calls the API with one key."""

    http: httpx.AsyncClient
    secret: str

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; headers given here come on top."""
        headers = {"Authorization": f"Bearer {self.secret}"} | options.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **options)

    async def sign_up(self, external_id: str, **fields: Any) -> dict[str, Any]:
        """A new account, with its credential."""
        answer = await self.call("POST", ACCOUNTS, json=ADA | {"external_id": external_id} | fields)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document


async def key(served: Served, name: str, *scopes: str, plans: list[str] | None = None, **limits: Any) -> Api:
    """A client with a new key."""
    limit = None if plans is None else frozenset(plans)
    _, secret = await served.parts.api_keys.create(name, parse_api_scopes(scopes), limit, TESTER, **limits)
    return Api(served.http, secret.reveal())


def assert_problem(answer: httpx.Response, status: int, words: str = "") -> None:
    """That an answer is a problem document of this status, with these words in it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["title"]
    assert document["instance"]
    assert words in document["detail"]
