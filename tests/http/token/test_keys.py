"""Signing keys change every 30 days without anybody noticing; the secret key may be replaced."""

import asyncio
import base64
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from entrepot.access.api_scopes import ApiScope
from entrepot.access.keys import Keys
from entrepot.accounts.signing import OVERLAP, PERIOD, SigningKeys
from entrepot.accounts.tokens import LIFETIME, Tokens
from entrepot.errors import SettingsInvalid, TokenInvalid
from tests.support.served import TESTER, RegistryClient, Served, serve

KEYS = Keys.derive(b"a secret of this installation")
SINCE = 1_800_000_000.0
SERVICE = "registry.example.com"


class Process:
    """What signs and verifies in one process, by its own clock."""

    def __init__(self, now: float, keys: Keys = KEYS) -> None:
        self.now = now
        self.signing = SigningKeys(keys, SINCE)
        self.tokens = Tokens(self.signing, lambda: datetime.fromtimestamp(self.now, UTC), service=SERVICE)

    def issue(self) -> str:
        return self.tokens.issue("ft-x", "id", ())


def turn(number: int) -> float:
    """The instant of a change of keys."""
    return SINCE + number * PERIOD.total_seconds()


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


@pytest.mark.parametrize("number", [1, 2, 12])
@pytest.mark.parametrize("apart", [-9, -1, 0, 1, 9])
def test_two_processes_agree_around_a_change_of_keys(number: int, apart: float) -> None:
    """Their clocks are `apart` seconds apart, as far as tokens allow; neither ever refuses what the other issued."""
    one, other = Process(0), Process(0)
    ids = set()
    for second in range(-400, 400, 7):
        one.now, other.now = turn(number) + second, turn(number) + second + apart
        for here, there in ((one, other), (other, one)):
            token = here.issue()
            ids.add(kid(token))
            there.tokens.verify(token)
            # And still at the end of its life.
            there.now += LIFETIME.total_seconds() - 10
            there.tokens.find_verified(token) or there.tokens.verify(token)
            Process(there.now).tokens.verify(token)
            there.now -= LIFETIME.total_seconds() - 10
    assert len(ids) == 2


def test_a_key_is_refused_when_its_time_is_over() -> None:
    process = Process(turn(1) - 1)
    old = kid(process.issue())
    assert process.signing.find(old, turn(1) + OVERLAP.total_seconds() - 1) is not None
    assert process.signing.find(old, turn(1) + OVERLAP.total_seconds() + 1) is None
    # A clock that is set back brings nothing back that others refuse for good.
    assert process.signing.find(old, turn(1)) is not None


