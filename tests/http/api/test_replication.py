"""Replication over the platform API: sources, rules, runs, and what is here."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from entrepot.accounts.records import AuditFilter
from entrepot.replication import runs
from entrepot.storage.tables import replication_runs
from entrepot.web.api import run_streams
from tests.support.api import Api, assert_problem, key
from tests.support.hostile import HostileRegistry, serving
from tests.support.served import Served

SOURCES, RULES, RUNS = (f"/api/v1/replication/{kind}" for kind in ("sources", "rules", "runs"))
RULE = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["*"]}}


@pytest.fixture
async def operator(served: Served) -> Api:
    return await key(served, "operator", "replication:write")


@pytest.fixture
async def hostile() -> AsyncIterator[HostileRegistry]:
    async with serving() as registry:
        yield registry


@pytest.fixture
async def ruled(operator: Api, hostile: HostileRegistry) -> Api:
    """A source and a rule, smm, are in force."""
    answer = await operator.call("PUT", f"{SOURCES}/internal", json={"type": "oci", "url": hostile.url})
    assert answer.status_code == 200, answer.text
    answer = await operator.call("PUT", f"{RULES}/smm", json=RULE)
    assert answer.status_code == 200, answer.text
    return operator


async def carry_out(served: Served) -> None:
    """As a worker does."""
    run = await served.parts.runs.claim()
    assert run is not None
    await served.parts.replications.carry_out(run)


class TestRules:
    async def test_sources_and_rules_come_and_go(self, served: Served, operator: Api) -> None:
        source = {"type": "oci", "url": "https://registry.example.com", "username": "r", "password_env": "PASSWORD"}
        answer = await operator.call("PUT", f"{SOURCES}/internal", json=source)
        assert answer.json() == {"name": "internal"} | source
        assert (await operator.call("GET", SOURCES)).json() == {"sources": [{"name": "internal"} | source]}
        rule = RULE | {"schedule": "0 3 * * *", "time_zone": "Europe/Berlin", "target": "{repository}", "priority": 2}
        rule |= {
            "tags": {"include": ["*"], "regex": "v.*", "newest": {"count": 3, "by": "version"}},
            "platforms": {"keep": ["linux/amd64"], "rebuild": True},
            "media_types": ["images", "application/vnd.wasm.*"],
        }
        answer = await operator.call("PUT", f"{RULES}/smm", json=rule)
        assert answer.status_code == 200, answer.text
        assert answer.json().items() >= ({"name": "smm"} | rule).items()
        assert answer.json()["scheduled_at"] is not None
        assert (await operator.call("GET", f"{RULES}/smm")).json() == answer.json()
        assert (await operator.call("GET", RULES)).json() == {"rules": [{"name": "smm"} | rule]}
        assert_problem(await operator.call("DELETE", f"{SOURCES}/internal"), 409, "is used by smm")
        assert (await operator.call("DELETE", f"{RULES}/smm")).status_code == 204
        assert (await operator.call("DELETE", f"{SOURCES}/internal")).status_code == 204
        for path in (f"{RULES}/smm", f"{SOURCES}/internal"):
            assert_problem(await operator.call("GET", path), 404)
            assert_problem(await operator.call("DELETE", path), 404)
        rows = await served.parts.audit.list_rows(AuditFilter(actor="api-key:operator"), None, 10)
        assert [row.action for row in rows] == ["source.deleted", "rule.deleted", "rule.applied", "source.applied"]

    @pytest.mark.parametrize(
        ("path", "fields", "words"),
        [
            (f"{RULES}/smm", RULE | {"source": "none"}, "rules.smm.source: there is no source 'none'"),
            (f"{RULES}/smm", RULE | {"schedule": "* * 31 2 *"}, "rules.smm.schedule: '* * 31 2 *': bad day-of-month"),
            (f"{RULES}/smm", RULE | {"deletions": "yes"}, "rules.smm.deletions: must be keep, mirror, or"),
            (f"{RULES}/smm", {}, "rules.smm.source: must be"),
            (f"{RULES}/smm", RULE | {"tags": {"regex": "v(1"}}, "rules.smm.tags.regex: 'v(1' is no regex"),
            (f"{RULES}/smm", RULE | {"tags": {"newest": 3}}, "rules.smm.tags.newest: source 'internal' does not"),
            (f"{RULES}/smm", RULE | {"platforms": ["arm64"]}, "rules.smm.platforms[0]: must be a platform"),
            (f"{RULES}/smm", RULE | {"media_types": ["helm"]}, "rules.smm.media_types[0]: must be images"),
            (f"{RULES}/SMM", RULE, "rules.SMM: a name takes"),
            (f"{RULES}/twin", RULE, "rules.twin.target: rule 'smm' would write the same tags"),
            (f"{SOURCES}/x", {"type": "ftp"}, "sources.x.type: must be one of"),
            (f"{SOURCES}/x", {"type": "oci", "url": "http://h", "password": "p"}, "does not belong in this file"),
        ],
    )
    async def test_what_is_wrong_is_said(self, ruled: Api, path: str, fields: dict[str, Any], words: str) -> None:
        assert_problem(await ruled.call("PUT", path, json=fields), 422, words)

    async def test_bodies_that_nobody_would_send_are_refused(self, ruled: Api) -> None:
        assert_problem(await ruled.call("PUT", f"{RULES}/smm", json=[]), 422)
        for content in (b'{"\\ud800": 1}', b'{"source": "\\ud800"}', b'{"priority": NaN}', b"{" * 5000):
            answer = await ruled.call("PUT", f"{RULES}/smm", content=content)
            assert 400 <= answer.status_code < 500, answer.text

    async def test_scopes_are_asked_for(self, served: Served, ruled: Api) -> None:
        reader = await key(served, "reader", "replication:read")
        stranger = await key(served, "stranger", "accounts:write", "plans:write")
        reads = [SOURCES, f"{SOURCES}/internal", RULES, f"{RULES}/smm", RUNS, "/api/v1/repositories"]
        for path in reads:
            assert (await reader.call("GET", path)).status_code == 200
            assert_problem(await stranger.call("GET", path), 403)
            assert_problem(await served.http.get(path), 401)
        queued = (await ruled.call("POST", f"{RULES}/smm/runs")).json()["id"]
        for method, path in (
            ("PUT", f"{SOURCES}/internal"),
            ("DELETE", f"{SOURCES}/internal"),
            ("PUT", f"{RULES}/smm"),
            ("DELETE", f"{RULES}/smm"),
            ("POST", f"{RULES}/smm/runs"),
            ("DELETE", f"{RUNS}/{queued}"),
        ):
            for caller in (reader, stranger):
                assert_problem(await caller.call(method, path, json=RULE), 403)
        for path in (f"{RUNS}/{queued}", f"{RUNS}/{queued}/events", f"{RUNS}/{queued}/artifacts"):
            assert_problem(await stranger.call("GET", path), 403)


class TestRuns:
    async def test_a_run_is_asked_for_and_looked_at(self, served: Served, ruled: Api, hostile: HostileRegistry) -> None:
        image = hostile.put_image("smm/api", "v1")
        answer = await ruled.call("POST", f"{RULES}/smm/runs")
        assert answer.status_code == 202
        queued = answer.json()
        assert (queued["rule"], queued["status"], queued["cause"], queued["scope"]) == (
            "smm",
            "queued",
            "request",
            None,
        )
        assert_problem(await ruled.call("POST", f"{RULES}/smm/runs"), 409, "has a run that is queued")
        await carry_out(served)
        run = (await ruled.call("GET", f"{RUNS}/{queued['id']}")).json()
        assert (run["status"], run["tries"]) == ("done", 1)
        assert run["report"]["tags_copied"] == 1
        assert run["report"]["bytes"] == len(image.layer) + len(image.config)
        page = (await ruled.call("GET", f"{RUNS}/{queued['id']}/artifacts")).json()
        assert page["next_cursor"] is None
        (artifact,) = page["artifacts"]
        assert (
            artifact.items()
            >= {
                "attempt": 1,
                "origin": "smm/api",
                "target": "smm/api",
                "tag": "v1",
                "digest": str(image.digest),
                "outcome": "copied",
                "bytes": run["report"]["bytes"],
                "problem": None,
            }.items()
        )
        for path in (f"{RUNS}/none", f"{RUNS}/none/artifacts", f"{RUNS}/none/events"):
            assert_problem(await ruled.call("GET", path), 404)
        assert_problem(await ruled.call("POST", f"{RULES}/none/runs"), 404)

    async def test_a_run_is_cancelled(self, ruled: Api) -> None:
        queued = (await ruled.call("POST", f"{RULES}/smm/runs")).json()
        assert (await ruled.call("DELETE", f"{RUNS}/{queued['id']}")).status_code == 204
        assert (await ruled.call("GET", f"{RUNS}/{queued['id']}")).json()["status"] == "cancelled"
        assert_problem(await ruled.call("DELETE", f"{RUNS}/{queued['id']}"), 409, "has ended already")

    async def test_runs_are_listed_by_pages(self, ruled: Api) -> None:
        ids = []
        for _ in range(5):
            queued = (await ruled.call("POST", f"{RULES}/smm/runs")).json()
            ids.insert(0, queued["id"])
            if len(ids) < 5:
                await ruled.call("DELETE", f"{RUNS}/{queued['id']}")
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = (await ruled.call("GET", RUNS, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
            seen += [run["id"] for run in page["runs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == ids
        found = (await ruled.call("GET", RUNS, params={"status": "queued", "rule": "smm"})).json()["runs"]
        assert [run["id"] for run in found] == ids[:1]
        assert_problem(await ruled.call("GET", RUNS, params={"rule": "none"}), 404)
        assert_problem(await ruled.call("GET", RUNS, params={"status": "lost"}), 422)
        for made_up in ("x", "YWZ0ZXI6eA", "YWZ0ZXI6MjAyNi0wMS0wMSB4"):
            assert_problem(await ruled.call("GET", RUNS, params={"cursor": made_up}), 400, "cursor")


def parse_events(text: str) -> list[tuple[str, str, Any]]:
    """(id, kind, data) of each event; comments are left out."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return events


