"""API keys for programs that hold no secret: a token of their platform in, a short-lived key out."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import sqlalchemy as sa
from aiohttp import web

from entrepot.accounts.issuer_keys import IssuerKeys
from entrepot.accounts.issuers import Issuer
from entrepot.errors import IssuerUnavailable, SettingsInvalid, WorkloadTokenInvalid
from entrepot.settings import Settings
from entrepot.storage.tables import api_keys
from tests.support.api import ACCOUNTS, ADA, API_KEYS, Api, assert_problem
from tests.support.issuer import AUDIENCE, DISCOVERY, HOUR, KEYS, FakeIssuer, issuing, jwk, private_key, public_pem
from tests.support.served import Served, rows_of, serve
from tests.support.servers import make_certificate

EXCHANGE = "/api/v1/oidc/token"
WORKLOAD = {
    "name": "signup",
    "claims": {"sub": "system:serviceaccount:web:signup"},
    "scopes": ["accounts:write"],
    "plans": ["free"],
    "own_accounts_only": True,
}


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    async with issuing() as issuer:
        yield issuer


@pytest.fixture
def variant(variant: dict[str, Any], issuer: FakeIssuer) -> dict[str, Any]:
    reader = {"name": "reader", "claims": {"sub": "system:serviceaccount:web:*"}, "scopes": ["accounts:read"]}
    return variant | {"oidc": {"issuers": [{"url": issuer.url, "audience": AUDIENCE, "workloads": [WORKLOAD, reader]}]}}


async def exchange(served: Served, token: str) -> httpx.Response:
    return await served.http.post(EXCHANGE, json={"token": token})


async def exchanged(served: Served, token: str) -> tuple[Api, dict[str, Any]]:
    answer = await exchange(served, token)
    assert answer.status_code == 201, answer.text
    return Api(served.http, answer.json()["secret"]), answer.json()["api_key"]


async def test_a_service_account_signs_customers_up(served: Served, admin: Api, issuer: FakeIssuer) -> None:
    api, described = await exchanged(served, issuer.token())
    assert described["workload"] == "signup"
    assert (described["scopes"], described["plans"], described["own_accounts_only"]) == (
        ["accounts:write"],
        ["free"],
        True,
    )
    lifetime = datetime.fromisoformat(described["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=14) < lifetime <= timedelta(minutes=15)
    name = (await api.sign_up("ada"))["account"]["name"]
    assert_problem(await api.call("GET", "/api/v1/plans"), 403)
    # Whatever key it has at the moment, the accounts are the workload's own.
    later, again = await exchanged(served, issuer.token())
    assert again["name"] != described["name"]
    assert (await later.call("GET", f"{ACCOUNTS}/{name}")).status_code == 200
    await admin.sign_up("other")
    assert len((await later.call("GET", ACCOUNTS)).json()["accounts"]) == 1
    # So is an answer that is asked for again.
    headers = {"Idempotency-Key": "once"}
    first = await api.call("POST", ACCOUNTS, json=ADA | {"external_id": "bob"}, headers=headers)
    second = await later.call("POST", ACCOUNTS, json=ADA | {"external_id": "bob"}, headers=headers)
    assert first.status_code == second.status_code == 201
    assert second.headers["idempotency-replayed"] == "true"
    assert issuer.asked == {DISCOVERY: 1, KEYS: 1}


async def test_the_audit_log_tells_who_it_was(served: Served, admin: Api, issuer: FakeIssuer) -> None:
    token = issuer.token()
    api, described = await exchanged(served, token)
    name = (await api.sign_up("ada"))["account"]["name"]
    await exchanged(served, token)
    rows = (await admin.call("GET", "/api/v1/audit?actor=oidc:signup")).json()["audit"]
    assert [row["action"] for row in rows] == [
        "api_key.created",
        "credential.issued",
        "account.created",
        "api_key.created",
    ]
    assert (rows[2]["target"], rows[2]["detail"]["key"]) == (name, described["name"])
    # The same token once more is fine, and seen.
    for row, times in ((rows[3], 0), (rows[0], 1)):
        assert row["address"] == "127.0.0.1"
        assert row["detail"]["subject"] == "system:serviceaccount:web:signup"
        assert row["detail"]["issuer"] == issuer.url
        assert row["detail"]["times"] == times
    assert token not in str(rows_of(served))


async def test_its_key_is_listed_and_revoked_as_any_other(served: Served, admin: Api, issuer: FakeIssuer) -> None:
    api, described = await exchanged(served, issuer.token())
    name = described["name"]
    assert name in [one["name"] for one in (await admin.call("GET", API_KEYS)).json()["api_keys"]]
    assert_problem(await admin.call("POST", f"{API_KEYS}/{name}/rotation"), 409, "workload")
    assert (await admin.call("DELETE", f"{API_KEYS}/{name}")).status_code == 204
    assert_problem(await api.call("GET", ACCOUNTS), 401, "revoked")


async def test_a_key_lives_no_longer_than_its_token_and_is_dropped_later(
    served: Served, admin: Api, issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = now() + 300
    api, described = await exchanged(served, issuer.token(exp=exp))
    assert datetime.fromisoformat(described["expires_at"]).timestamp() == exp
    assert (await api.call("GET", ACCOUNTS)).status_code == 200
    with monkeypatch.context() as later:
        later.setattr(served.parts.api_keys, "_clock", lambda: datetime.fromtimestamp(exp, UTC))
        assert_problem(await api.call("GET", ACCOUNTS), 401, "expired")

    def grow_old(connection: sa.Connection) -> None:
        change = sa.update(api_keys).where(api_keys.c.name == described["name"])
        connection.execute(change.values(expires_at=datetime.now(UTC) - timedelta(hours=25)))

    served.parts.database.write_now(grow_old)
    await exchanged(served, issuer.token())
    names = [one["name"] for one in (await admin.call("GET", API_KEYS)).json()["api_keys"]]
    assert described["name"] not in names
    assert "root" in names


async def test_the_first_workload_that_fits_is_taken(served: Served, issuer: FakeIssuer) -> None:
    _, described = await exchanged(served, issuer.token(sub="system:serviceaccount:web:other"))
    assert described["workload"] == "reader"
    for subject in (
        "system:serviceaccount:shop:signup",
        "system:serviceaccount:web:a:b",
        "system:serviceaccount:web:a/b",
    ):
        assert_problem(await exchange(served, issuer.token(sub=subject)), 403, "no workload")


def _unsigned(issuer: FakeIssuer) -> str:
    _, payload, _ = issuer.token().split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "first"}).encode()).decode().rstrip("=")
    return f"{header}.{payload}."


def _signed_with_the_public_key(issuer: FakeIssuer) -> str:
    """The old trick: the public key's file as the shared secret of HS256."""
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "kid": "first", "typ": "JWT"}, _claims(issuer))
    )
    key = jwt.get_algorithm_by_name("HS256")
    signature = key.sign(f"{header}.{payload}".encode(), public_pem(private_key("RS256")))
    return f"{header}.{payload}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _claims(issuer: FakeIssuer) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(issuer.token(), options={"verify_signature": False})
    return claims