def test_the_first_key_is_that_of_versions_before_rotation() -> None:
    """They run beside this one while it takes their place; neither refuses the other's tokens."""
    now = int(SINCE) + 100
    private = Ed25519PrivateKey.from_private_bytes(
        # As version 0.1 derived it.
        bytes.fromhex("3096a429c8a19c64de1ee6b795cfa73ba9b672e1c427e1cc697cb2264b0bcfde")
    )
    claims: dict[str, Any] = {"iss": "entrepot", "aud": SERVICE, "sub": "ft-x", "cid": "id", "access": []}
    claims |= {"iat": now, "nbf": now, "exp": now + 300, "jti": "x"}
    process = Process(now)
    token = jwt.encode(claims, private, algorithm="EdDSA", headers={"kid": kid(process.issue())})
    assert process.tokens.verify(token).account == "ft-x"
    read = jwt.decode(
        process.issue(),
        private.public_key(),
        algorithms=["EdDSA"],
        audience=SERVICE,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert read["sub"] == "ft-x"


@pytest.mark.parametrize("headers", [{"kid": "0" * 16}, {"kid": ""}, {}], ids=["unknown", "empty", "none"])
def test_a_key_is_chosen_by_its_name_alone(headers: dict[str, str]) -> None:
    now = int(SINCE) + 100
    private = Ed25519PrivateKey.from_private_bytes(KEYS.signing(0))
    claims = {"iss": "entrepot", "aud": SERVICE, "sub": "x", "cid": "id", "access": [], "nbf": now, "exp": now + 300}
    token = jwt.encode(claims, private, algorithm="EdDSA", headers=headers)
    with pytest.raises(TokenInvalid, match="no key that holds here"):
        Process(now).tokens.verify(token)


async def test_the_key_set_verifies_tokens(served: Served, customer: RegistryClient) -> None:
    """By a library that knows nothing of us."""
    answer = await served.http.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "public, max-age=3600"
    keys = jwt.PyJWKSet.from_dict(answer.json())
    token = await customer.token("repository:smm/api:pull")
    claims = jwt.decode(token, keys[kid(token)], audience="127.0.0.1:8080", issuer="entrepot")
    assert claims["sub"] == customer.credential.username
    for key in answer.json()["keys"]:
        assert key.keys() == {"kty", "crv", "x", "kid", "alg", "use"}  # and no private half
        assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("OKP", "Ed25519", "EdDSA", "sig")
        assert len(base64.urlsafe_b64decode(key["x"] + "=")) == 32


def test_the_key_set_has_the_next_key_long_before_it_signs() -> None:
    process = Process(turn(1) - 1)
    before = [key["kid"] for key in process.tokens.describe_keys()["keys"]]
    process.now = turn(1)
    assert kid(process.issue()) in before
    assert set(before) < {key["kid"] for key in process.tokens.describe_keys()["keys"]}
    process.now = turn(1) + OVERLAP.total_seconds() + 1
    assert len(process.tokens.describe_keys()["keys"]) == 2


async def test_two_servers_change_keys_while_they_serve(tmp_path: Path) -> None:
    """On one database, over the very moment."""
    async with serve(tmp_path / "data") as one:
        since = int(time.time()) - PERIOD.total_seconds() + 2
        one.parts.database.remember("signing_keys_since", str(int(since)))
        customer = await one.client("free")
    async with serve(tmp_path / "data") as one, serve(tmp_path / "data") as other:
        ids = set()
        deadline = time.monotonic() + 30
        turned_at = float("inf")
        while time.monotonic() < min(deadline, turned_at):
            for here, there in ((one, other), (other, one)):
                token = (await here.http.get("/token", headers=customer.basic)).json()["token"]
                ids.add(kid(token))
                answer = await there.http.get("/v2/", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 200
            if len(ids) == 2 and turned_at == float("inf"):
                turned_at = time.monotonic() + 0.3
            await asyncio.sleep(0.01)
        assert len(ids) == 2


OLD, NEW, OTHER = "0" * 32, "1" * 32, "2" * 32


class TestReplacingTheSecretKey:
    """Each way that the reference describes, over one data folder."""

    async def test_step_by_step_nobody_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        async with serve(folder, secret_key=OLD) as before:
            customer = await before.client("free")
            key = await before.parts.api_keys.create("platform", frozenset([ApiScope.ACCOUNTS_READ]), None, TESTER)
            refresh = (await before.http.get("/token?offline_token=1", headers=customer.basic)).json()
            assert "refresh_token" not in refresh
            refresh = (await before.http.get("/token?offline_token=true", headers=customer.basic)).json()
        # First every process gets to know the new one, then it takes the old one's place.
        async with (
            serve(folder, secret_key=OLD, earlier_secret_keys=NEW) as first,
            serve(folder, secret_key=NEW, earlier_secret_keys=f"{OLD}, {OTHER}") as second,
        ):
            for here, there in ((first, second), (second, first)):
                for server in (here, there):
                    assert (await server.http.get("/v2/", headers=customer.basic)).status_code == 200
                    form = {"grant_type": "refresh_token", "refresh_token": refresh["refresh_token"]}
                    assert (await server.http.post("/token", data=form)).status_code == 200
                    headers = {"Authorization": f"Bearer {key[1].reveal()}"}
                    assert (await server.http.get("/api/v1/accounts", headers=headers)).status_code == 200
                token = (await here.http.get("/token", headers=customer.basic)).json()["token"]
                for bearer in (token, refresh["token"]):
                    answer = await there.http.get("/v2/", headers={"Authorization": f"Bearer {bearer}"})
                    assert answer.status_code == 200
            new = await second.client("free", "another")
        # Who got a credential since then needs the old one no longer.
        async with serve(folder, secret_key=NEW) as after:
            assert (await after.http.get("/v2/", headers=new.basic)).status_code == 200
            assert (await after.http.get("/v2/", headers=customer.basic)).status_code == 401
        with pytest.raises(SettingsInvalid, match="belongs to another secret key"):
            async with serve(folder, secret_key=OLD):
                pass

    async def test_a_leaked_one_signs_nothing_any_more(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        async with serve(folder, secret_key=OLD) as before:
            customer = await before.client("free")
            stolen = (await before.http.get("/token?offline_token=true", headers=customer.basic)).json()
        async with serve(folder, secret_key=NEW, leaked_secret_keys=OLD) as after:
            assert (await after.http.get("/v2/", headers=customer.basic)).status_code == 200
            answer = await after.http.get("/v2/", headers={"Authorization": f"Bearer {stolen['token']}"})
            assert answer.status_code == 401
            form = {"grant_type": "refresh_token", "refresh_token": stolen["refresh_token"]}
            assert (await after.http.post("/token", data=form)).status_code == 401
            # The old key is not among those that others should believe.
            published = (await after.http.get("/.well-known/jwks.json")).json()["keys"]
            assert kid(stolen["token"]) not in {key["kid"] for key in published}


def test_keys_are_shown_nowhere() -> None:
    keys = Keys.derive(b"s" * 32, earlier=[b"e" * 32], leaked=[b"l" * 32])
    assert repr(keys) == "Keys()"
    assert len({*keys.hashing, keys.names, keys.refresh, keys.signing(0), keys.signing(1)}) == 7
