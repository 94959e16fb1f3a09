"""API keys: from where, how long, how often and for whose accounts they hold."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entrepot.accounts.key_rates import KeyRates
from entrepot.bootstrap import _open_counters
from tests.support.api import ACCOUNTS, ADA, API_KEYS, Api, assert_problem, key
from tests.support.served import Served

ELSEWHERE = "this API key is not known here, or not for use from this address"


async def made(admin: Api, **fields: Any) -> dict[str, Any]:
    answer = await admin.call("POST", API_KEYS, json={"name": "platform", "scopes": ["accounts:write"]} | fields)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def listed(admin: Api, name: str) -> dict[str, Any]:
    keys = (await admin.call("GET", API_KEYS)).json()["api_keys"]
    (found,) = [one for one in keys if one["name"] == name]
    return dict(found)


async def test_a_key_is_listed_with_all_that_limits_it(served: Served, admin: Api) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)
    limits = {
        "plans": ["free"],
        "networks": ["10.0.0.0/8", "2001:db8::/32"],
        "expires_at": end.isoformat(),
        "requests_per_minute": 600,
        "own_accounts_only": True,
    }
    body = await made(admin, **limits)
    found = await listed(admin, "platform")
    assert body["api_key"] == found
    assert datetime.fromisoformat(found.pop("expires_at")) == datetime.fromisoformat(str(limits.pop("expires_at")))
    assert limits.items() <= found.items()
    row = (await admin.call("GET", "/api/v1/audit?action=api_key.created&target=platform")).json()["audit"][0]
    assert limits.items() <= row["detail"].items()
    assert body["secret"] not in str(row)


async def test_limits_that_make_no_sense_are_refused(admin: Api) -> None:
    for wrong in (
        {"networks": ["10.0.0.1/8"]},
        {"networks": ["10.0.0.0/33"]},
        {"networks": ["everywhere"]},
        {"networks": []},
        {"networks": ["10.0.0.0/8"] * 65},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": 4102444800},
        {"requests_per_minute": 0},
        {"requests_per_minute": -1},
        {"requests_per_minute": True},
        {"requests_per_minute": 10**12},
        {"own_accounts_only": "yes"},
        {"scopes": ["admin"], "own_accounts_only": True},
        {"scopes": ["admin"], "plans": ["free"]},
        {"netwroks": ["10.0.0.0/8"]},
    ):
        body = {"name": "platform", "scopes": ["accounts:write"]} | wrong
        answer = await admin.call("POST", API_KEYS, json=body)
        assert answer.status_code in {400, 422}, answer.text
        assert list(wrong)[-1].removesuffix("s") in answer.json()["detail"]
    assert [one["name"] for one in (await admin.call("GET", API_KEYS)).json()["api_keys"]] == ["root"]


class TestNetworks:
    @pytest.fixture
    def variant(self, variant: dict[str, Any]) -> dict[str, Any]:
        """Tests speak as proxies do, for clients from anywhere."""
        return variant | {"trusted_proxies": ("127.0.0.0/8",)}

    async def test_a_key_holds_only_within_its_networks(self, served: Served, admin: Api) -> None:
        office = await key(served, "office", "accounts:read", networks=["10.1.0.0/16", "2001:db8::/32"])
        unknown = Api(served.http, f"{admin.secret[:-6]}000000")

        async def from_(api: Api, address: str) -> tuple[int, str]:
            answer = await api.call("GET", ACCOUNTS, headers={"X-Forwarded-For": address})
            return answer.status_code, answer.json().get("detail", "")

        for address in ("10.1.2.3", "2001:db8::1", "::ffff:10.1.0.1"):
            assert (await from_(office, address))[0] == 200
        for address in ("10.2.0.1", "2001:db9::1", "10.1.2.3, 8.8.8.8", "rubbish", ""):
            assert await from_(office, address) == (401, ELSEWHERE)
        # From elsewhere nobody learns whether the key is one, nor what became of it.
        assert (await from_(unknown, "10.2.0.1"))[0] == 401
        await admin.call("DELETE", f"{API_KEYS}/office")
        assert await from_(office, "10.2.0.1") == (401, ELSEWHERE)
        assert "revoked" in (await from_(office, "10.1.2.3"))[1]

    async def test_an_unknown_key_is_told_the_same_as_one_from_elsewhere(self, served: Served, admin: Api) -> None:
        from entrepot.access.secrets import Secret

        office = await key(served, "office", "accounts:read", networks=["10.1.0.0/16"])
        answers = [
            await api.call("GET", ACCOUNTS) for api in (office, Api(served.http, Secret.generate("entk").reveal()))
        ]
        first, second = ((one.status_code, one.json(), sorted(one.headers)) for one in answers)
        assert first == second


async def test_an_expired_key_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    short = await key(served, "short", "accounts:read", expires_at=end)
    assert (await short.call("GET", ACCOUNTS)).status_code == 200
    monkeypatch.setattr(served.parts.api_keys, "_clock", lambda: end)
    assert_problem(await short.call("GET", ACCOUNTS), 401, "expired")


class TestRotation:
    async def test_the_old_secret_holds_for_the_overlap(
        self, served: Served, admin: Api, platform: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = await admin.call("POST", f"{API_KEYS}/platform/rotation", json={"overlap_seconds": 3600})
        assert answer.status_code == 201
        new = Api(served.http, answer.json()["secret"])
        for api in (platform, new):
            assert (await api.call("GET", ACCOUNTS)).status_code == 200
        deadline = datetime.fromisoformat(answer.json()["api_key"]["previous_until"])
        assert timedelta(minutes=59) < deadline - datetime.now(UTC) <= timedelta(hours=1)
        monkeypatch.setattr(served.parts.api_keys, "_clock", lambda: deadline)
        assert_problem(await platform.call("GET", ACCOUNTS), 401, "rotated")
        assert (await new.call("GET", ACCOUNTS)).status_code == 200
        rows = (await admin.call("GET", "/api/v1/audit?target=platform&action=api_key.rotated")).json()["audit"]
        assert [(row["actor"], row["detail"]) for row in rows] == [("api-key:root", {"overlap_seconds": 3600})]

    async def test_without_overlap_the_old_one_is_void_at_once(self, served: Served, admin: Api, platform: Api) -> None:
        path = f"{API_KEYS}/platform/rotation"
        second = Api(served.http, (await admin.call("POST", path)).json()["secret"])
        # A day by default; until then nothing but an overlap of 0 rotates again, which would lock somebody out.
        assert_problem(await admin.call("POST", path), 409, "earlier secret holds")
        assert (await platform.call("GET", ACCOUNTS)).status_code == 200
        third = Api(served.http, (await admin.call("POST", path, json={"overlap_seconds": 0})).json()["secret"])
        statuses = [(await api.call("GET", ACCOUNTS)).status_code for api in (platform, second, third)]
        assert statuses == [401, 401, 200]

    async def test_what_cannot_be_rotated_is_not(self, admin: Api, platform: Api) -> None:
        assert_problem(await admin.call("POST", f"{API_KEYS}/none/rotation"), 404)
        for overlap in (-1, 10**8, 10**12, "soon", 1.5, True):
            answer = await admin.call("POST", f"{API_KEYS}/platform/rotation", json={"overlap_seconds": overlap})
            assert answer.status_code in {400, 422}
        await admin.call("DELETE", f"{API_KEYS}/platform")
        assert_problem(await admin.call("POST", f"{API_KEYS}/platform/rotation"), 409, "revoked")
        assert_problem(await platform.call("POST", f"{API_KEYS}/root/rotation"), 401)

    async def test_two_rotations_at_once_leave_one_secret_that_somebody_has(
        self, served: Served, admin: Api, platform: Api
    ) -> None:
        path = f"{API_KEYS}/platform/rotation"
        answers = await asyncio.gather(*(admin.call("POST", path) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
        (secret,) = [answer.json()["secret"] for answer in answers if answer.status_code == 201]
        for api in (platform, Api(served.http, secret)):
            assert (await api.call("GET", ACCOUNTS)).status_code == 200


async def test_a_rate_is_kept_and_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.parts.key_rates, "_clock", lambda: 1_800_000_012.3)  # 12 seconds into a minute
    slow = await key(served, "slow", "accounts:read", requests_per_minute=3)
    answers = [await slow.call("GET", ACCOUNTS) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0", "0"]
    assert_problem(answers[-1], 429, "3 requests a minute")
    assert answers[-1].headers["ratelimit-limit"] == "3"
    assert answers[-1].headers["retry-after"] == answers[0].headers["ratelimit-reset"] == "48"
    # What it lacks the scope for counts, too, and other keys do not notice.
    other = await key(served, "other", "accounts:read", requests_per_minute=1)
    assert_problem(await other.call("POST", ACCOUNTS, json=ADA), 403)
    assert_problem(await other.call("GET", ACCOUNTS), 429)
    free = await key(served, "free", "accounts:read")
    assert "ratelimit-limit" not in (await free.call("GET", ACCOUNTS)).headers
    monkeypatch.setattr(served.parts.key_rates, "_clock", lambda: 1_800_000_060.0)
    assert (await slow.call("GET", ACCOUNTS)).status_code == 200


async def test_a_rate_is_counted_over_all_processes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock() -> float:
        return 1_800_000_012.3

    slow = await key(served, "slow", "accounts:read", requests_per_minute=4)
    monkeypatch.setattr(served.parts.key_rates, "_clock", clock)
    for _ in range(3):
        assert (await slow.call("GET", ACCOUNTS)).status_code == 200
    (held,) = [one for one in await served.parts.api_keys.list_keys() if one.name == "slow"]
    counters = _open_counters(served.parts.settings, served.parts.database, capacity=10)
    other = KeyRates(counters, clock)
    try:
        taken = other.take(held)
        assert taken is not None
        assert taken.is_granted
        for one in (served.parts.key_rates._counters, counters):
            assert await one.settle()
        refused = other.take(held)
        assert refused is not None
        assert not refused.is_granted
    finally:
        await other.stop()
        other.close()


async def test_the_last_use_is_written_down_to_the_minute_and_not_per_request(
    served: Served, admin: Api, platform: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await listed(admin, "platform"))["last_used_at"] is None
    await platform.call("GET", ACCOUNTS)
    async with asyncio.timeout(30):
        while (used := (await listed(admin, "platform"))["last_used_at"]) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert datetime.now(UTC) - datetime.fromisoformat(used) < timedelta(minutes=1)
    writes = 0
    write = served.parts.database.write

    async def count(*arguments: Any) -> Any:
        nonlocal writes
        writes += 1
        return await write(*arguments)

    monkeypatch.setattr(served.parts.database, "write", count)
    for _ in range(10):
        await platform.call("GET", ACCOUNTS)
        await served.parts.api_keys.flush()
    assert writes == 0
    assert (await listed(admin, "platform"))["last_used_at"] == used


class TestOwnAccountsOnly:
    @pytest.fixture
    async def own(self, served: Served) -> Api:
        scopes = ("accounts:write", "usage:read", "audit:read")
        return await key(served, "own", *scopes, own_accounts_only=True)

    async def test_other_keys_accounts_do_not_exist(self, admin: Api, own: Api) -> None:
        mine, other = await own.sign_up("mine"), await admin.sign_up("other")
        name = other["account"]["name"]
        unknown = "ft-" + "a" * 20
        for method, suffix, body in (
            ("GET", "", None),
            ("PATCH", "", {"status": "suspended"}),
            ("DELETE", "", None),
            ("GET", "/credentials", None),
            ("POST", "/credentials", {}),
            ("DELETE", f"/credentials/{other['credential']['id']}", None),
            ("GET", "/usage", None),
        ):
            answers = [await own.call(method, f"{ACCOUNTS}/{one}{suffix}", json=body) for one in (name, unknown)]
            seen, expected = ({**one.json(), "status": one.status_code} for one in answers)
            assert str(seen).replace(name, unknown) == str(expected)
            assert seen["status"] == 404
        assert (await admin.call("GET", f"{ACCOUNTS}/{name}")).json()["status"] == "active"
        for query in ("", "?external_id=other", "?plan=free", "?status=active"):
            found = (await own.call("GET", f"{ACCOUNTS}{query}")).json()["accounts"]
            assert [one["external_id"] for one in found] == (["mine"] if "other" not in query else [])
        assert (await own.call("GET", f"{ACCOUNTS}/{mine['account']['name']}/usage")).status_code == 200

    async def test_an_external_id_that_is_taken_tells_nothing_but_that(self, admin: Api, own: Api) -> None:
        other = await admin.sign_up("other", identity={"email": "secret@example.com"})
        answer = await own.call("POST", ACCOUNTS, json=ADA | {"external_id": "other"})
        assert_problem(answer, 409, "this API key may not see")
        assert "secret@example.com" not in answer.text
        assert other["account"]["name"] not in answer.text
        # Neither does it stay behind under an Idempotency-Key.
        for _ in range(2):
            headers = {"Idempotency-Key": "once"}
            answer = await own.call("POST", ACCOUNTS, json=ADA | {"external_id": "other"}, headers=headers)
            assert_problem(answer, 409, "this API key may not see")

    async def test_its_audit_log_is_of_what_it_did_itself(self, admin: Api, own: Api) -> None:
        await admin.sign_up("other")
        await own.sign_up("mine")
        for path in ("/api/v1/audit", "/api/v1/audit?actor=api-key:own", "/api/v1/audit?target=root"):
            rows = (await own.call("GET", path)).json()["audit"]
            assert {row["actor"] for row in rows} <= {"api-key:own"}
        assert len((await own.call("GET", "/api/v1/audit")).json()["audit"]) == 2
        assert (await own.call("GET", "/api/v1/audit?actor=api-key:root")).json()["audit"] == []
        assert len((await own.call("GET", "/api/v1/audit/export")).text.splitlines()) == 2

    async def test_an_account_of_before_stays_the_keys_own_after_a_rotation(
        self, served: Served, admin: Api, own: Api
    ) -> None:
        await own.sign_up("mine")
        secret = (await admin.call("POST", f"{API_KEYS}/own/rotation")).json()["secret"]
        found = (await Api(served.http, secret).call("GET", ACCOUNTS)).json()["accounts"]
        assert [one["external_id"] for one in found] == ["mine"]


async def test_a_limited_administrator_makes_nobody_stronger_than_itself(served: Served, admin: Api) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    small = await key(served, "small", "admin", networks=["127.0.0.0/8"], expires_at=end)
    fitting = {"name": "fits", "scopes": ["admin"], "networks": ["127.0.0.1"], "expires_at": end.isoformat()}
    for more in (
        {"networks": None},
        {"networks": ["0.0.0.0/0"]},
        {"networks": ["127.0.0.1", "10.0.0.0/8"]},
        {"networks": ["::/0"]},
        {"expires_at": None},
        {"expires_at": (end + timedelta(hours=1)).isoformat()},
    ):
        assert_problem(await small.call("POST", API_KEYS, json=fitting | more), 403, "gives no key")
    assert (await small.call("POST", API_KEYS, json=fitting)).status_code == 201
    # The new secret of a stronger key would be as good.
    assert_problem(await small.call("POST", f"{API_KEYS}/root/rotation"), 403, "gives no key")
    assert (await small.call("POST", f"{API_KEYS}/fits/rotation")).status_code == 201


async def test_a_key_of_one_plan_has_to_do_with_no_other(served: Served) -> None:
    limited = await key(served, "limited", "plans:write", plans=["free"])
    plan = {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}
    assert [one["name"] for one in (await limited.call("GET", "/api/v1/plans")).json()["plans"]] == ["free"]
    for name in ("publisher", "none"):
        for method in ("GET", "PUT", "DELETE"):
            answer = await limited.call(method, f"/api/v1/plans/{name}", json=plan if method == "PUT" else None)
            assert_problem(answer, 403, f"not for plan '{name}'")
    assert (await limited.call("PUT", "/api/v1/plans/free", json=plan)).status_code == 200