def now() -> int:
    return int(time.time())


FORGED: dict[str, tuple[Callable[[FakeIssuer], str], str]] = {
    "nothing": (lambda _: "", "no token"),
    "no token": (lambda _: "eyJ.eyJ.x", "no token"),
    "too long": (lambda one: one.token(pad="x" * 20_000), "no token"),
    "deep": (lambda _: "." + base64.urlsafe_b64encode(b"[" * 9000).decode() + ".", "no token"),
    "an API key": (lambda _: "entk_" + "0" * 36, "no token"),
    "no algorithm": (_unsigned, "does not hold"),
    "the public key as a secret": (_signed_with_the_public_key, "does not hold"),
    "another key": (lambda one: one.token(key=private_key("RS256", 1)), "does not hold"),
    "an algorithm that its key is not for": (lambda one: one.token(algorithm="ES256"), "does not hold"),
    "an algorithm of the same key": (
        lambda one: one.token(key=private_key("RS256"), algorithm="PS256"),
        "does not hold",
    ),
    "a key that is not listed": (lambda one: one.token(headers={"kid": "second"}), "does not list"),
    "a key that the token brings": (
        lambda one: one.token(
            key=private_key("RS256", 1), headers={"jwk": jwk("x", "RS256", private_key("RS256", 1)), "kid": "first"}
        ),
        "does not hold",
    ),
    "tampered": (lambda one: "a".join(one.token().rsplit(".", 1)), "no token"),
    "another audience": (lambda one: one.token(aud=["https://kubernetes.default.svc"]), "another audience"),
    "no audience": (lambda one: one.token(aud=None), "no token"),
    "an audience that is part of ours": (lambda one: one.token(aud=AUDIENCE[:-1]), "another audience"),
    "another issuer": (lambda one: one.token(iss="https://evil.example.com"), "issuer is not one"),
    "an issuer with a slash": (lambda one: one.token(iss=one.url + "/"), "issuer is not one"),
    "no issuer": (lambda one: one.token(iss=None), "no token"),
    "issuer is a list": (lambda one: one.token(iss=[one.url]), "no token"),
    "no subject": (lambda one: one.token(sub=None), "does not hold"),
    "empty subject": (lambda one: one.token(sub=""), "subject"),
    "long subject": (lambda one: one.token(sub="system:serviceaccount:web:" + "x" * 300), "subject"),
    "control character in the subject": (lambda one: one.token(sub="system:serviceaccount:web:a\n"), "subject"),
    "expired": (lambda one: one.token(iat=now() - 2 * HOUR, nbf=now() - 2 * HOUR, exp=now() - HOUR), "expired"),
    "no end": (lambda one: one.token(exp=None), "does not hold"),
    "no beginning": (lambda one: one.token(iat=None), "does not hold"),
    "not yet": (lambda one: one.token(nbf=now() + HOUR), "not valid yet"),
    "issued in the future": (lambda one: one.token(iat=now() + HOUR, exp=now() + 2 * HOUR), "not valid yet"),
    "lives too long": (lambda one: one.token(exp=now() + 90_000), "more than a day"),
    "never ends": (lambda one: one.token(exp=10**300), "no time"),
    "ends at infinity": (lambda one: one.token(exp=float("inf")), "no time"),
    "end is text": (lambda one: one.token(exp="tomorrow"), "no time"),
    "end is true": (lambda one: one.token(exp=True), "no time"),
}


