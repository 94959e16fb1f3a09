"""The platform API: what a sign-up backend may do, and what it may not."""

import asyncio
import base64
import json
import math
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrepot.access.api_scopes import ApiScope
from entrepot.access.secrets import Secret
from tests.support.api import ACCOUNTS, ADA, Api, assert_problem
from tests.support.programs import run_well
from tests.support.served import RegistryClient, Served, rows_of


async def test_sign_up_answers_all_that_its_user_needs(served: Served, platform: Api) -> None:
    answer = await platform.call("POST", ACCOUNTS, json=ADA)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    account, credential = document["account"], document["credential"]
    assert account["external_id"] == "ada"
    assert account["identity"] == ADA["identity"]
    assert account["name"].startswith("ft-")
    assert credential["username"] == account["name"]
    assert Secret(credential["secret"]).is_wellformed("entp")
    for tool in ("docker", "podman", "helm", "kubernetes"):
        assert credential["secret"] in document["login"][tool]
        assert credential["username"] in document["login"][tool]
        assert "127.0.0.1:8080" in document["login"][tool]
    answer = await served.http.get("/token", auth=(credential["username"], credential["secret"]))
    assert answer.status_code == 200


async def test_second_sign_up_shows_neither_a_second_account_nor_the_secret(platform: Api) -> None:
    first = (await platform.call("POST", ACCOUNTS, json=ADA)).json()
    answer = await platform.call("POST", ACCOUNTS, json=ADA | {"identity": {"email": "other"}})
    assert answer.status_code == 200
    assert answer.json() == {"account": {**first["account"]}} | {}
    assert first["credential"]["secret"] not in answer.text


async def test_two_sign_ups_at_once_make_one_account(platform: Api) -> None:
    answers = await asyncio.gather(*(platform.call("POST", ACCOUNTS, json=ADA) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["account"]["name"] for answer in answers}) == 1
    assert len((await platform.call("GET", ACCOUNTS)).json()["accounts"]) == 1


@dataclass(frozen=True)
class Case:
    id: str
    body: Any
    status: int
    words: str = ""
    headers: dict[str, str] = field(default_factory=dict)


BAD_SIGN_UPS = [
    Case("unknown plan", ADA | {"plan": "gold"}, 422, "no plan 'gold'"),
    Case("unknown field", ADA | {"emial": "x"}, 422, "emial"),
    Case("no external id", {"plan": "free"}, 422, "external_id"),
    Case("empty external id", ADA | {"external_id": ""}, 422, "external_id"),
    Case("long external id", ADA | {"external_id": "x" * 10_000}, 422, "external_id"),
    Case("control character in the external id", ADA | {"external_id": "a\nb"}, 422, "external_id"),
    Case("space around the external id", ADA | {"external_id": " a"}, 422, "external_id"),
    Case("external id is a number", ADA | {"external_id": 7}, 422, "external_id"),
    Case("identity is a list", ADA | {"identity": []}, 422, "identity"),
    Case("identity too large", ADA | {"identity": {"x": "y" * 5000}}, 422, "identity has"),
    Case("identity too deep", ADA | {"identity": {"a": {"b": {"c": {"d": {"e": 1}}}}}}, 422, "nested"),
    Case("control character in the identity", ADA | {"identity": {"a": "\x1b[31m"}}, 422, "control"),
    Case("end in the past", ADA | {"expires_at": "2020-01-01T00:00:00Z"}, 422, "past"),
    Case("end without a time zone", ADA | {"expires_at": "2099-01-01T00:00:00"}, 422, "timezone"),
    Case("end that no calendar has in UTC", ADA | {"expires_at": "9999-12-31T23:59:59-12:00"}, 422, "expires_at"),
    Case("half a surrogate pair as plan", ADA | {"plan": "\ud800"}, 422, "surrogate"),
    Case("half a surrogate pair as key", ADA | {"identity": {"\udc00": 1}}, 422, "surrogate"),
    Case("NUL as plan", ADA | {"plan": "a\x00"}, 422, "NUL"),
    Case("number that JSON does not have", ADA | {"identity": {"a": math.nan}}, 422, "no number"),
    Case("body is a list", [ADA], 422),
]


