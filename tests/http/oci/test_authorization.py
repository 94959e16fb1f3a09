"""Who may do what on `/v2/`: tokens, Basic, plans, revocation, and what is counted."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from entrepot.access.keys import Keys
from entrepot.access.plans import parse_plans
from entrepot.accounts.signing import SigningKey, SigningKeys
from entrepot.accounts.tokens import Tokens
from entrepot.bootstrap import read_secret_key
from tests.support.content import index_of
from tests.support.served import TESTER, RegistryClient, Served, serve

MANIFEST = "/v2/smm/api/manifests/v1"
PULL = "repository:smm/api:pull"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def get(served: Served, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(status, first error code, its message) of a GET."""
    answer = await served.http.get(path, headers=headers or {})
    error = answer.json()["errors"][0] if answer.status_code >= 400 else {"code": "", "message": ""}
    return answer.status_code, error["code"], error["message"]


async def verify_soon(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Whatever is asked for more than a second after a change, made just now, shows it, however long that takes."""
    changed_at = begun_at = time.monotonic()
    while not await is_so():
        assert begun_at - changed_at < 1
        await asyncio.sleep(0.005)
        begun_at = time.monotonic()


async def test_challenge_names_realm_service_and_scope(served: Served) -> None:
    answer = await served.http.get(MANIFEST)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == (
        'Bearer realm="http://127.0.0.1:8080/token",service="127.0.0.1:8080",scope="repository:smm/api:pull"'
    )
    answer = await served.http.post("/v2/smm/api/blobs/uploads/")
    assert 'scope="repository:smm/api:pull,push"' in answer.headers["www-authenticate"]
    answer = await served.http.get("/v2/_catalog")
    assert 'scope="registry:catalog:*"' in answer.headers["www-authenticate"]


async def test_customer_pulls_with_token_and_with_basic(
    served: Served, publisher: RegistryClient, customer: RegistryClient
) -> None:
    image = await publisher.push_image("smm/api", "v1")
    assert (await served.http.get(MANIFEST, headers=bearer(await customer.token(PULL)))).content == image.manifest
    assert (await customer.call("GET", MANIFEST)).content == image.manifest


async def test_plan_decides_and_says_why(served: Served, publisher: RegistryClient, customer: RegistryClient) -> None:
    await publisher.push_image("internal/api", "v1")
    reason = "plan 'free' does not allow pull on 'internal/api'"
    token = await customer.token("repository:internal/api:pull")
    for path in ("/v2/internal/api/manifests/v1", "/v2/internal/api/tags/list", "/v2/internal/api/manifests/none"):
        for headers in (bearer(token), customer.basic):
            status, code, message = await get(served, path, headers)
            assert (status, code) == (403, "DENIED")
            assert reason in message
    answer = await customer.call("POST", "/v2/smm/api/blobs/uploads/")
    assert answer.status_code == 403
    answer = await customer.call("DELETE", MANIFEST)
    assert answer.status_code == 403


async def test_catalog_shows_only_what_the_plan_allows(publisher: RegistryClient, customer: RegistryClient) -> None:
    for name in ("internal/api", "smm/api", "smm/web", "charts/smm", "zzz"):
        await publisher.push_blob(name, b"x")
    assert (await customer.call("GET", "/v2/_catalog")).json()["repositories"] == ["charts/smm", "smm/api", "smm/web"]
    page = await customer.call("GET", "/v2/_catalog?n=2")
    assert page.json()["repositories"] == ["charts/smm", "smm/api"]
    assert page.headers["link"] == '</v2/_catalog?n=2&last=smm/api>; rel="next"'


async def test_token_for_another_repository_asks_for_a_new_one(
    served: Served, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1")
    token = await customer.token("repository:smm/web:pull")
    answer = await served.http.get(MANIFEST, headers=bearer(token))
    assert answer.status_code == 401
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert f'scope="{PULL}"' in answer.headers["www-authenticate"]


def sign(served: Served, **changes: Any) -> str:
    """A token with our own key, unless `key` is another, and its id, unless `kid` is."""
    now = int(time.time())
    own = SigningKey.of(Keys.derive(read_secret_key(served.parts.settings)).signing(0))
    key = changes.pop("key", own.private)
    headers = {"kid": changes.pop("kid", own.id)}
    algorithm = changes.pop("algorithm", "EdDSA")
    payload = {
        "iss": "entrepot",
        "aud": "127.0.0.1:8080",
        "sub": changes.pop("account", "nobody"),
        "cid": "x",
        "iat": now,
        "nbf": now,
        "exp": now + 300,
        "access": [{"type": "repository", "name": "smm/api", "actions": ["pull"]}],
    } | changes
    content = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(content, key, algorithm=algorithm, headers=headers)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"exp": int(time.time()) - 60}, id="expired"),
        pytest.param({"nbf": int(time.time()) + 86400}, id="not valid yet"),
        pytest.param({"aud": "registry.example.com"}, id="for another service"),
        pytest.param({"iss": "someone"}, id="from another issuer"),
        pytest.param({"key": Ed25519PrivateKey.generate()}, id="signed with another key"),
        pytest.param({"key": "x" * 32, "algorithm": "HS256"}, id="signed with another algorithm"),
        pytest.param({"kid": "0" * 16}, id="signed with an unknown key's name"),
        pytest.param({"exp": None}, id="without an end"),
        pytest.param({"exp": "soon"}, id="end is text"),
        pytest.param({"cid": None}, id="without a credential"),
        pytest.param({"access": "all"}, id="access no list"),
        pytest.param({"cid": "00000000-0000-0000-0000-000000000000"}, id="of no credential"),
    ],
)
async def test_foreign_tokens_are_refused(
    served: Served, publisher: RegistryClient, customer: RegistryClient, changes: dict[str, Any]
) -> None:
    await publisher.push_image("smm/api", "v1")
    valid = {"account": customer.credential.username, "cid": customer.credential.id}
    assert (await get(served, MANIFEST, bearer(sign(served, **valid))))[0] == 200
    answer = await served.http.get(MANIFEST, headers=bearer(sign(served, **(valid | changes))))
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_unsigned_and_tampered_tokens_are_refused(
    served: Served, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1")
    token = await customer.token(PULL)
    head, payload, signature = token.split(".")

    def encode(document: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")

    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["access"][0]["name"] = "internal/api"
    forged = [
        f"{encode({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        f"{encode({'alg': 'none', 'typ': 'JWT'})}.{payload}.{signature}",
        f"{encode(jwt.get_unverified_header(token) | {'alg': 'none'})}.{payload}.{signature}",
        f"{encode(jwt.get_unverified_header(token) | {'kid': [1]})}.{payload}.{signature}",
        f"{head}.{encode(claims)}.{signature}",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        f"{head}.{payload}",
        "",
        "a.b.c",
        "x" * 30_000,
        "\x00",
    ]
    for one in forged:
        status, code, _ = await get(served, MANIFEST, {"Authorization": f"Bearer {one}"})
        assert (status, code) == (401, "UNAUTHORIZED"), one[:60]


async def test_expired_token_is_refused_even_when_it_was_used_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(tmp_path / "data") as served:
        publisher, customer = await served.client("publisher"), await served.client("free")
        await publisher.push_image("smm/api", "v1")
        token = await customer.token(PULL)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 200
        later = datetime.now(UTC) + timedelta(minutes=6)
        for part in (served.parts.tokens, served.parts.authenticator):
            monkeypatch.setattr(part, "_clock", lambda: later)
        status, _, message = await get(served, MANIFEST, bearer(token))
        assert status == 401
        assert "expired" in message


class TestRevocation:
    """Each way to take a right away ends tokens already issued, at once."""

    @pytest.fixture
    async def token(self, served: Served, publisher: RegistryClient, customer: RegistryClient) -> str:
        await publisher.push_image("smm/api", "v1")
        token = await customer.token(PULL)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 200
        return token

    async def test_revoked_credential(self, served: Served, customer: RegistryClient, token: str) -> None:
        credential = customer.credential
        await served.parts.accounts.revoke_credential(credential.username, credential.id, TESTER)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 401
        status, _, message = await get(served, MANIFEST, customer.basic)
        assert status == 401
        assert "revoked" in message

    async def test_suspended_account_resumes_with_the_same_secret(
        self, served: Served, customer: RegistryClient, token: str
    ) -> None:
        name = customer.credential.username
        await served.parts.accounts.suspend(name, TESTER)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 401
        await served.parts.accounts.resume(name, TESTER)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 200
        assert (await get(served, MANIFEST, customer.basic))[0] == 200

    async def test_deleted_account(self, served: Served, customer: RegistryClient, token: str) -> None:
        await served.parts.accounts.delete(customer.credential.username, TESTER)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 401
        again = await served.client("free")
        assert again.credential.username == customer.credential.username
        assert (await get(served, MANIFEST, bearer(token)))[0] == 401
        assert (await get(served, MANIFEST, customer.basic))[0] == 401
        assert (await get(served, MANIFEST, again.basic))[0] == 200

    async def test_narrower_plan(self, served: Served, token: str) -> None:
        narrow = {"plans": {"free": {"grants": [{"repositories": ["other"], "actions": ["pull"]}]}}}
        await served.parts.plans.apply(parse_plans(narrow), TESTER)
        status, code, _ = await get(served, MANIFEST, bearer(token))
        assert (status, code) == (403, "DENIED")

    async def test_account_moved_to_another_plan(self, served: Served, customer: RegistryClient, token: str) -> None:
        other = {"plans": {"other": {"grants": [{"repositories": ["other"], "actions": ["pull"]}]}}}
        await served.parts.plans.apply(parse_plans(other), TESTER)
        await served.parts.accounts.change_plan(customer.credential.username, "other", TESTER)
        assert (await get(served, MANIFEST, bearer(token)))[0] == 403

    async def test_in_another_process_within_a_second(
        self, served: Served, customer: RegistryClient, token: str, tmp_path: Path
    ) -> None:
        async with serve(tmp_path / "data") as other:
            assert (await get(other, MANIFEST, bearer(token)))[0] == 200
            credential = customer.credential
            await served.parts.accounts.revoke_credential(credential.username, credential.id, TESTER)

            async def is_refused() -> bool:
                return (await get(other, MANIFEST, bearer(token)))[0] != 200

            await verify_soon(is_refused)

    async def test_moved_and_deleted_tag_in_another_process_within_a_second(
        self, publisher: RegistryClient, token: str, tmp_path: Path
    ) -> None:
        async with serve(tmp_path / "data") as other:
            assert (await get(other, MANIFEST, bearer(token)))[0] == 200
            moved = await publisher.push_image("smm/api", "v1")

            async def is_moved() -> bool:
                return (await other.http.get(MANIFEST, headers=bearer(token))).content == moved.manifest

            await verify_soon(is_moved)
            await publisher.call("DELETE", MANIFEST)

            async def is_gone() -> bool:
                return (await get(other, MANIFEST, bearer(token)))[0] == 404

            await verify_soon(is_gone)


class TestUsage:
    async def pulls(self, served: Served, client: RegistryClient) -> tuple[int, int]:
        await served.parts.usage.flush()
        account = await served.parts.accounts.get(client.credential.username)
        parts = (await served.parts.reports.usage_of(account.id)).repositories
        return sum(part.pulls for part in parts), sum(part.bytes_served for part in parts)

    async def test_counts_one_pull_for_an_index_its_child_and_its_blobs(
        self, served: Served, publisher: RegistryClient, customer: RegistryClient
    ) -> None:
        from entrepot.oci import media_types
        from entrepot.oci.digest import Digest

        image = await publisher.push_image("smm/api", "amd64")
        index = index_of(image)
        await publisher.push_manifest("smm/api", "v1", index, media_types.OCI_INDEX)
        await customer.call("HEAD", MANIFEST)
        assert await self.pulls(served, customer) == (0, 0)
        await customer.call("GET", MANIFEST)
        await customer.call("GET", f"/v2/smm/api/manifests/{image.digest}")
        await customer.call("GET", f"/v2/smm/api/blobs/{Digest.of(image.layer)}")
        await customer.call("GET", f"/v2/smm/api/blobs/{Digest.of(image.layer)}", headers={"Range": "bytes=0-9"})
        assert await self.pulls(served, customer) == (1, len(index) + len(image.manifest) + 1000 + 10)
        other = index_of(await publisher.push_image("smm/api", "arm64"))
        await publisher.push_manifest("smm/api", "v2", other, media_types.OCI_INDEX)
        await customer.call("GET", f"/v2/smm/api/manifests/{Digest.of(other)}")
        assert (await self.pulls(served, customer))[0] == 2

    async def test_the_same_again_within_a_minute_is_a_check_and_no_pull(
        self, served: Served, publisher: RegistryClient, customer: RegistryClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = await publisher.push_image("smm/api", "v1")
        now = time.time()
        monkeypatch.setattr(served.parts.usage, "_clock", lambda: now)
        for path in (MANIFEST, f"/v2/smm/api/manifests/{image.digest}", MANIFEST):
            await customer.call("GET", path)
        assert await self.pulls(served, customer) == (1, 3 * len(image.manifest))
        now += 61
        await customer.call("GET", MANIFEST)
        now -= 3600  # a clock that was set back
        await customer.call("GET", MANIFEST)
        assert (await self.pulls(served, customer))[0] == 3

    async def test_looking_for_signatures_is_no_pull(
        self, served: Served, publisher: RegistryClient, customer: RegistryClient
    ) -> None:
        image = await publisher.push_image("smm/api", "v1")
        signature = f"sha256-{image.digest.hex}.sig"
        await publisher.push_image("smm/api", signature)
        assert (await customer.call("GET", f"/v2/smm/api/manifests/{signature}")).status_code == 200
        assert (await self.pulls(served, customer))[0] == 0

    async def test_refused_pull_is_not_counted(self, served: Served, customer: RegistryClient) -> None:
        await customer.call("GET", "/v2/internal/api/manifests/v1")
        await customer.call("GET", MANIFEST)
        assert await self.pulls(served, customer) == (0, 0)

    async def test_counts_survive_a_database_that_is_away(
        self, served: Served, publisher: RegistryClient, customer: RegistryClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from entrepot.errors import DatabaseUnavailable

        await publisher.push_image("smm/api", "v1")
        await publisher.push_image("smm/api", "v2")
        await customer.call("GET", MANIFEST)
        with monkeypatch.context() as patched:

            def fail(_work: object) -> None:
                raise DatabaseUnavailable("away")

            patched.setattr(served.parts.usage._database, "write_now", fail)
            await served.parts.usage.flush()
            assert (await customer.call("GET", "/v2/smm/api/manifests/v2")).status_code == 200
        assert (await self.pulls(served, customer))[0] == 2


async def test_wrong_credentials_are_told_apart_by_nobody(served: Served, customer: RegistryClient) -> None:
    from entrepot.access.secrets import Secret

    other = Secret.generate("entp").reveal()
    name = customer.credential.username
    messages = set()
    for username, secret in ((name, other), ("ft-unknown", other), (name, "entp_typo"), ("", ""), (name, "x" * 5000)):
        pair = base64.b64encode(f"{username}:{secret}".encode()).decode()
        status, code, message = await get(served, "/v2/", {"Authorization": f"Basic {pair}"})
        assert (status, code) == (401, "UNAUTHORIZED")
        messages.add(message)
    assert len(messages) == 1


@pytest.mark.parametrize("value", ["Basic", "Basic ???", "Basic " + base64.b64encode(b"no colon").decode(), "Digest x"])
async def test_unreadable_authorization_is_refused(served: Served, value: str) -> None:
    assert (await get(served, "/v2/", {"Authorization": value}))[0] == 401


def test_tokens_are_small(tmp_path: Path) -> None:
    """A header of more than 8 KiB is refused by many proxies."""
    keys = SigningKeys(Keys.derive(b"x" * 32), 0)
    tokens = Tokens(keys, lambda: datetime.now(UTC), service="registry.example.com")
    from entrepot.access.scopes import parse_scopes

    scopes = parse_scopes([f"repository:{'a' * 100}/{number}:pull,push" for number in range(10)])
    assert len(tokens.issue("ft-" + "a" * 20, "x" * 36, scopes)) < 4096
