"""What must not get anywhere: forged keys, statements in texts, other spellings, races, clocks that are put back."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from entrepot.access.secrets import Secret
from tests.support.api import ACCOUNTS, ADA, API_KEYS, Api, assert_problem
from tests.support.content import Image
from tests.support.served import RegistryClient, Served, rows_of

INJECTIONS = (
    "' OR '1'='1",
    "'; DROP TABLE accounts; --",
    '" OR ""="',
    "1); DELETE FROM credentials WHERE (1=1",
    "%' OR name LIKE '%",
    "\\'; SELECT pg_sleep(9); --",
    "$1 :name {0} %s ?",
    "a\nlevel=error event=forged",
    "${jndi:ldap://127.0.0.1/a}",
    '\u2028{"event":"forged"}',
)


def _mangle(secret: str) -> list[str]:
    """Keys that look like one."""
    return [
        Secret.generate("entk").reveal(),  # of another installation
        secret[:-1],
        f"{secret}0",
        secret[:-1] + ("0" if secret[-1] != "0" else "1"),
        secret.swapcase(),
        secret.replace("entk", "entp"),
        secret[:20] + " " + secret[20:],
        f"{secret}\u200b",
        "entk_" + "٣" * 36,
        "null",
        "undefined",
        "' OR '1'='1",
    ]


async def test_forged_keys_open_nothing(served: Served, admin: Api) -> None:
    rows = rows_of(served)
    for forged in _mangle(admin.secret):
        header = [("Authorization", f"Bearer {forged}".encode())]
        answer = await served.http.get(ACCOUNTS, headers=header)  # type: ignore[arg-type]
        assert_problem(answer, 401)
        assert admin.secret not in answer.text
    basic = base64.b64encode(f"root:{admin.secret}".encode()).decode()
    for headers in (
        {"Authorization": f"Basic {basic}"},
        {"Authorization": f"Token {admin.secret}"},
        {"Authorization": admin.secret},
        {"X-Api-Key": admin.secret},
        {"Cookie": f"Authorization=Bearer {admin.secret}"},
    ):
        assert_problem(await served.http.get(ACCOUNTS, headers=headers), 401)
    assert_problem(await served.http.get(f"{ACCOUNTS}?access_token={admin.secret}"), 401)
    assert rows_of(served) == rows


async def test_a_key_is_of_no_use_elsewhere(served: Served, admin: Api, customer: RegistryClient) -> None:
    """An API key is no pull credential and no token, whoever's name comes with it."""
    for user in ("root", "api-key:root", customer.credential.username, ""):
        assert (await served.http.get("/token", auth=(user, admin.secret))).status_code == 401
        assert (await served.http.get("/v2/", auth=(user, admin.secret))).status_code == 401
    headers = {"Authorization": f"Bearer {admin.secret}"}
    assert (await served.http.get("/v2/", headers=headers)).status_code == 401
    token = {"Authorization": f"Bearer {await customer.token('repository:smm/api:pull')}"}
    assert_problem(await served.http.get(ACCOUNTS, headers=token), 401)


async def test_what_ended_cannot_be_replayed(served: Served, admin: Api, platform: Api) -> None:
    request = served.http.build_request(
        "POST", ACCOUNTS, json=ADA, headers={"Authorization": f"Bearer {platform.secret}", "Idempotency-Key": "1"}
    )
    assert (await served.http.send(request)).status_code == 201
    # The very same bytes do nothing twice,
    assert (await served.http.send(request)).headers["idempotency-replayed"] == "true"
    await admin.call("POST", f"{API_KEYS}/platform/rotation", json={"overlap_seconds": 0})
    # and nothing at all once the secret is replaced, or the key revoked.
    rows = rows_of(served)
    assert_problem(await served.http.send(request), 401, "not known here")
    assert rows_of(served) == rows


@pytest.mark.parametrize("identity", ["text", 7, True, None, [], [{"email": "x"}]], ids=str)
async def test_an_identity_that_is_no_object_is_refused(served: Served, platform: Api, identity: object) -> None:
    rows = rows_of(served)
    assert_problem(await platform.call("POST", ACCOUNTS, json=ADA | {"identity": identity}), 422, "identity")
    assert rows_of(served) == rows


async def test_unknown_fields_are_refused_and_named_everywhere(served: Served, admin: Api) -> None:
    name = (await admin.sign_up("ada"))["account"]["name"]
    rows = rows_of(served)
    for method, path, body in (
        ("POST", ACCOUNTS, ADA),
        ("PATCH", f"{ACCOUNTS}/{name}", {"status": "active"}),
        ("POST", f"{ACCOUNTS}/{name}/credentials", {}),
        ("POST", API_KEYS, {"name": "x", "scopes": ["admin"]}),
        ("POST", f"{API_KEYS}/root/rotation", {}),
        ("POST", "/api/v1/oidc/token", {"token": "x"}),
        ("PUT", "/api/v1/plans/free", {"grants": [{"repositories": ["x"], "actions": ["pull"]}]}),
    ):
        for field in ("idnetity", "__class__", "secret_hash", "created_by"):
            answer = await admin.call(method, path, json=body | {field: "x"})
            assert_problem(answer, 422, field)
    assert rows_of(served) == rows