@pytest.mark.parametrize("case", BAD_SIGN_UPS, ids=lambda case: case.id)
async def test_bad_sign_up_is_refused_and_leaves_nothing(served: Served, admin: Api, case: Case) -> None:
    rows = rows_of(served)
    content = json.dumps(case.body)
    answer = await admin.call("POST", ACCOUNTS, content=content, headers={"Content-Type": "application/json"})
    assert_problem(answer, case.status, case.words)
    assert rows_of(served) == rows


@pytest.mark.parametrize("path", ["/accounts/a%00b", "/accounts?external_id=a%00b", "/plans/%00"])
async def test_an_address_with_nul_is_refused(admin: Api, path: str) -> None:
    assert_problem(await admin.call("GET", f"/api/v1{path}"), 400, "NUL")


async def test_our_own_mistake_is_a_problem_document_and_is_counted(
    served: Served, admin: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(served.parts.plans, "list_plans", fail)
    assert_problem(await admin.call("GET", "/api/v1/plans"), 500, "our mistake")
    metrics = (await served.http.get("/metrics")).text
    line = 'entrepot_http_requests_total{method="GET",route="/api/v1/plans",status="500"}'
    assert line in metrics


async def test_body_that_is_no_json_or_too_large_is_refused(admin: Api) -> None:
    json = {"Content-Type": "application/json"}
    assert_problem(await admin.call("POST", ACCOUNTS, content=b"{", headers=json), 422)
    assert_problem(await admin.call("POST", ACCOUNTS, content=b" " * 70_000, headers=json), 413, "65536")


class TestKeys:
    async def test_platform_key_can_do_nothing_else(self, platform: Api) -> None:
        for method, path in (
            ("GET", "/api/v1/plans"),
            ("PUT", "/api/v1/plans/free"),
            ("GET", "/api/v1/api-keys"),
            ("POST", "/api/v1/api-keys"),
            ("DELETE", "/api/v1/api-keys/platform"),
            ("GET", "/api/v1/audit"),
            ("GET", f"{ACCOUNTS}/x/usage"),
        ):
            assert_problem(await platform.call(method, path, json={}), 403, "platform")

    async def test_key_of_one_plan_sees_and_touches_no_other(self, platform: Api, admin: Api) -> None:
        assert_problem(await platform.call("POST", ACCOUNTS, json=ADA | {"plan": "publisher"}), 403, "publisher")
        other = (await admin.call("POST", ACCOUNTS, json=ADA | {"plan": "publisher"})).json()
        path = f"{ACCOUNTS}/{other['account']['name']}"
        unknown = await platform.call("GET", f"{ACCOUNTS}/{other['account']['name'][:-1]}x")
        for method, suffix in (
            ("GET", ""),
            ("PATCH", ""),
            ("DELETE", ""),
            ("GET", "/credentials"),
            ("POST", "/credentials"),
            ("DELETE", f"/credentials/{other['credential']['id']}"),
        ):
            answer = await platform.call(method, path + suffix, json={})
            assert_problem(answer, 404, "there is no account")
            assert answer.json()["title"] == unknown.json()["title"]
        # The same external id on the key's own plan does not show the other account either.
        taken = await platform.call("POST", ACCOUNTS, json=ADA)
        assert_problem(taken, 409, "this external_id has an account that this API key may not see")
        assert other["account"]["name"] not in taken.text
        assert (await platform.call("GET", ACCOUNTS)).json()["accounts"] == []

    @pytest.mark.parametrize(
        "authorization",
        [
            "",
            "Bearer",
            "Bearer x",
            "Basic eDp5",
            pytest.param(f"Bearer {Secret.generate('entk').reveal()}", id="nobody's"),
            pytest.param("Bearer " + "x" * 9000, id="long"),
        ],
    )
    async def test_without_a_key_there_is_nothing(self, served: Served, authorization: str) -> None:
        headers = {"Authorization": authorization} if authorization else {}
        answer = await served.http.get(ACCOUNTS, headers=headers)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")

    async def test_pull_credential_is_no_key(self, served: Served, customer: RegistryClient) -> None:
        headers = {"Authorization": f"Bearer {customer.credential.secret.reveal()}"}
        assert_problem(await served.http.get(ACCOUNTS, headers=headers), 401)

    async def test_revoked_key_is_refused_at_once(self, admin: Api, platform: Api) -> None:
        assert (await platform.call("GET", ACCOUNTS)).status_code == 200
        assert (await admin.call("DELETE", "/api/v1/api-keys/platform")).status_code == 204
        assert_problem(await platform.call("GET", ACCOUNTS), 401, "revoked")
        assert_problem(await admin.call("DELETE", "/api/v1/api-keys/none"), 404)

    async def test_made_over_the_api_works_and_is_never_shown_again(self, served: Served, admin: Api) -> None:
        body = {"name": "reader", "scopes": ["accounts:read"], "plans": ["free"]}
        answer = await admin.call("POST", "/api/v1/api-keys", json=body)
        assert answer.status_code == 201
        reader = Api(served.http, answer.json()["secret"])
        assert (await reader.call("GET", ACCOUNTS)).status_code == 200
        assert_problem(await reader.call("POST", ACCOUNTS, json=ADA), 403)
        assert reader.secret not in (await admin.call("GET", "/api/v1/api-keys")).text
        assert_problem(await admin.call("POST", "/api/v1/api-keys", json=body), 409)
        for wrong in ({"scopes": ["all"]}, {"scopes": []}, {"plans": ["gold"]}, {"name": "A B"}):
            assert (
                await admin.call("POST", "/api/v1/api-keys", json=body | {"name": "new"} | wrong)
            ).status_code >= 400


class TestAccounts:
    @pytest.fixture
    async def ada(self, platform: Api) -> dict[str, Any]:
        document: dict[str, Any] = (await platform.call("POST", ACCOUNTS, json=ADA)).json()
        return document

    async def test_pages_are_followed_by_cursor(self, platform: Api) -> None:
        for number in range(5):
            await platform.call("POST", ACCOUNTS, json=ADA | {"external_id": f"user-{number}"})
        found, cursor = [], ""
        while True:
            page = (await platform.call("GET", f"{ACCOUNTS}?limit=2{cursor}")).json()
            found += [account["external_id"] for account in page["accounts"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert found == [f"user-{number}" for number in range(5)]

    @pytest.mark.parametrize("cursor", ["x", "YWZ0ZXI6eA", "!!!", "a" * 500, "YWZ0ZXI6LTE", "%01"])
    async def test_tampered_cursor_is_refused(self, platform: Api, cursor: str) -> None:
        assert_problem(await platform.call("GET", f"{ACCOUNTS}?cursor={cursor}"), 400, "cursor")

    async def test_filters(self, admin: Api, ada: dict[str, Any]) -> None:
        await admin.call("POST", ACCOUNTS, json={"external_id": "pub", "plan": "publisher"})

        async def names(query: str) -> list[str]:
            return [one["external_id"] for one in (await admin.call("GET", f"{ACCOUNTS}?{query}")).json()["accounts"]]

        assert await names("") == ["ada", "pub"]
        assert await names("plan=publisher") == ["pub"]
        assert await names("external_id=ada") == ["ada"]
        assert await names("external_id=' OR 1=1 --") == []
        assert await names("status=suspended") == []

    async def test_rotation_keeps_the_old_secret_for_its_grace(
        self, served: Served, platform: Api, ada: dict[str, Any]
    ) -> None:
        name, old = ada["account"]["name"], ada["credential"]["secret"]

        async def works(secret: str) -> bool:
            return (await served.http.get("/token", auth=(name, secret))).status_code == 200

        path = f"{ACCOUNTS}/{name}/credentials"
        second = (await platform.call("POST", path, json={"grace_seconds": 3600})).json()["credential"]["secret"]
        assert await works(old)
        assert await works(second)
        third = (await platform.call("POST", path, json={"grace_seconds": 3600})).json()["credential"]["secret"]
        assert [await works(secret) for secret in (old, second, third)] == [False, True, True]
        fourth = (await platform.call("POST", path, json={"grace_seconds": 0})).json()["credential"]["secret"]
        assert [await works(secret) for secret in (second, third, fourth)] == [False, False, True]
        listed = (await platform.call("GET", path)).json()["credentials"]
        assert len(listed) == 4
        assert not any("secret" in credential for credential in listed)

    async def test_without_a_word_the_old_secret_has_a_day(
        self, served: Served, platform: Api, ada: dict[str, Any]
    ) -> None:
        path = f"{ACCOUNTS}/{ada['account']['name']}/credentials"
        assert (await platform.call("POST", path)).status_code == 201
        new, old = (await platform.call("GET", path)).json()["credentials"]
        assert (new["status"], old["status"]) == ("active", "ending")
        left = datetime.fromisoformat(old["revoked_at"]) - datetime.now(UTC)
        assert timedelta(hours=23) < left <= timedelta(hours=24)
        assert old["warning"] is None  # nobody used it
        login = (ada["account"]["name"], ada["credential"]["secret"])
        assert (await served.http.get("/token", auth=login)).status_code == 200

    async def test_lifetimes_by_request_end_no_later_than_the_plan_says(self, admin: Api) -> None:
        trial = {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}], "credential_lifetime": "2h"}
        await admin.call("PUT", "/api/v1/plans/trial", json=trial)
        body = {"external_id": "short", "plan": "trial", "lifetime_seconds": 60}
        created = (await admin.call("POST", ACCOUNTS, json=body)).json()

        def life(credential: dict[str, str]) -> float:
            ends, begins = (datetime.fromisoformat(credential[key]) for key in ("expires_at", "created_at"))
            return (ends - begins).total_seconds()

        assert life(created["credential"]) == 60
        path = f"{ACCOUNTS}/{created['account']['name']}/credentials"
        for wanted, given in ((90, 90), (10**6, 7200)):
            issued = await admin.call("POST", path, json={"lifetime_seconds": wanted})
            assert life(issued.json()["credential"]) == given
        for wrong in (0, -5, 10**9, "soon", 10**12):
            assert (await admin.call("POST", path, json={"lifetime_seconds": wrong})).status_code in {400, 422}

    async def test_labels_are_kept_changed_and_erased(self, admin: Api, platform: Api) -> None:
        body = ADA | {"external_id": "labelled", "labels": {"cohort": "2026-11", "team/lead": "Zoë"}}
        path = f"{ACCOUNTS}/{(await platform.call('POST', ACCOUNTS, json=body)).json()['account']['name']}"
        assert (await platform.call("GET", path)).json()["labels"] == body["labels"]
        changed = await platform.call("PATCH", path, json={"labels": {"cohort": "2026-12"}})
        assert changed.json()["labels"] == {"cohort": "2026-12"}
        assert (await platform.call("PATCH", path, json={"status": "active"})).json()["labels"] == {"cohort": "2026-12"}
        assert "2026-12" not in (await admin.call("GET", "/api/v1/audit")).text
        for wrong in (
            {"": "x"},
            {"a b": "x"},
            {"a": "x" * 201},
            {"a": 5},
            {"a": "\x01"},
            {f"n{n}": "" for n in range(33)},
        ):
            assert (await platform.call("PATCH", path, json={"labels": wrong})).status_code == 422
        await platform.call("DELETE", path)
        deleted = (await admin.call("GET", f"{ACCOUNTS}?status=deleted")).json()["accounts"]
        assert [account["labels"] for account in deleted] == [{}]

    async def test_an_account_can_be_given_an_end_and_have_it_taken(
        self, served: Served, platform: Api, ada: dict[str, Any]
    ) -> None:
        path = f"{ACCOUNTS}/{ada['account']['name']}"
        login = (ada["account"]["name"], ada["credential"]["secret"])
        soon = datetime.now(UTC) + timedelta(seconds=1)
        assert (await platform.call("PATCH", path, json={"expires_at": soon.isoformat()})).status_code == 200
        await asyncio.sleep(1.1)
        refused = await served.http.get("/token", auth=login)
        assert refused.status_code == 401
        assert "the account expired" in refused.json()["errors"][0]["message"]
        assert (await platform.call("PATCH", path, json={"expires_at": None})).json()["expires_at"] is None
        assert (await served.http.get("/token", auth=login)).status_code == 200
        past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        assert_problem(await platform.call("PATCH", path, json={"expires_at": past}), 422, "past")

    async def test_ready_made_text_fits_every_tool(self, ada: dict[str, Any], tmp_path: Path) -> None:
        login, name, secret = ada["login"], ada["account"]["name"], ada["credential"]["secret"]
        assert set(login) == {"docker", "podman", "helm", "kubernetes", "kubernetes_secret", "containerd", "kubelet"}
        auth = base64.b64encode(f"{name}:{secret}".encode()).decode()
        hosts = tomllib.loads(login["containerd"])
        (host,) = hosts["host"].values()
        assert host["header"] == {"Authorization": [f"Basic {auth}"]}
        document = yaml.safe_load(login["kubernetes_secret"])
        config = json.loads(base64.b64decode(document["data"][".dockerconfigjson"]))
        assert list(config["auths"].values()) == [{"username": name, "password": secret, "auth": auth}]
        environment = {"KUBELET_FOLDER": str(tmp_path)}
        run_well("sh", "-eu", "-c", login["kubelet"], environment=environment)
        (provider,) = yaml.safe_load((tmp_path / "config.yaml").read_text())["providers"]
        asked = json.dumps({"kind": "CredentialProviderRequest", "image": f"{provider['matchImages'][0]}/smm/api:1"})
        answer = json.loads(run_well(tmp_path / "bin" / provider["name"], stdin=asked))
        assert (answer["kind"], answer["apiVersion"]) == ("CredentialProviderResponse", provider["apiVersion"])
        assert answer["auth"] == {provider["matchImages"][0]: {"username": name, "password": secret}}

    @pytest.mark.parametrize("grace", [-1, 10**12, "soon", 1.5, 86400 * 31])
    async def test_absurd_grace_is_refused(self, platform: Api, ada: dict[str, Any], grace: object) -> None:
        answer = await platform.call(
            "POST", f"{ACCOUNTS}/{ada['account']['name']}/credentials", json={"grace_seconds": grace}
        )
        assert answer.status_code in {400, 422}

    async def test_revoked_credential_stops_and_stays_listed(
        self, served: Served, platform: Api, ada: dict[str, Any]
    ) -> None:
        name, credential = ada["account"]["name"], ada["credential"]
        path = f"{ACCOUNTS}/{name}/credentials"
        assert (await platform.call("DELETE", f"{path}/{credential['id']}")).status_code == 204
        assert (await platform.call("DELETE", f"{path}/{credential['id']}")).status_code == 204
        assert (await served.http.get("/token", auth=(name, credential["secret"]))).status_code == 401
        assert (await platform.call("GET", path)).json()["credentials"][0]["revoked_at"] is not None
        assert_problem(await platform.call("DELETE", f"{path}/nonsense"), 404)

    async def test_suspend_resume_and_change_of_plan(self, admin: Api, platform: Api, ada: dict[str, Any]) -> None:
        path = f"{ACCOUNTS}/{ada['account']['name']}"
        assert (await platform.call("PATCH", path, json={"status": "suspended"})).json()["status"] == "suspended"
        assert_problem(await platform.call("POST", f"{path}/credentials"), 409, "suspended")
        assert (await platform.call("PATCH", path, json={"status": "active"})).json()["status"] == "active"
        assert_problem(await platform.call("PATCH", path, json={"status": "deleted"}), 422)
        assert_problem(await platform.call("PATCH", path, json={"plan": "publisher"}), 403)
        assert_problem(await admin.call("PATCH", path, json={"plan": "gold"}), 422)
        assert (await admin.call("PATCH", path, json={"plan": "publisher"})).json()["plan"] == "publisher"

    async def test_deleted_account_is_erased_and_its_counts_stay(
        self, admin: Api, platform: Api, ada: dict[str, Any]
    ) -> None:
        path = f"{ACCOUNTS}/{ada['account']['name']}"
        assert (await platform.call("DELETE", path)).status_code == 204
        assert_problem(await platform.call("GET", path), 404)
        assert_problem(await platform.call("DELETE", path), 404)
        assert (await platform.call("GET", ACCOUNTS)).json()["accounts"] == []
        gone = (await admin.call("GET", f"{ACCOUNTS}?status=deleted")).json()["accounts"][0]
        assert (gone["external_id"], gone["identity"]) == (None, {})
        again = await platform.call("POST", ACCOUNTS, json=ADA)
        assert again.status_code == 201
        assert again.json()["account"]["name"] == ada["account"]["name"]

    async def test_usage(self, served: Served, admin: Api, ada: dict[str, Any], publisher: RegistryClient) -> None:
        image = await publisher.push_image("smm/api", "v1")
        name = ada["account"]["name"]
        await served.http.get("/v2/smm/api/manifests/v1", auth=(name, ada["credential"]["secret"]))
        await served.parts.usage.flush()
        usage = (await admin.call("GET", f"{ACCOUNTS}/{name}/usage")).json()
        assert (usage["pulls"], usage["bytes_served"]) == (1, len(image.manifest))
        assert usage["repositories"][0]["repository"] == "smm/api"
        assert datetime.now(UTC) - datetime.fromisoformat(usage["last_pull_at"]) < timedelta(minutes=1)

    async def test_expired_account_is_refused(self, served: Served, platform: Api) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=2)
        answer = await platform.call("POST", ACCOUNTS, json=ADA | {"expires_at": soon.isoformat()})
        auth = (answer.json()["account"]["name"], answer.json()["credential"]["secret"])
        assert (await served.http.get("/token", auth=auth)).status_code == 200
        await asyncio.sleep(max(0, (soon - datetime.now(UTC)).total_seconds()) + 0.05)
        answer = await served.http.get("/token", auth=auth)
        assert answer.status_code == 401
        assert "expired" in answer.text


