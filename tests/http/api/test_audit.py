"""Everything that a key changes stands in the audit log, whatever route it takes."""

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import entrepot
from entrepot.storage.tables import audit
from tests.support.api import ACCOUNTS, ADA, API_KEYS, Api
from tests.support.issuer import AUDIENCE, issuing
from tests.support.served import Served, serve

PLAN = {"grants": [{"repositories": ["x"], "actions": ["pull"]}]}
HOOK = "/api/v1/webhooks/hook"
REPLICATION = "/api/v1/replication"
SOURCE = {"type": "oci", "url": "https://registry.example.com", "username": "r", "password_env": "PASSWORD"}
RULE = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["v*"]}, "target": "{repository}"}
# (method, path, body, action, what the row tells beside); in this order each finds what it changes.
CHANGES: list[tuple[str, str, Any, str, dict[str, Any]]] = [
    ("PUT", "/api/v1/plans/other", PLAN, "plan.applied", {"before": None, "after": PLAN}),
    (
        "POST",
        API_KEYS,
        {"name": "reader", "scopes": ["accounts:read"], "networks": ["10.0.0.0/8"]},
        "api_key.created",
        {"scopes": ["accounts:read"], "plans": None, "networks": ["10.0.0.0/8"]},
    ),
    ("POST", f"{API_KEYS}/reader/rotation", {"overlap_seconds": 5}, "api_key.rotated", {"overlap_seconds": 5}),
    ("DELETE", f"{API_KEYS}/reader", None, "api_key.revoked", {"scopes": ["accounts:read"]}),
    ("POST", ACCOUNTS, ADA | {"labels": {"a": "secret"}}, "account.created", {"plan": "free", "labels": ["a"]}),
    ("PATCH", "{account}", {"plan": "other"}, "account.plan_changed", {"before": "free", "after": "other"}),
    ("PATCH", "{account}", {"labels": {"b": "secret"}}, "account.relabelled", {"before": ["a"], "after": ["b"]}),
    (
        "PATCH",
        "{account}",
        {"expires_at": "2099-01-01T00:00:00Z"},
        "account.expiry_changed",
        {"before": None, "after": "2099-01-01T00:00:00+00:00"},
    ),
    ("PATCH", "{account}", {"status": "suspended"}, "account.suspended", {"before": "active", "after": "suspended"}),
    ("PATCH", "{account}", {"status": "active"}, "account.resumed", {"before": "suspended", "after": "active"}),
    ("POST", "{account}/credentials", {"grace_seconds": 7}, "credential.issued", {"grace_seconds": 7}),
    ("DELETE", "{account}/credentials/{credential}", None, "credential.revoked", {}),
    ("DELETE", "{account}", None, "account.deleted", {"before": {"status": "active", "plan": "other"}}),
    ("PUT", HOOK, {"url": "https://platform.example.com/hook"}, "webhook.created", {}),
    ("POST", f"{HOOK}/secret", {"grace_seconds": 0}, "webhook.secret_rotated", {"grace_seconds": 0}),
    ("POST", f"{HOOK}/test", None, "webhook.tested", {}),
    ("POST", f"{HOOK}/replay", {"since": "2020-01-01T00:00:00Z"}, "webhook.replayed", {}),
    ("DELETE", HOOK, None, "webhook.deleted", {}),
    ("DELETE", "/api/v1/plans/publisher", None, "plan.deleted", {}),
    ("PUT", f"{REPLICATION}/sources/internal", SOURCE, "source.applied", {"before": None, "after": SOURCE}),
    ("PUT", f"{REPLICATION}/rules/smm", RULE, "rule.applied", {"before": None, "after": RULE}),
    ("POST", f"{REPLICATION}/rules/smm/runs", None, "run.started", {}),
    ("DELETE", f"{REPLICATION}/runs/{{run}}", None, "run.cancelled", {}),
    ("DELETE", f"{REPLICATION}/rules/smm", None, "rule.deleted", {"before": RULE}),
    ("DELETE", f"{REPLICATION}/sources/internal", None, "source.deleted", {"before": SOURCE}),
]