class TestStreams:
    async def test_a_run_is_followed_to_its_end(self, served: Served, ruled: Api, hostile: HostileRegistry) -> None:
        for number in range(3):
            hostile.put_image("smm/api", f"v{number}")
        queued = (await ruled.call("POST", f"{RULES}/smm/runs")).json()
        path = f"{RUNS}/{queued['id']}/events"
        following = asyncio.create_task(ruled.call("GET", path))
        await asyncio.sleep(0.1)
        await carry_out(served)
        answer = await asyncio.wait_for(following, 30)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = parse_events(answer.text)
        artifacts = [(last, data["tag"]) for last, kind, data in events if kind == "artifact"]
        assert sorted(tag for _, tag in artifacts) == ["v0", "v1", "v2"]
        assert (events[0][1], events[0][2]["status"]) == ("run", "queued")
        assert (events[-1][1], events[-1][2]["status"]) == ("run", "done")
        # Who comes back gets what was missed, and then is told that this was all.
        again = parse_events((await ruled.call("GET", path, headers={"Last-Event-ID": artifacts[0][0]})).text)
        assert [(last, data["tag"]) for last, kind, data in again if kind == "artifact"] == artifacts[1:]
        answer = await ruled.call("GET", path, headers={"Last-Event-ID": events[-1][0]})
        assert (answer.status_code, answer.content) == (204, b"")
        for odd in ("-1", "x", "9" * 40):
            assert (await ruled.call("GET", path, headers={"Last-Event-ID": odd})).status_code == 200

    async def test_a_silent_run_is_kept_alive_and_a_stream_has_an_end(
        self, ruled: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, seconds in (("_COMMENT_SECONDS", 0.05), ("_MAX_SECONDS", 0.4), ("_LOOK_SECONDS", 0.02)):
            monkeypatch.setattr(run_streams, name, seconds)
        queued = (await ruled.call("POST", f"{RULES}/smm/runs")).json()
        answer = await ruled.call("GET", f"{RUNS}/{queued['id']}/events")
        assert "\n: nothing new\n" in answer.text
        assert [kind for _, kind, _ in parse_events(answer.text)] == ["run"]

    async def test_streams_are_bounded(self, ruled: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_streams, "MAX_STREAMS", 1)
        monkeypatch.setattr(run_streams, "_MAX_SECONDS", 2)
        queued = (await ruled.call("POST", f"{RULES}/smm/runs")).json()
        path = f"{RUNS}/{queued['id']}/events"
        answers = await asyncio.gather(ruled.call("GET", path), ruled.call("GET", path))
        assert sorted(answer.status_code for answer in answers) == [200, 503]
        # One that has ended makes room.
        assert (await ruled.call("GET", path)).status_code == 200


class TestRepositories:
    async def test_what_is_here_is_listed_by_pages(self, served: Served, operator: Api) -> None:
        publisher = await served.client("publisher")
        image = await publisher.push_image("smm/api", "v1")
        for tag in ("v2", "v3"):
            await publisher.push_image("smm/api", tag, image)
        await publisher.push_image("smm/web/deep", "v1", image)

        async def all_pages(path: str, field: str) -> list[Any]:
            found: list[Any] = []
            cursor: str | None = None
            while True:
                parameters = {"limit": 2} | ({"cursor": cursor} if cursor else {})
                page = (await operator.call("GET", path, params=parameters)).json()
                found += page[field]
                cursor = page["next_cursor"]
                if cursor is None:
                    return found

        assert await all_pages("/api/v1/repositories", "repositories") == ["smm/api", "smm/web/deep"]
        tags = await all_pages("/api/v1/repositories/smm/api/tags", "tags")
        assert tags == [{"name": name, "digest": str(image.digest)} for name in ("v1", "v2", "v3")]
        assert len(await all_pages("/api/v1/repositories/smm/web/deep/tags", "tags")) == 1
        assert_problem(await operator.call("GET", "/api/v1/repositories/none/tags"), 404)
        assert_problem(await operator.call("GET", "/api/v1/repositories/NONE/tags"), 400)


async def scrape(http: httpx.AsyncClient) -> dict[str, float]:
    """The figures of replication."""
    lines = (await http.get("/metrics")).text.splitlines()
    return {
        line.rpartition(" ")[0].removeprefix("entrepot_replication_"): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("entrepot_replication_")
    }


async def test_the_figures_of_replication_are_those_of_the_database(
    served: Served, ruled: Api, hostile: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.web.replication_metrics._KEPT_SECONDS", 0)
    hostile.put_image("smm/api", "v1")
    broken = hostile.put_image("smm/api", "v2")
    hostile.blobs.pop(next(digest for digest in hostile.blobs if hostile.blobs[digest] == broken.layer))
    await ruled.call("POST", f"{RULES}/smm/runs")
    await carry_out(served)
    figures = await scrape(served.http)
    assert figures['runs_total{rule="smm",status="failed"}'] == 1
    assert figures['tags_total{outcome="copied",rule="smm"}'] == 1
    assert figures['tags_total{outcome="failed",rule="smm"}'] == 1
    assert figures['bytes_total{rule="smm"}'] > 0
    assert figures['unreplicated_tags{rule="smm"}'] == 1
    assert 0 < figures['lag_seconds{rule="smm"}'] < 60
    assert figures['newest_lag_seconds{rule="smm"}'] == pytest.approx(figures['lag_seconds{rule="smm"}'], abs=0.1)
    assert 'last_success_timestamp_seconds{rule="smm"}' not in figures
    assert figures['unfinished_runs{status="queued"}'] == 0
    hostile.put_image("smm/api", "v2", broken)
    await ruled.call("POST", f"{RULES}/smm/runs")
    assert (await scrape(served.http))['unfinished_runs{status="queued"}'] == 1
    await carry_out(served)
    figures = await scrape(served.http)
    assert figures['runs_total{rule="smm",status="done"}'] == 1
    assert figures['lag_seconds{rule="smm"}'] == figures['unreplicated_tags{rule="smm"}'] == 0
    assert figures['last_success_timestamp_seconds{rule="smm"}'] > 1.7e9
    # Those of the process itself are still there.
    assert "entrepot_http_requests_total" in (await served.http.get("/metrics")).text


class TestPushes:
    async def test_what_is_told_is_copied_and_nothing_else(
        self, served: Served, ruled: Api, hostile: HostileRegistry
    ) -> None:
        for tag in ("v1", "v2"):
            hostile.put_image("smm/api", tag)
        teller = await key(served, "teller", "replication:run")
        told = {"pushes": [{"repository": "smm/api", "tag": "v1"}, {"repository": "other/api", "tag": "v1"}]}
        answer = await teller.call("POST", f"{SOURCES}/internal/pushes", json=told)
        assert (answer.status_code, answer.json()) == (202, {"pushes": 2})
        await carry_out(served)
        (run,) = (await ruled.call("GET", RUNS)).json()["runs"]
        assert (run["cause"], run["status"]) == ("push", "done")
        tags = (await ruled.call("GET", "/api/v1/repositories/smm/api/tags")).json()["tags"]
        assert [tag["name"] for tag in tags] == ["v1"]

    async def test_who_may_tell_may_do_nothing_else(self, served: Served, ruled: Api) -> None:
        teller = await key(served, "teller", "replication:run")
        pushes = {"pushes": [{"repository": "smm/api"}]}
        assert (await teller.call("POST", f"{RULES}/smm/runs")).status_code == 202
        waiting = {"status": "waiting", "report": {"failures": [{"problem": "for readers"}]}}
        await served.parts.database.write(
            lambda connection: connection.execute(replication_runs.update().values(waiting))
        )
        answer = await teller.call("POST", f"{RULES}/smm/runs")
        assert (answer.status_code, answer.json()["report"]) == (202, {})
        await served.parts.database.write(
            lambda connection: connection.execute(replication_runs.update().values(waiting))
        )
        assert "for readers" in (await ruled.call("POST", f"{RULES}/smm/runs")).text
        assert (await ruled.call("POST", f"{SOURCES}/internal/pushes", json=pushes)).status_code == 202
        for method, path, body in (
            ("PUT", f"{RULES}/smm", RULE),
            ("DELETE", f"{SOURCES}/internal", None),
            ("GET", RULES, None),
        ):
            assert_problem(await teller.call(method, path, json=body), 403, "lacks the scope replication:")
        reader = await key(served, "reader", "replication:read")
        assert_problem(await reader.call("POST", f"{SOURCES}/internal/pushes", json=pushes), 403, "replication:run")

    async def test_what_cannot_be_taken_is_refused(self, ruled: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        path = f"{SOURCES}/internal/pushes"
        assert_problem(await ruled.call("POST", path, json={"pushes": 1}), 400, "Harbor")
        assert_problem(await ruled.call("POST", f"{SOURCES}/none/pushes", json={"pushes": []}), 404)
        monkeypatch.setattr(runs, "MAX_SPOTS", 1)
        for tag, status in (("v1", 202), ("v1", 202), ("v2", 503)):
            answer = await ruled.call("POST", path, json={"pushes": [{"repository": "smm/api", "tag": tag}]})
            assert answer.status_code == status
        assert_problem(answer, 503, "as many pushes of this source wait as may")