class TestPlans:
    async def test_put_get_list_delete(self, admin: Api) -> None:
        limits = {"pulls_per_hour": 200, "bytes_per_month": "500GB"}
        grants = [{"repositories": ["a/*"], "actions": ["pull"]}]
        plan = {"grants": grants, "limits": limits, "credential_lifetime": "90d"}
        answer = await admin.call("PUT", "/api/v1/plans/trial", json=plan)
        assert answer.status_code == 200
        expected = {"name": "trial", "grants": grants, "limits": limits, "credential_lifetime": "7776000s"}
        assert (await admin.call("GET", "/api/v1/plans/trial")).json() == expected
        assert expected in (await admin.call("GET", "/api/v1/plans")).json()["plans"]
        created = await admin.call("POST", ACCOUNTS, json=ADA | {"plan": "trial"})
        lifetime = datetime.fromisoformat(created.json()["credential"]["expires_at"]) - datetime.now(UTC)
        assert timedelta(days=89) < lifetime <= timedelta(days=90)
        assert_problem(await admin.call("DELETE", "/api/v1/plans/trial"), 409, "1 accounts")
        assert (await admin.call("DELETE", "/api/v1/plans/publisher")).status_code == 204

    @pytest.mark.parametrize(
        "plan",
        [
            {"grants": []},
            {"grants": [{"repositories": ["a"], "actions": ["fly"]}]},
            {"grants": [{"repositories": ["a b"], "actions": ["pull"]}]},
            {"grants": [{"repositories": ["a"], "actions": ["pull"], "tags": {"newest": 3}}]},
            {"grants": [{"repositories": ["a"], "actions": ["pull"]}], "limits": {}},
            {"grants": [{"repositories": ["a"], "actions": ["pull"]}], "limits": {"pulls_per_hour": "many"}},
            {"grants": [{"repositories": ["a"], "actions": ["pull"]}], "limits": "none"},
        ],
    )
    async def test_bad_plan_is_refused(self, admin: Api, plan: dict[str, Any]) -> None:
        assert_problem(await admin.call("PUT", "/api/v1/plans/trial", json=plan), 422)
        assert_problem(await admin.call("GET", "/api/v1/plans/trial"), 404)