async def test_every_change_says_who_what_when_whence_before_and_after(served: Served, admin: Api) -> None:
    names: dict[str, str] = {}
    for number, (method, path, body, action, told) in enumerate(CHANGES):
        request_id = f"request-{number}"
        answer = await admin.call(
            method, path.format(**names), json=body, headers={"X-Request-Id": request_id} if number % 2 else {}
        )
        assert answer.status_code < 300, (method, path, answer.text)
        if path == ACCOUNTS:
            created = answer.json()
            names["account"] = f"{ACCOUNTS}/{created['account']['name']}"
            names["credential"] = created["credential"]["id"]
        if path.endswith("/runs"):
            names["run"] = answer.json()["id"]
        rows = (await admin.call("GET", "/api/v1/audit?limit=3")).json()["audit"]
        row = next(one for one in rows if one["action"] == action)
        assert row["request_id"] == answer.headers["x-request-id"], action
        assert (row["actor"], row["address"]) == ("api-key:root", "127.0.0.1")
        assert told.items() <= row["detail"].items(), row
        assert row["at"]
    log = (await admin.call("GET", "/api/v1/audit/export")).text
    for private in ("ada@example.com", '"ada"', 'secret"', "entp_", "entk_", "whsec_"):
        assert private not in log


async def test_no_route_that_changes_something_is_missing_here(served: Served) -> None:
    document = (await served.http.get("/api/openapi.json")).json()
    changing = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "get"
    }
    # These two are sent without an API key, and tested where workloads and leaked secrets are.
    changing -= {("POST", "/api/v1/oidc/token"), ("POST", "/api/v1/secret-scanning/alerts")}
    # What a registry tells of changes nothing; the runs say what came of it.
    changing -= {("POST", f"{REPLICATION}/sources/{{name}}/pushes")}

    def is_tried(method: str, template: str) -> bool:
        pattern = re.sub(r"\{\w+\}", r"[^/]+", template)
        names = {"account": f"{ACCOUNTS}/x", "credential": "y", "run": "z"}
        paths = (path.format(**names) for tried, path, *_ in CHANGES if tried == method)
        return any(re.fullmatch(pattern, path) for path in paths)

    assert {one for one in changing if not is_tried(*one)} == set()


async def test_nothing_alters_a_row_and_only_age_takes_one_away() -> None:
    source = Path(entrepot.__file__).parent
    changing = {
        path.name: re.findall(r"\baudit\.(?:update|delete)\(|delete_some\(connection, audit,", path.read_text())
        for path in source.rglob("*.py")
        if "migrations" not in path.parts
    }
    assert {name: found for name, found in changing.items() if found} == {
        "records.py": ["delete_some(connection, audit,"]
    }


async def test_a_workload_is_named_with_every_change_that_it_makes(tmp_path: Path) -> None:
    async with issuing() as issuer:
        workload = {"name": "signup", "claims": {"sub": "**:signup"}, "scopes": ["accounts:write"]}
        settings = {"issuers": [{"url": issuer.url, "audience": AUDIENCE, "workloads": [workload]}]}
        async with serve(tmp_path, oidc=settings) as served:
            answer = await served.http.post("/api/v1/oidc/token", json={"token": issuer.token()})
            api = Api(served.http, answer.json()["secret"])
            name = (await api.sign_up("ada"))["account"]["name"]
            await api.call("PATCH", f"{ACCOUNTS}/{name}", json={"status": "suspended"})
            await api.call("DELETE", f"{ACCOUNTS}/{name}")

            def read(connection: sa.Connection) -> list[Any]:
                return list(connection.execute(sa.select(audit).where(audit.c.target == name)).mappings())

            rows = served.parts.database.read_now(read)
            assert len(rows) == 4
            for row in rows:
                assert row["actor"] == "oidc:signup"
                assert row["detail"]["key"] == answer.json()["api_key"]["name"]
