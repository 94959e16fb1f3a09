"""Events and webhooks over the platform API: what may be seen and set up, and what is refused."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entrepot.accounts.events import EventType
from entrepot.accounts.usage_records import Reached
from entrepot.storage import tables
from tests.support.api import ACCOUNTS, ADA, Api, assert_problem, key
from tests.support.reference import documented_events
from tests.support.served import RegistryClient, Served, rows_of

EVENTS = "/api/v1/events"
HOOK = "/api/v1/webhooks/platform"
URL = "https://platform.example.com/hooks/s3cr3t"


@pytest.fixture
async def admin(served: Served) -> Api:
    return await key(served, "root", "admin")


@pytest.fixture
async def platform(served: Served) -> Api:
    return await key(served, "platform", "accounts:write", plans=["free"])


async def types(api: Api, query: str = "") -> list[str]:
    answer = await api.call("GET", f"{EVENTS}?{query}")
    assert answer.status_code == 200, answer.text
    return [event["type"] for event in answer.json()["events"]]


class TestEvents:
    async def test_tell_of_a_customer_s_way(self, served: Served, admin: Api, publisher: RegistryClient) -> None:
        await publisher.push_image("smm/api", "v1")
        lovelace = ADA | {"external_id": "lovelace", "identity": {"email": "lovelace@example.com"}}
        created = (await admin.call("POST", ACCOUNTS, json=lovelace)).json()
        name, secret = created["account"]["name"], created["credential"]["secret"]
        await served.http.get("/token", auth=(name, secret))
        await served.http.get("/v2/smm/api/manifests/v1", auth=(name, secret))
        await served.http.get("/v2/other/api/manifests/v1", auth=(name, secret))
        await served.parts.usage.flush()
        answer = (await admin.call("GET", f"{EVENTS}?account={name}")).json()
        assert [event["type"] for event in answer["events"]] == [
            "account.created",
            "credential.issued",
            "login.first",
            "pull.first",
            "pull.refused",
        ]
        for event in answer["events"]:
            assert event.keys() == {"id", "type", "timestamp", "data"}
            assert event["data"]["account"] == name
            assert event["data"].keys() <= documented_events()[event["type"]]
            assert datetime.now(UTC) - datetime.fromisoformat(event["timestamp"]) < timedelta(minutes=1)
        assert answer["events"][0]["data"]["actor"] == "api-key:root"
        assert "lovelace" not in str(answer)
        assert secret not in str(answer)

    async def test_a_version_is_adopted_once_also_when_its_event_is_kept_no_longer(
        self, served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
    ) -> None:
        async def pull(*tags: str) -> None:
            # As a process that was started just now, and knows of nothing.
            served.parts.usage._reached = Reached()
            served.parts.usage._rechecks._recent.clear()
            for tag in tags:
                assert (await customer.call("GET", f"/v2/smm/api/manifests/{tag}")).status_code == 200
                await served.parts.usage.flush()

        first = await publisher.push_image("smm/api", "v1")
        second = await publisher.push_image("smm/api", "v2")
        assert first.digest != second.digest
        await pull("v1", "v2", "v1", "v2")
        await pull("v2")
        (event,) = (await admin.call("GET", f"{EVENTS}?type=version.adopted")).json()["events"]
        assert event["data"].keys() == documented_events()["version.adopted"]
        assert (event["data"]["digest"], event["data"]["tag"]) == (str(second.digest), "v2")
        await served.parts.database.write(lambda connection: connection.execute(tables.events.delete()))
        await pull("v1", "v2")
        assert await types(admin) == []

    async def test_are_read_on_from_where_one_stopped(self, admin: Api) -> None:
        found: list[str] = []
        cursor = ""
        for number in range(3):
            await admin.call("POST", ACCOUNTS, json=ADA | {"external_id": f"user-{number}"})
            has_more = True
            while has_more:
                page = (await admin.call("GET", f"{EVENTS}?limit=1&type=account.created{cursor}")).json()
                found += [event["id"] for event in page["events"]]
                cursor, has_more = f"&cursor={page['next_cursor']}", page["has_more"]
            assert len(set(found)) == len(found) == number + 1

    async def test_filters(self, admin: Api) -> None:
        await admin.call("POST", ACCOUNTS, json=ADA)
        later = datetime.now(UTC).isoformat().replace("+", "%2B")
        assert await types(admin, "type=account.created") == ["account.created"]
        assert await types(admin, "type=account.created&type=credential.issued") == [
            "account.created",
            "credential.issued",
        ]
        assert await types(admin, "type=pull.first") == []
        assert await types(admin, f"since={later}") == []
        assert_problem(await admin.call("GET", f"{EVENTS}?type=pull.frist"), 422, "pull.first")
        assert_problem(await admin.call("GET", f"{EVENTS}?account=ft-none"), 404, "no account")
        assert_problem(await admin.call("GET", f"{EVENTS}?since=yesterday"), 422)
        assert_problem(await admin.call("GET", f"{EVENTS}?limit=501"), 422)

    @pytest.mark.parametrize("cursor", ["x", "YWZ0ZXI6eA", "!!!", "a" * 500, "YWZ0ZXI6LTE"])
    async def test_tampered_cursor_is_refused(self, admin: Api, cursor: str) -> None:
        assert_problem(await admin.call("GET", f"{EVENTS}?cursor={cursor}"), 400, "cursor")

    async def test_a_limited_key_sees_its_own_accounts_alone(self, served: Served, admin: Api, platform: Api) -> None:
        other = (await admin.call("POST", ACCOUNTS, json=ADA | {"plan": "publisher"})).json()["account"]["name"]
        mine = (await platform.call("POST", ACCOUNTS, json=ADA | {"external_id": "bob"})).json()["account"]["name"]
        await admin.call("PUT", HOOK, json={"url": URL})
        await admin.call("POST", f"{HOOK}/test")
        page = (await platform.call("GET", EVENTS)).json()
        assert {event["data"]["account"] for event in page["events"]} == {mine}
        assert other not in str(page)
        assert "webhook.test" in await types(admin)
        assert_problem(await platform.call("GET", f"{EVENTS}?account={other}"), 404, "no account")
        again = (await platform.call("GET", f"{EVENTS}?cursor={page['next_cursor']}")).json()
        assert (again["events"], again["has_more"]) == ([], False)
        for scope in ("usage:read", "audit:read", "plans:write"):
            reader = await key(served, scope.replace(":", "-"), scope)
            assert_problem(await reader.call("GET", EVENTS), 403, "accounts:read")

    async def test_outlive_a_deleted_account_without_its_identity(self, admin: Api) -> None:
        name = (await admin.call("POST", ACCOUNTS, json=ADA)).json()["account"]["name"]
        await admin.call("DELETE", f"{ACCOUNTS}/{name}")
        assert await types(admin) == ["account.created", "credential.issued", "credential.revoked"]
        assert "ada@example.com" not in (await admin.call("GET", EVENTS)).text
        # The next account of the same name has events of its own.
        await admin.call("POST", ACCOUNTS, json=ADA)
        assert await types(admin, f"account={name}") == ["account.created", "credential.issued"]


@dataclass(frozen=True)
class Case:
    id: str
    body: Any
    status: int
    words: str
    path: str = HOOK
    headers: dict[str, str] = field(default_factory=dict)


BAD_WEBHOOKS = [
    Case("no url", {}, 422, "url"),
    Case("url is no text", {"url": 5}, 422, "url"),
    Case("plain http", {"url": "http://platform.example.com/"}, 422, "use https"),
    Case("no url at all", {"url": "platform"}, 422, "https://HOST"),
    Case("metadata service", {"url": "https://169.254.169.254/latest"}, 422, "no public address"),
    Case("loopback", {"url": "http://127.0.0.1:8080/"}, 422, "no public address"),
    Case("credentials in the url", {"url": "https://a:b@platform.example.com/"}, 422, "without user"),
    Case("line break in the url", {"url": "https://platform.example.com/\r\nHost: x"}, 422, "ASCII"),
    Case("NUL in the url", {"url": "https://platform.example.com/\x00"}, 422, "NUL"),
    Case("long url", {"url": f"https://platform.example.com/{'x' * 3000}"}, 422, "2000"),
    Case("unknown type", {"url": URL, "types": ["pull.frist"]}, 422, "pull.first"),
    Case("no type", {"url": URL, "types": []}, 422, "types"),
    Case("unknown field", {"url": URL, "secret": "x"}, 422, "secret"),
    Case("bad name", {"url": URL}, 422, "lower-case", "/api/v1/webhooks/Platform"),
    Case("long name", {"url": URL}, 422, "at most 63", f"/api/v1/webhooks/{'a' * 64}"),
]


class TestWebhooks:
    @pytest.fixture
    async def secret(self, admin: Api) -> str:
        answer = await admin.call("PUT", HOOK, json={"url": URL, "types": ["pull.first", "pull.first"]})
        assert answer.status_code == 201
        assert answer.json()["webhook"]["types"] == ["pull.first"]
        secret: str = answer.json()["secret"]
        return secret

    async def test_secret_is_shown_once(self, served: Served, admin: Api, secret: str) -> None:
        assert secret.startswith("whsec_")
        again = await admin.call("PUT", HOOK, json={"url": URL})
        assert again.status_code == 200
        assert "secret" not in again.json()
        listed = await admin.call("GET", "/api/v1/webhooks")
        assert listed.json()["webhooks"] == [again.json()["webhook"]]
        assert (await admin.call("GET", HOOK)).json() == again.json()["webhook"]
        answer = await admin.call("POST", f"{HOOK}/secret", json={"grace_seconds": 60})
        assert answer.status_code == 201
        new = answer.json()["secret"]
        assert new != secret
        everything = f"{listed.text} {(await admin.call('GET', '/api/v1/audit')).text} {rows_of(served)}"
        assert secret.removeprefix("whsec_") not in everything
        assert new.removeprefix("whsec_") not in everything

    async def test_can_be_disabled_and_enabled(self, admin: Api, secret: str) -> None:
        off = (await admin.call("PUT", HOOK, json={"url": URL, "enabled": False})).json()["webhook"]
        assert (off["enabled"], off["disabled_reason"]) == (False, "disabled by request")
        assert_problem(await admin.call("POST", f"{HOOK}/test"), 409, "enable it first")
        assert_problem(await admin.call("POST", f"{HOOK}/replay", json={"event_id": "evt_x"}), 409, "enable it first")
        on = (await admin.call("PUT", HOOK, json={"url": URL})).json()["webhook"]
        assert (on["enabled"], on["disabled_at"], on["disabled_reason"], on["types"]) == (True, None, None, None)

    @pytest.mark.parametrize("case", BAD_WEBHOOKS, ids=lambda case: case.id)
    async def test_bad_one_is_refused_and_leaves_nothing(self, served: Served, admin: Api, case: Case) -> None:
        rows = rows_of(served)
        assert_problem(await admin.call("PUT", case.path, json=case.body), case.status, case.words)
        assert rows_of(served) == rows

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/secret", {}),
            ("POST", "/replay", {"event_id": "evt_x"}),
            ("POST", "/test", None),
            ("GET", "/deliveries", None),
        ],
    )
    async def test_one_that_is_not_there_is_unknown(self, admin: Api, method: str, path: str, body: Any) -> None:
        options = {} if body is None else {"json": body}
        assert_problem(await admin.call(method, f"/api/v1/webhooks/none{path}", **options), 404, "no webhook")

    @pytest.mark.parametrize("scope", ["accounts:write", "audit:read", "usage:read"])
    async def test_only_an_administrator_may(self, served: Served, secret: str, scope: str) -> None:
        other = await key(served, "other", scope)
        for method, path in (
            ("GET", "/api/v1/webhooks"),
            ("GET", HOOK),
            ("PUT", HOOK),
            ("DELETE", HOOK),
            ("POST", f"{HOOK}/secret"),
            ("POST", f"{HOOK}/replay"),
            ("POST", f"{HOOK}/test"),
            ("GET", f"{HOOK}/deliveries"),
        ):
            body = {} if method == "GET" else {"json": {"url": URL}}
            assert_problem(await other.call(method, path, **body), 403, "admin")

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({}, 422, "either event_id or since"),
            ({"event_id": "evt_x", "since": "2026-01-01T00:00:00Z"}, 422, "either event_id or since"),
            ({"event_id": "evt_x"}, 404, "no event"),
            ({"since": "2026-01-01T00:00:00"}, 422, "timezone"),
            ({"since": "2026-01-01T00:00:00Z", "until": "x"}, 422, "until"),
        ],
    )
    async def test_bad_replay_is_refused(
        self, admin: Api, secret: str, body: dict[str, Any], status: int, words: str
    ) -> None:
        assert_problem(await admin.call("POST", f"{HOOK}/replay", json=body), status, words)

    @pytest.mark.parametrize("grace", [-1, 86400 * 31, 10**12, "soon"])
    async def test_absurd_grace_is_refused(self, admin: Api, secret: str, grace: object) -> None:
        answer = await admin.call("POST", f"{HOOK}/secret", json={"grace_seconds": grace})
        assert answer.status_code in {400, 422}

    async def test_deliveries_are_listed_by_pages_and_state(self, served: Served, admin: Api, secret: str) -> None:
        sent = [(await admin.call("POST", f"{HOOK}/test")).json()["event_id"] for _ in range(3)]
        assert (await admin.call("POST", f"{HOOK}/replay", json={"event_id": sent[0]})).json() == {"events": 1}
        first = (await admin.call("GET", f"{HOOK}/deliveries?limit=2&status=waiting")).json()
        second = (await admin.call("GET", f"{HOOK}/deliveries?limit=2&cursor={first['next_cursor']}")).json()
        found = [one["event_id"] for one in (*first["deliveries"], *second["deliveries"])]
        assert found == sent[::-1]
        assert second["next_cursor"] is None
        one = second["deliveries"][0]
        assert (one["type"], one["status"], one["attempts"], one["problem"]) == ("webhook.test", "waiting", 0, None)
        assert (await admin.call("GET", f"{HOOK}/deliveries?status=given_up")).json()["deliveries"] == []
        assert_problem(await admin.call("GET", f"{HOOK}/deliveries?status=lost"), 422, "status")
        assert_problem(await admin.call("GET", f"{HOOK}/deliveries?cursor=x"), 400, "cursor")

    async def test_everything_is_in_the_audit_log_without_the_url_s_path(self, admin: Api, secret: str) -> None:
        await admin.call("PUT", HOOK, json={"url": "https://other.example.com/t0k3n"})
        await admin.call("PUT", HOOK, json={"url": "https://other.example.com/t0k3n"})
        await admin.call("POST", f"{HOOK}/secret")
        await admin.call("POST", f"{HOOK}/test")
        await admin.call("POST", f"{HOOK}/replay", json={"since": "2026-01-01T00:00:00Z"})
        assert (await admin.call("DELETE", HOOK)).status_code == 204
        answer = await admin.call("GET", "/api/v1/audit?target=platform")
        rows = answer.json()["audit"][::-1]
        assert [row["action"] for row in rows] == [
            "webhook.created",
            "webhook.changed",
            "webhook.secret_rotated",
            "webhook.tested",
            "webhook.replayed",
            "webhook.deleted",
        ]
        assert rows[1]["detail"]["before"]["origin"] == "https://platform.example.com"
        assert rows[1]["detail"]["after"] == {"origin": "https://other.example.com", "types": None, "enabled": True}
        assert "s3cr3t" not in answer.text
        assert "t0k3n" not in answer.text

    async def test_there_are_not_too_many(self, admin: Api) -> None:
        for number in range(50):
            assert (await admin.call("PUT", f"/api/v1/webhooks/n{number}", json={"url": URL})).status_code == 201
        assert_problem(await admin.call("PUT", HOOK, json={"url": URL}), 409, "50 webhooks")
        assert (await admin.call("PUT", "/api/v1/webhooks/n7", json={"url": URL})).status_code == 200


def test_types_fit_their_column() -> None:
    assert all(1 <= len(kind) <= 32 for kind in EventType)