@pytest.mark.parametrize("path", [ACCOUNTS, "/api/v1/audit"])
async def test_a_cursor_that_was_tampered_with_is_refused(admin: Api, path: str) -> None:
    for number in range(3):
        await admin.sign_up(f"user-{number}")
    cursor = (await admin.call("GET", f"{path}?limit=1")).json()["next_cursor"]

    def write(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    for forged in (
        cursor[:-1],
        cursor[:-2] + "xx",
        cursor * 2,
        write("after:-1"),
        write("after:1 OR 1=1"),
        write("after:" + "9" * 19),
        write("after:٣"),
        write("before:1"),
        write("after:1.5"),
        "\u00e9",
        "null",
        "'",
        "A" * 8000,
    ):
        answer = await admin.call("GET", path, params={"cursor": forged, "limit": 1})
        assert answer.status_code == 400, forged
        assert_problem(answer, 400, "cursor")
    # One that is well formed and leads behind the end is the end, and shows nothing that it should not.
    answer = await admin.call("GET", path, params={"cursor": write("after:" + "9" * 18), "limit": 1})
    assert answer.status_code == 200


async def test_statements_in_texts_are_texts(served: Served, admin: Api) -> None:
    first = (await admin.sign_up("ada"))["account"]
    for number, text in enumerate(INJECTIONS):
        body = ADA | {"external_id": f"user-{number} {text}".replace("\n", " ").replace("\u2028", " ")}
        body |= {"identity": {"name": text.replace("\n", " ")}, "labels": {"note": text.replace("\n", " ")}}
        created = await admin.call("POST", ACCOUNTS, json=body)
        assert created.status_code == 201, created.text
        for query in ("external_id", "plan", "q", "cursor"):
            answer = await admin.call("GET", ACCOUNTS, params={query: text})
            found = answer.json().get("accounts", [])
            assert answer.status_code in {200, 400}
            assert first not in found, (query, text)
        for query in ("actor", "target", "action"):
            assert (await admin.call("GET", "/api/v1/audit", params={query: text})).json()["audit"] == []
        assert (await admin.call("GET", "/api/v1/audit", params={"since": text})).status_code == 422
        path = f"/{quote(text, safe='')}"
        for place in (f"{ACCOUNTS}{path}", f"/api/v1/plans{path}", f"{ACCOUNTS}/{first['name']}/credentials{path}"):
            for method in ("GET", "DELETE"):
                assert (await admin.call(method, place)).status_code in {404, 405}
        assert (await admin.call("DELETE", f"{API_KEYS}{path}")).status_code == 404
        refused = await admin.call("POST", API_KEYS, json={"name": text, "scopes": [text], "plans": [text]})
        assert refused.status_code in {400, 422}
    assert len((await admin.call("GET", ACCOUNTS)).json()["accounts"]) == len(INJECTIONS) + 1
    assert (await admin.call("GET", f"{ACCOUNTS}/{first['name']}")).json() == first


async def test_one_external_id_has_one_account_however_it_is_spelt(admin: Api) -> None:
    composed, decomposed = "Zoë Å", "Zoe\u0308 A\u030a"  # NFC and NFD, and the Angstrom sign is Å, too
    assert composed != decomposed
    bodies = [ADA | {"external_id": spelling} for spelling in (composed, decomposed, "Zoë \u212b")]
    answers = await asyncio.gather(*(admin.call("POST", ACCOUNTS, json=body) for body in bodies * 3))
    assert sorted(answer.status_code for answer in answers) == [200] * 8 + [201]
    assert len({answer.json()["account"]["name"] for answer in answers}) == 1
    for spelling in (composed, decomposed):
        found = (await admin.call("GET", ACCOUNTS, params={"external_id": spelling})).json()["accounts"]
        assert [account["external_id"] for account in found] == [composed]
    # What only looks alike is another customer: a Cyrillic letter, a full-width one, another case.
    for other in ("Zоë Å", "Ｚoë Å", "zoë Å"):
        assert (await admin.call("POST", ACCOUNTS, json=ADA | {"external_id": other})).status_code == 201


async def test_a_revocation_that_races_pulls_wins(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1", Image())
    bearer = {"Authorization": f"Bearer {await customer.token('repository:smm/api:pull')}"}
    stop = asyncio.Event()
    # (when it began, status), by the loop's clock
    pulls: list[tuple[float, int]] = []
    loop = asyncio.get_running_loop()

    async def pull(headers: dict[str, str]) -> None:
        while not stop.is_set():
            begun = loop.time()
            answer = await served.http.get("/v2/smm/api/manifests/v1", headers=headers)
            pulls.append((begun, answer.status_code))
            await asyncio.sleep(0)  # a pull out of memory never waits

    tasks = [asyncio.create_task(pull(headers)) for headers in (bearer, customer.basic) for _ in range(3)]
    try:
        async with asyncio.timeout(30):
            while len(pulls) < 50:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            path = f"{ACCOUNTS}/{customer.credential.username}/credentials/{customer.credential.id}"
            assert (await admin.call("DELETE", path)).status_code == 204
            revoked_at, seen = loop.time(), len(pulls)
            while len(pulls) < seen + 50:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert {status for _, status in pulls} == {200, 401}
    assert {status for begun, status in pulls if begun > revoked_at} == {401}


class TestClockPutBack:
    """An hour back, as when somebody corrects it, or a machine comes back from a snapshot."""

    @pytest.fixture
    def put_back(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
        parts = served.parts

        def change(**difference: float) -> None:
            for service in (
                parts.accounts,
                parts.api_keys,
                parts.answers,
                parts.authenticator,
                parts.plans,
                parts.tokens,
                parts.workloads,
            ):
                monkeypatch.setattr(service, "_clock", lambda: datetime.now(UTC) - timedelta(**difference))

        return change

    async def test_what_was_revoked_stays_so(self, served: Served, admin: Api, platform: Api, put_back: Any) -> None:
        ada, bob = await admin.sign_up("ada"), await admin.sign_up("bob")
        eve = await admin.sign_up("eve")

        async def status(created: dict[str, Any]) -> int:
            login = (created["account"]["name"], created["credential"]["secret"])
            return (await served.http.get("/token", auth=login)).status_code

        path = f"{ACCOUNTS}/{ada['account']['name']}/credentials"
        await admin.call("DELETE", f"{path}/{ada['credential']['id']}")
        await admin.call("POST", f"{ACCOUNTS}/{bob['account']['name']}/credentials", json={"grace_seconds": 0})
        await admin.call("POST", f"{ACCOUNTS}/{eve['account']['name']}/credentials", json={"grace_seconds": 60})
        await admin.call("DELETE", f"{API_KEYS}/platform")
        put_back(hours=1)
        assert [await status(one) for one in (ada, bob)] == [401, 401]
        assert_problem(await platform.call("GET", ACCOUNTS), 401, "revoked")
        assert (await admin.call("GET", path)).json()["credentials"][0]["status"] == "revoked"
        # A grace is an hour longer: nobody is locked out.
        assert await status(eve) == 200

    async def test_everything_goes_on(self, served: Served, admin: Api, put_back: Any) -> None:
        ada = await admin.sign_up("ada")
        name = ada["account"]["name"]
        login = (name, ada["credential"]["secret"])
        old_token = (await served.http.get("/token", auth=login)).json()["token"]
        put_back(hours=1)
        # The key and the credential were made "in the future", and hold all the same.
        assert (await served.http.get("/token", auth=login)).status_code == 200
        for method, path, body in (
            ("GET", f"{ACCOUNTS}/{name}", None),
            ("GET", f"{ACCOUNTS}/{name}/credentials", None),
            ("GET", f"{ACCOUNTS}/{name}/usage", None),
            ("POST", f"{ACCOUNTS}/{name}/credentials", {}),
            ("PATCH", f"{ACCOUNTS}/{name}", {"status": "suspended"}),
            ("PATCH", f"{ACCOUNTS}/{name}", {"status": "active"}),
            ("POST", ACCOUNTS, ADA | {"external_id": "bob"}),
            ("POST", f"{API_KEYS}/root/rotation", {}),
            ("GET", "/api/v1/audit", None),
            ("GET", "/api/v1/funnel", None),
            ("DELETE", f"{ACCOUNTS}/{name}", None),
        ):
            answer = await admin.call(method, path, json=body)
            assert answer.status_code < 300, (method, path, answer.text)
        # A token of the future is refused, so that its holder asks for another; it does not live an hour longer.
        answer = await served.http.get("/v2/", headers={"Authorization": f"Bearer {old_token}"})
        assert answer.status_code == 401
        await served.parts.api_keys.flush()
        await served.parts.usage.flush()

    async def test_what_expires_does_so_by_the_clock_that_there_is(
        self, served: Served, admin: Api, put_back: Any
    ) -> None:
        created = await admin.sign_up("ada", lifetime_seconds=3600)
        login = (created["account"]["name"], created["credential"]["secret"])
        put_back(hours=-2)
        assert (await served.http.get("/token", auth=login)).status_code == 401
        put_back(hours=0)
        assert (await served.http.get("/token", auth=login)).status_code == 200