async def test_forged_tokens_get_nothing(served: Served, issuer: FakeIssuer) -> None:
    rows = rows_of(served)
    for name, (forge, words) in FORGED.items():
        answer = await exchange(served, forge(issuer))
        assert answer.status_code == 401, f"{name}: {answer.text}"
        assert_problem(answer, 401, words)
    assert rows_of(served) == rows
    # However many keys were named that it does not have, the issuer was asked once.
    assert issuer.asked[KEYS] == 1
    assert (await exchange(served, issuer.token())).status_code == 201


async def test_a_token_is_no_api_key(served: Served, issuer: FakeIssuer) -> None:
    headers = {"Authorization": f"Bearer {issuer.token()}"}
    assert_problem(await served.http.get(ACCOUNTS, headers=headers), 401, "not an API key")


async def test_all_keys_of_a_workload_share_its_rate_and_their_number_is_bounded(
    served: Served, admin: Api, issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.accounts.workloads._MAX_ALIVE", 3)
    names = {(await exchanged(served, issuer.token()))[1]["name"] for _ in range(3)}
    refused = await exchange(served, issuer.token())
    assert_problem(refused, 429, "3 keys that still hold")
    assert refused.headers["retry-after"] == "60"
    assert len(names) == 3


async def test_a_server_without_issuers_says_so(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        assert_problem(await exchange(served, "x.y.z"), 401, "ENTREPOT_OIDC__ISSUERS")


class TestKeysOfAnIssuer:
    """What is fetched, and when."""

    @pytest.fixture
    def clock(self) -> list[float]:
        return [1000.0]

    @pytest.fixture
    def keys(self, issuer: FakeIssuer, clock: list[float]) -> IssuerKeys:
        return IssuerKeys(Issuer(issuer.url, AUDIENCE, ()), clock=lambda: clock[0])

    async def test_a_new_key_is_found_and_the_issuer_is_not_asked_more_than_it_takes(
        self, keys: IssuerKeys, issuer: FakeIssuer, clock: list[float]
    ) -> None:
        await asyncio.gather(*(keys.get("first") for _ in range(10)))
        assert issuer.asked[KEYS] == 1
        issuer.keys.append(jwk("second", "ES256", private_key("ES256")))
        for _ in range(5):
            with pytest.raises(WorkloadTokenInvalid):
                await keys.get("second")
        assert issuer.asked[KEYS] == 1
        clock[0] += 31
        assert (await keys.get("second")).algorithm == "ES256"
        clock[0] += 31
        await keys.get("first")
        assert issuer.asked[KEYS] == 2
        # A key that was taken away is known for an hour at most.
        del issuer.keys[0]
        clock[0] += 3600
        with pytest.raises(WorkloadTokenInvalid):
            await keys.get("first")

    async def test_keys_outlive_an_issuer_that_is_away_for_a_day(
        self, keys: IssuerKeys, issuer: FakeIssuer, clock: list[float]
    ) -> None:
        await keys.get("first")

        async def fail(_: web.Request) -> web.StreamResponse:
            return web.Response(status=500)

        issuer.misbehave = fail
        clock[0] += 80_000
        assert (await keys.get("first")).algorithm == "RS256"
        clock[0] += 10_000
        with pytest.raises(IssuerUnavailable):
            await keys.get("first")
        issuer.misbehave = None
        clock[0] += 6
        await keys.get("first")

    async def test_what_is_no_list_of_keys_is_none(self, issuer: FakeIssuer) -> None:
        async def slow(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0 if request.path == DISCOVERY else 60)
            return web.Response()

        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b" " * 65536)

        def document(path: str, body: object, status: int = 200, **headers: str) -> Any:
            async def answer(request: web.Request) -> web.StreamResponse | None:
                text = body if isinstance(body, str) else json.dumps(body)
                return web.Response(text=text, status=status, headers=headers) if request.path == path else None

            return answer

        found = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}{KEYS}"}
        for misbehave in (
            endless,
            document(DISCOVERY, "no JSON"),
            document(DISCOVERY, "[" * 100_000),
            document(DISCOVERY, []),
            document(DISCOVERY, {}),
            document(DISCOVERY, found, 404),
            document(DISCOVERY, found | {"issuer": f"{issuer.url}/"}),
            document(DISCOVERY, found | {"jwks_uri": "http://keys.example.com/"}),
            document(DISCOVERY, found | {"jwks_uri": "file:///etc/passwd"}),
            document(DISCOVERY, found | {"jwks_uri": 7}),
            document(DISCOVERY, "", 302, Location=f"{issuer.url}/elsewhere"),
            document(KEYS, "no JSON"),
            document(KEYS, {"keys": issuer.keys}, 500),
        ):
            issuer.misbehave = misbehave
            with pytest.raises(IssuerUnavailable):
                await IssuerKeys(Issuer(issuer.url, AUDIENCE, ())).get("first")
        issuer.misbehave = slow
        with pytest.raises(IssuerUnavailable):
            await IssuerKeys(Issuer(issuer.url, AUDIENCE, ()), deadline_seconds=0.2).get("first")

    async def test_keys_that_may_not_sign_are_passed_over(self, issuer: FakeIssuer) -> None:
        good = private_key("RS256")
        issuer.keys = [
            jwk("short", "RS256", private_key("RS256", bits=1024)),
            jwk("encrypts", "RS256", good, use="enc"),
            jwk("other algorithm", "RS256", good, alg="PS256"),
            {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "kid": "off the curve", "x": "AA", "y": "AA"},
            {"kty": ["RSA"], "kid": "shapeless"},
            "no object",  # type: ignore[list-item]
            jwk("ed", "EdDSA", private_key("EdDSA")),
            jwk("ec", "ES256", private_key("ES256")),
            jwk(None, "RS256", good),
        ]
        keys = IssuerKeys(Issuer(issuer.url, AUDIENCE, ()))
        assert [(await keys.get(one)).algorithm for one in ("ed", "ec", None)] == ["EdDSA", "ES256", "RS256"]
        for name in ("short", "encrypts", "other algorithm", "shared", "broken", "off the curve", "shapeless"):
            with pytest.raises(WorkloadTokenInvalid):
                await keys.get(name)

    async def test_without_discovery_and_with_a_token_of_our_own(self, issuer: FakeIssuer, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("own\n")
        keys_url = f"{issuer.url}{KEYS}"
        await IssuerKeys(Issuer(issuer.url, AUDIENCE, (), keys_url=keys_url, token_file=token)).get(None)
        assert issuer.asked == {KEYS: 1}
        await IssuerKeys(Issuer(issuer.url, AUDIENCE, (), token_file=token)).get(None)
        assert set(issuer.authorizations) == {"Bearer own"}

        async def elsewhere(request: web.Request) -> web.StreamResponse | None:
            found = {"issuer": issuer.url, "jwks_uri": issuer.url.replace("127.0.0.1", "localhost") + KEYS}
            return web.json_response(found) if request.path == DISCOVERY else None

        issuer.misbehave = elsewhere
        with pytest.raises(IssuerUnavailable):
            await IssuerKeys(Issuer(issuer.url, AUDIENCE, (), token_file=token)).get(None)

    async def test_its_certificate_must_hold(self, tmp_path: Path) -> None:
        private, certificate = make_certificate(tmp_path)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, private)
        async with issuing(tls) as issuer:
            await IssuerKeys(Issuer(issuer.url, AUDIENCE, (), ca_file=certificate)).get("first")
            for ca_file in (None, tmp_path / "none"):
                with pytest.raises(IssuerUnavailable):
                    await IssuerKeys(Issuer(issuer.url, AUDIENCE, (), ca_file=ca_file)).get("first")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "http://issuer.example.com"}, "https"),
        ({"url": "https://user:word@issuer.example.com"}, "https"),
        ({"keys_url": "http://10.0.0.1/keys"}, "https"),
        ({"workloads": [WORKLOAD | {"scopes": ["everything"]}]}, "everything"),
        ({"workloads": [WORKLOAD | {"scopes": ["admin"]}]}, "own_accounts_only"),
        ({"workloads": [WORKLOAD | {"claims": {"sub": "***"}}]}, "sub"),
        ({"workloads": [WORKLOAD, WORKLOAD]}, "same name"),
    ],
    ids=str,
)
def test_a_setting_that_would_open_a_hole_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    from entrepot.bootstrap import build_parts

    issuer = {"url": "https://issuer.example.com", "audience": AUDIENCE, "workloads": [WORKLOAD]} | change
    with pytest.raises(SettingsInvalid, match=words):
        build_parts(Settings(data=tmp_path, oidc={"issuers": [issuer]}))  # type: ignore[arg-type]
