"""Reports of leaked secrets, in the shape of GitHub's secret scanning partner program."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from entrepot.access.api_scopes import ApiScope
from entrepot.access.secrets import Secret
from entrepot.accounts import scanners
from entrepot.accounts.records import AuditFilter
from entrepot.accounts.scanners import Scanner
from entrepot.errors import ScannerUnavailable, SettingsInvalid, SignatureInvalid
from entrepot.storage.tables import events
from tests.conftest import make_variant
from tests.support.served import TESTER, Served, rows_of, serve

PATH = "/api/v1/secret-scanning/alerts"
KEY_ID = "f9525bf080f75b3506ca1ead061add62b8633a346606dc5fe544e29231c6ee0d"
PLACE = {"url": "https://github.com/octocat/Hello-World/blob/1234/config.json", "source": "content"}


def pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, form).decode())


def sign(key: ec.EllipticCurvePrivateKey, body: bytes) -> str:
    return base64.b64encode(key.sign(body, ec.ECDSA(hashes.SHA256()))).decode()


class KeyServer:
    """Where a scanner publishes its keys."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0
        self.answer = web.json_response
        self.document: Any = {"public_keys": [{"key_identifier": KEY_ID, "key": pem(self.key), "is_current": True}]}
        self.url = ""

    async def handle(self, _request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return self.answer(self.document)


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    server = KeyServer()
    application = web.Application()
    application.router.add_get("/keys", server.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield server
    await runner.cleanup()


@pytest.fixture(params=["folder-sqlite", "s3-postgresql-redis"])
async def scanned(request: pytest.FixtureRequest, key_server: KeyServer, tmp_path: Path) -> AsyncIterator[Served]:
    settings = make_variant(request)
    wanted = {"enabled": True, "keys_url": key_server.url}
    async with serve(tmp_path / "data", **settings, secret_scanning=wanted) as served:
        yield served


@pytest.fixture
async def local(key_server: KeyServer, tmp_path: Path) -> AsyncIterator[Served]:
    """For what never gets as far as the database."""
    async with serve(tmp_path / "data", secret_scanning={"enabled": True, "keys_url": key_server.url}) as served:
        yield served


async def report(served: Served, key_server: KeyServer, *tokens: str, **place: str) -> list[str]:
    """Send a report; answers its labels."""
    found = [{"token": token, "type": "entrepot_credential", **(PLACE | place)} for token in tokens]
    answer = await send(served, key_server, json.dumps(found).encode())
    assert answer.status_code == 200, answer.text
    labels = answer.json()
    assert [one["token_hash"] for one in labels] == [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    assert {one["token_type"] for one in labels} <= {"entrepot_credential"}
    assert not any(token in answer.text for token in tokens if token)
    return [one["label"] for one in labels]


async def send(served: Served, key_server: KeyServer, body: bytes, **headers: str) -> httpx.Response:
    signed = {"Github-Public-Key-Identifier": KEY_ID, "Github-Public-Key-Signature": sign(key_server.key, body)}
    return await served.http.post(PATH, content=body, headers={"Content-Type": "application/json"} | signed | headers)


def events_of(served: Served) -> list[tuple[str, dict[str, Any]]]:
    rows = served.parts.database.read_now(lambda connection: connection.execute(events.select()).all())
    return [(row.type, row.data) for row in sorted(rows, key=lambda row: row.id) if "leaked" in str(row)]


async def audit_of(served: Served, action: str) -> list[Any]:
    return await served.parts.audit.list_rows(AuditFilter(action=action), None, 10)


async def test_a_leaked_credential_is_revoked_and_the_platform_told(scanned: Served, key_server: KeyServer) -> None:
    customer, other = await scanned.client("free"), await scanned.client("free", "other")
    secret, name = customer.credential.secret.reveal(), customer.credential.username
    token = await customer.token("repository:smm/api:pull")
    assert await report(scanned, key_server, secret) == ["true_positive"]
    for headers in (customer.basic, {"Authorization": f"Bearer {token}"}):
        assert (await scanned.http.get("/v2/", headers=headers)).status_code == 401
    assert (await scanned.http.get("/v2/", headers=other.basic)).status_code == 200
    detail = {"credential": customer.credential.id, **PLACE}
    (row,) = await audit_of(scanned, "credential.leaked")
    assert (row.actor, row.target, row.detail) == ("secret-scanning", name, detail)
    assert row.request_id
    assert [kind for kind, _ in events_of(scanned)] == ["credential.leaked", "credential.revoked"]
    told = events_of(scanned)[0][1]
    assert told.items() >= {"account": name, **detail}.items()
    assert secret not in str(rows_of(scanned))


async def test_a_refresh_token_gives_away_its_credential(scanned: Served, key_server: KeyServer) -> None:
    customer = await scanned.client("free")
    answer = await scanned.http.get("/token?offline_token=true", headers=customer.basic)
    token = answer.json()["refresh_token"]
    forged = token[:40] + ("A" if token[40] != "A" else "B") + token[41:]
    assert await report(scanned, key_server, forged) == ["false_positive"]
    assert await report(scanned, key_server, f"  {token}\n".strip()) == ["true_positive"]
    assert (await scanned.http.get("/v2/", headers=customer.basic)).status_code == 401


async def test_a_leaked_api_key_is_revoked(scanned: Served, key_server: KeyServer) -> None:
    scopes = frozenset([ApiScope.ACCOUNTS_READ])
    _, secret = await scanned.parts.api_keys.create("platform", scopes, None, TESTER)
    headers = {"Authorization": f"Bearer {secret.reveal()}"}
    assert (await scanned.http.get("/api/v1/accounts", headers=headers)).status_code == 200
    assert await report(scanned, key_server, secret.reveal()) == ["true_positive"]
    assert (await scanned.http.get("/api/v1/accounts", headers=headers)).status_code == 401
    (row,) = await audit_of(scanned, "api_key.leaked")
    assert (row.target, row.detail["url"]) == ("platform", PLACE["url"])
    assert [(kind, data["api_key"]) for kind, data in events_of(scanned)] == [("credential.leaked", "platform")]


async def test_a_report_that_comes_again_changes_nothing(scanned: Served, key_server: KeyServer) -> None:
    customer, gone = await scanned.client("free"), await scanned.client("free", "gone")
    await scanned.parts.accounts.revoke_credential(gone.credential.username, gone.credential.id, TESTER)
    tokens = [customer.credential.secret.reveal()] * 2 + [gone.credential.secret.reveal()]
    assert await report(scanned, key_server, *tokens) == ["true_positive"] * 3
    before = rows_of(scanned)
    assert await report(scanned, key_server, *tokens) == ["true_positive"] * 3
    assert rows_of(scanned) == before
    assert len(await audit_of(scanned, "credential.leaked")) == 1


async def test_reports_at_the_same_time_count_once(scanned: Served, key_server: KeyServer) -> None:
    secret = (await scanned.client("free")).credential.secret.reveal()
    await asyncio.gather(*(report(scanned, key_server, secret) for _ in range(8)))
    assert len(await audit_of(scanned, "credential.leaked")) == 1
    assert len(events_of(scanned)) == 2


async def test_many_findings_are_told_apart(scanned: Served, key_server: KeyServer) -> None:
    clients = [await scanned.client("free", f"customer-{number}") for number in range(3)]
    foreign = [Secret.generate("entp").reveal() for _ in range(250)]
    odd = ["", "entp_typo", "NMIfyYncKcRALEXAMPLE", "\x00", "ü" * 40, "entr_" + "A" * 90]
    tokens = [*foreign, *(one.credential.secret.reveal() for one in clients), *odd]
    expected = ["false_positive"] * 250 + ["true_positive"] * 3 + ["false_positive"] * len(odd)
    assert await report(scanned, key_server, *tokens) == expected


async def test_what_is_kept_of_a_place_is_short_and_printable(scanned: Served, key_server: KeyServer) -> None:
    secret = (await scanned.client("free")).credential.secret.reveal()
    await report(scanned, key_server, secret, url="https://x/\x1b[31m\x00" + "y" * 3000, source="commit\n")
    (row,) = await audit_of(scanned, "credential.leaked")
    assert row.detail["url"].startswith("https://x/[31myyy")
    assert len(row.detail["url"]) <= 500
    assert row.detail["source"] == "commit"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Github-Public-Key-Signature": ""}, 401, id="no signature"),
        pytest.param({"Github-Public-Key-Identifier": ""}, 401, id="no key"),
        pytest.param({"Github-Public-Key-Identifier": "0" * 64}, 401, id="unknown key"),
        pytest.param({"Github-Public-Key-Signature": "?"}, 401, id="signature no base64"),
        pytest.param({"Github-Public-Key-Signature": "AAAA"}, 401, id="signature no DER"),
        pytest.param({"Github-Public-Key-Signature": "A" * 4000}, 401, id="long signature"),
        pytest.param(
            {"Github-Public-Key-Signature": sign(ec.generate_private_key(ec.SECP256R1()), b"[]")},
            401,
            id="another's signature",
        ),
    ],
)
async def test_nothing_that_is_not_signed_is_read(
    local: Served, key_server: KeyServer, headers: dict[str, str], status: int
) -> None:
    customer = await local.client("free")
    body = json.dumps([{"token": customer.credential.secret.reveal(), "type": "x"}]).encode()
    answer = await send(local, key_server, body, **headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await local.http.get("/v2/", headers=customer.basic)).status_code == 200


async def test_a_body_that_was_changed_is_refused(local: Served, key_server: KeyServer) -> None:
    """White space, too: what counts are the bytes."""
    signature = sign(key_server.key, b"[]")
    answer = await send(local, key_server, b"[ ]", **{"Github-Public-Key-Signature": signature})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"{}", 400, id="no array"),
        pytest.param(b"[1]", 400, id="no objects"),
        pytest.param(b'[{"type": "x"}]', 400, id="no token"),
        pytest.param(json.dumps([{"token": "x" * 2000}]).encode(), 400, id="long token"),
        pytest.param(b"[" * 100_000, 400, id="deep"),
        pytest.param(b"\xff", 400, id="not UTF-8"),
        pytest.param(json.dumps([{"token": ""}] * 5001).encode(), 400, id="too many"),
        pytest.param(b" " * 1_100_000, 413, id="too large"),
    ],
)
async def test_a_signed_body_must_be_a_report(local: Served, key_server: KeyServer, body: bytes, status: int) -> None:
    answer = await send(local, key_server, body)
    assert answer.status_code == status, answer.text
    assert "xxxx" not in answer.text  # never what it was sent