class TestAudit:
    async def test_every_change_leaves_a_row_without_secret_or_identity(self, admin: Api, platform: Api) -> None:
        created = (await platform.call("POST", ACCOUNTS, json=ADA, headers={"X-Request-Id": "sign-up-1"})).json()
        name = created["account"]["name"]
        await platform.call("POST", f"{ACCOUNTS}/{name}/credentials")
        await platform.call("PATCH", f"{ACCOUNTS}/{name}", json={"status": "suspended"})
        await platform.call("PATCH", f"{ACCOUNTS}/{name}", json={"status": "active"})
        await platform.call("DELETE", f"{ACCOUNTS}/{name}/credentials/{created['credential']['id']}")
        await platform.call("DELETE", f"{ACCOUNTS}/{name}")
        answer = await admin.call("GET", f"/api/v1/audit?target={name}")
        rows = answer.json()["audit"]
        assert [row["action"] for row in reversed(rows)] == [
            "account.created",
            "credential.issued",
            "credential.issued",
            "account.suspended",
            "account.resumed",
            "credential.revoked",
            "account.deleted",
        ]
        assert {row["actor"] for row in rows} == {"api-key:platform"}
        assert rows[-1]["request_id"] == "sign-up-1"
        assert "entp_" not in answer.text
        assert "ada@example.com" not in answer.text

    async def test_a_row_says_what_was_before_and_after_and_whence_it_came(self, admin: Api, platform: Api) -> None:
        name = (await platform.call("POST", ACCOUNTS, json=ADA)).json()["account"]["name"]
        await platform.call("PATCH", f"{ACCOUNTS}/{name}", json={"status": "suspended"})
        (row,) = (await admin.call("GET", f"/api/v1/audit?target={name}&action=account.suspended")).json()["audit"]
        assert row["detail"] == {"before": "active", "after": "suspended"}
        assert row["address"] == "127.0.0.1"

    async def test_filters_and_export(self, admin: Api, platform: Api) -> None:
        begun = datetime.now(UTC)
        for number in range(3):
            await platform.call("POST", ACCOUNTS, json=ADA | {"external_id": f"user-{number}"})
        later = datetime.now(UTC)
        await admin.call("PUT", "/api/v1/plans/other", json={"grants": [{"repositories": ["x"], "actions": ["pull"]}]})

        async def actions(**query: str) -> list[str]:
            listed = (await admin.call("GET", "/api/v1/audit", params=query)).json()["audit"]
            exported = await admin.call("GET", "/api/v1/audit/export", params=query)
            assert exported.headers["content-type"].startswith("application/x-ndjson")
            assert [json.loads(line) for line in exported.text.splitlines()] == listed
            return [row["action"] for row in listed]

        assert await actions(actor="api-key:platform") == ["credential.issued", "account.created"] * 3
        assert await actions(action="plan.applied", actor="api-key:root") == ["plan.applied"]
        assert await actions(since=later.isoformat()) == ["plan.applied"]
        assert len(await actions(since=begun.isoformat(), until=later.isoformat())) == 6
        assert await actions(actor="nobody") == []
        assert (await admin.call("GET", "/api/v1/audit?since=yesterday")).status_code == 422
        assert_problem(await platform.call("GET", "/api/v1/audit/export"), 403)

    async def test_it_cannot_be_altered(self, admin: Api) -> None:
        for method in ("PUT", "PATCH", "DELETE", "POST"):
            assert (await admin.call(method, "/api/v1/audit")).status_code == 405

    async def test_reading_and_refusals_leave_none(self, admin: Api, platform: Api) -> None:
        before = (await admin.call("GET", "/api/v1/audit")).json()["audit"]
        await platform.call("GET", ACCOUNTS)
        await platform.call("POST", ACCOUNTS, json=ADA | {"plan": "publisher"})
        assert (await admin.call("GET", "/api/v1/audit")).json()["audit"] == before