async def test_a_large_report_is_read(local: Served, key_server: KeyServer) -> None:
    """Other bodies of this API end at 64 KiB."""
    tokens = [f"entp_{number:036}" for number in range(1000)]
    assert await report(local, key_server, *tokens) == ["false_positive"] * 1000


async def test_is_off_unless_turned_on(served: Served, key_server: KeyServer) -> None:
    answer = await send(served, key_server, b"[]")
    assert answer.status_code == 404
    assert "ENTREPOT_SECRET_SCANNING__ENABLED" in answer.json()["detail"]


class TestKeysOfAScanner:
    async def test_they_are_fetched_once(self, key_server: KeyServer) -> None:
        scanner = Scanner(key_server.url, {})
        for _ in range(5):
            await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))
        assert key_server.asked == 1

    async def test_made_up_identifiers_make_nobody_ask_again(self, key_server: KeyServer) -> None:
        now = 1000.0
        scanner = Scanner(key_server.url, {}, clock=lambda: now)
        for number in range(50):
            with pytest.raises(SignatureInvalid):
                await scanner.verify(b"x", str(number), sign(key_server.key, b"x"))
        assert key_server.asked == 1
        now += 130
        with pytest.raises(SignatureInvalid):
            await scanner.verify(b"x", "unknown", sign(key_server.key, b"x"))
        assert key_server.asked == 2

    async def test_a_new_key_is_found_and_an_old_one_forgotten(self, key_server: KeyServer) -> None:
        now = 1000.0
        scanner = Scanner(key_server.url, {}, clock=lambda: now)
        old = key_server.key
        await scanner.verify(b"x", KEY_ID, sign(old, b"x"))
        new = ec.generate_private_key(ec.SECP256R1())
        key_server.document = {"public_keys": [{"key_identifier": "new", "key": pem(new)}]}
        now += 130
        await scanner.verify(b"x", "new", sign(new, b"x"))
        with pytest.raises(SignatureInvalid):
            await scanner.verify(b"x", KEY_ID, sign(old, b"x"))

    async def test_a_key_that_was_taken_back_holds_no_longer_than_an_hour(self, key_server: KeyServer) -> None:
        now = 1000.0
        scanner = Scanner(key_server.url, {}, clock=lambda: now)
        await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))
        key_server.document = {"public_keys": []}
        now += 3601
        with pytest.raises(SignatureInvalid):
            await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))

    @pytest.mark.parametrize(
        "break_it",
        [
            pytest.param(lambda one: setattr(one, "document", {"keys": []}), id="no list"),
            pytest.param(lambda one: setattr(one, "document", {"public_keys": 5}), id="no array"),
            pytest.param(lambda one: setattr(one, "document", ["x" * 300_000]), id="too long"),
            pytest.param(
                lambda one: setattr(one, "answer", lambda _: web.Response(status=500, text="x")), id="failing"
            ),
            pytest.param(
                lambda one: setattr(one, "answer", lambda _: web.Response(status=302, headers={"Location": one.url})),
                id="redirecting",
            ),
            pytest.param(lambda one: setattr(one, "answer", lambda _: web.Response(text="<html>")), id="no JSON"),
            pytest.param(lambda one: setattr(one, "url", "http://127.0.0.1:1/keys"), id="away"),
        ],
    )
    async def test_without_keys_nothing_is_believed(self, key_server: KeyServer, break_it: Any) -> None:
        break_it(key_server)
        now = 1000.0
        scanner = Scanner(key_server.url, {}, clock=lambda: now)
        for _ in range(3):  # and the second time it is not even asked
            with pytest.raises(ScannerUnavailable):
                await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))
        assert key_server.asked <= 1

    async def test_one_that_hangs_is_given_up(self, key_server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scanners, "_ANSWER_SECONDS", 0.2)
        listener = await asyncio.start_server(lambda _reader, _writer: asyncio.sleep(60), "127.0.0.1", 0)
        scanner = Scanner(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", {})
        with pytest.raises(ScannerUnavailable):
            await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))
        listener.close()

    async def test_keys_of_other_kinds_are_passed_over(self, key_server: KeyServer) -> None:
        others = [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
        listed = [{"key_identifier": str(number), "key": pem(key)} for number, key in enumerate(others)]
        listed += [{"key_identifier": "3", "key": "no key"}]
        key_server.document["public_keys"] += listed
        scanner = Scanner(key_server.url, {})
        await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))
        for name in ("0", "1", "3"):
            with pytest.raises(SignatureInvalid):
                await scanner.verify(b"x", name, sign(key_server.key, b"x"))

    async def test_pinned_keys_are_not_fetched(self, key_server: KeyServer) -> None:
        scanner = Scanner("", {"gitlab": pem(key_server.key)})
        await scanner.verify(b"x", "gitlab", sign(key_server.key, b"x"))
        with pytest.raises(SignatureInvalid):
            await scanner.verify(b"x", KEY_ID, sign(key_server.key, b"x"))
        assert key_server.asked == 0

    @pytest.mark.parametrize("key", ["", "no key", pem(ed25519.Ed25519PrivateKey.generate())])
    def test_a_pinned_key_that_is_none_is_told(self, key: str) -> None:
        with pytest.raises(SettingsInvalid, match="PUBLIC_KEYS: 'gitlab'"):
            Scanner("", {"gitlab": key})


async def test_the_example_of_githubs_documentation_verifies() -> None:
    """Its test key, signature and body, so that they are read here as GitHub writes them."""
    key = (
        "-----BEGIN PUBLIC KEY-----\n"
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEsz9ugWDj5jK5ELBK42ynytbo38gP\n"
        "HzZFI03Exwz8Lh/tCfL3YxwMdLjB+bMznsanlhK0RwcGP3IDb34kQDIo3Q==\n"
        "-----END PUBLIC KEY-----"
    )
    signature = "MEUCIFLZzeK++IhS+y276SRk2Pe5LfDrfvTXu6iwKKcFGCrvAiEAhHN2kDOhy2I6eGkOFmxNkOJ+L2y8oQ9A2T9GGJo6WJY="
    body = b'[{"token":"some_token","type":"some_type","url":"some_url","source":"some_source"}]'
    await Scanner("", {KEY_ID: key}).verify(body, KEY_ID, signature)
    with pytest.raises(SignatureInvalid):
        await Scanner("", {KEY_ID: key}).verify(body + b"\n", KEY_ID, signature)