async def test_request_id_is_echoed_only_when_well_formed(admin: Api) -> None:
    answer = await admin.call("GET", ACCOUNTS, headers={"X-Request-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    answer = await admin.call("GET", ACCOUNTS, headers={"X-Request-Id": "a b\tc"})
    assert answer.headers["x-request-id"] != "a b\tc"


async def test_unknown_path_and_method_are_problems(admin: Api) -> None:
    assert_problem(await admin.call("GET", "/api/v1/nothing"), 404)
    assert_problem(await admin.call("PUT", ACCOUNTS, json={}), 405)


async def test_openapi_document_is_served(served: Served) -> None:
    document = (await served.http.get("/api/openapi.json")).json()
    assert ACCOUNTS in document["paths"]
    assert (await served.http.get("/api/docs")).status_code == 200


def test_scopes_cover_what_they_say() -> None:
    from entrepot.access.api_scopes import covers

    assert covers(frozenset({ApiScope.ADMIN}), ApiScope.AUDIT_READ)
    assert covers(frozenset({ApiScope.ACCOUNTS_WRITE}), ApiScope.ACCOUNTS_READ)
    assert not covers(frozenset({ApiScope.ACCOUNTS_READ}), ApiScope.ACCOUNTS_WRITE)
    assert not covers(frozenset({ApiScope.ACCOUNTS_WRITE}), ApiScope.PLANS_READ)
    assert not covers(frozenset({ApiScope.ACCOUNTS_WRITE}), ApiScope.ADMIN)
