"""Runs that meet each other, are stopped, or lose their process."""

import asyncio
import os
from dataclasses import replace
from datetime import timedelta

import pytest
from aiohttp import web

from entrepot.accounts.records import AuditFilter
from entrepot.errors import RuleInvalid, RuleUnknown, RunActive, RunInterrupted
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.records import RunFilter
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Run
from entrepot.storage.clock import utc_now
from tests.faults.conftest import LIMITS, PATIENT, RULE, FakeClock, Replicating, eventually, working
from tests.support.content import Image
from tests.support.hostile import Gate, HostileRegistry, send_pieces
from tests.support.served import TESTER

API = RepositoryName("smm/api")
IMAGE = Image(layer=os.urandom(1_000_000))
LAYER = Digest.of(IMAGE.layer)
PATIENCE_SECONDS = 60


async def test_a_queued_run_is_carried_out_by_one_worker(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    queued = await replicating.runs.queue(RULE, TESTER)
    assert queued.status == "queued"
    async with working(*(replicating.beside() for _ in range(3))):

        async def is_done() -> bool:
            return (await replicating.latest()).status == "done"

        await eventually(is_done)
    assert hostile.count("GET", str(LAYER)) == 1
    assert len(await replicating.runs.list_runs(RunFilter(), 10)) == 1


async def test_a_rule_has_one_unfinished_run(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile, IMAGE.layer)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    for ask in (replicating.runs.queue, replicating.beside().replications.run):
        with pytest.raises(RunActive, match="has a run that is running"):
            await ask(RULE, TESTER)
    gate.opened.set()
    assert (await running).status == "done"


async def test_of_many_who_queue_a_rule_one_succeeds(replicating: Replicating) -> None:
    results = await asyncio.gather(*(replicating.runs.queue(RULE, TESTER) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, Run) for result in results) == 1
    assert sum(isinstance(result, RunActive) for result in results) == 7


async def test_waiting_for_a_queued_run_carries_it_out(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    queued = await replicating.runs.queue(RULE, TESTER)
    assert (await replicating.run()).id == queued.id


async def test_a_run_without_a_sign_of_life_is_taken_over(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    lost = await replicating.runs.queue(RULE, TESTER)
    dead = replicating.beside()
    assert (await dead.runs.claim()) is not None  # and then its process dies
    impatient = replicating.beside(silence=timedelta(seconds=2))
    assert await impatient.runs.claim() is None
    async with working(impatient):

        async def is_done() -> bool:
            return (await replicating.latest()).status == "done"

        await eventually(is_done)
    assert (await replicating.latest()).id == lost.id


async def test_a_run_that_was_taken_over_ends_where_it_was(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile, IMAGE.layer)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    hasty = replicating.beside(silence=timedelta(seconds=-1))  # believes everyone dead
    assert await hasty.runs.claim() is not None
    with pytest.raises(RunInterrupted, match="taken over"):
        await asyncio.wait_for(running, PATIENCE_SECONDS)
    gate.opened.set()
    assert (await replicating.latest()).status == "running"


async def test_a_worker_that_stops_gives_its_run_back(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile, IMAGE.layer)
    await replicating.runs.queue(RULE, TESTER)
    async with working(replicating.beside()):
        await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    assert (await replicating.latest()).status == "queued"
    gate.opened.set()
    assert (await replicating.run()).status == "done"


async def test_a_run_that_its_user_stops_says_so(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile, IMAGE.layer)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    run = await replicating.latest()
    assert run.status == "cancelled"
    assert "stopped before its end" in run.report["problem"]["problem"]
    gate.opened.set()
    assert (await replicating.run()).status == "done"


async def test_a_run_shows_how_far_it_is(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile, IMAGE.layer)
    running = asyncio.create_task(replicating.run())

    async def is_shown() -> bool:
        report = (await replicating.latest()).report if gate.reached.is_set() else {}
        return report.get("tags", {}).get("new") == 1 and report["bytes"] > 0

    await eventually(is_shown)
    gate.opened.set()
    await running


async def test_a_slow_rule_does_not_hold_up_another(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.put_image("other/api", "v1")
    gate = Gate(hostile, IMAGE.layer)
    quick = {"source": "hostile", "repositories": ["other/api"], "tags": {"include": ["*"]}}
    await replicating.rulebook.apply(parse_rule_file({"rules": {"quick": quick}}), TESTER)
    await replicating.runs.queue(RULE, TESTER)
    await replicating.runs.queue("quick", TESTER)
    async with working(replicating.beside()):

        async def is_done() -> bool:
            return (await replicating.runs.list_runs(RunFilter("quick"), 1))[0].status == "done"

        await eventually(is_done)
        assert (await replicating.latest()).status == "running"
        gate.opened.set()


async def test_a_reader_never_sees_a_tag_before_its_content(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_index(API.value, "v1", IMAGE, Image())
    gate = Gate(hostile, IMAGE.layer)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    reader = await replicating.served.client("publisher")
    assert (await reader.call("GET", "/v2/smm/api/manifests/v1")).status_code == 404
    assert (await reader.call("GET", f"/v2/smm/api/manifests/{IMAGE.digest}")).status_code == 404
    assert (await reader.call("GET", f"/v2/smm/api/blobs/{LAYER}")).status_code == 404
    gate.opened.set()
    assert (await running).status == "done"
    assert (await reader.call("GET", "/v2/smm/api/manifests/v1")).status_code == 200
    assert (await reader.call("GET", f"/v2/smm/api/blobs/{LAYER}")).content == IMAGE.layer


async def test_a_plan_changes_nothing(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    items = (await replicating.replications.plan(RULE)).items
    assert [(item.tag, item.digest, item.here) for item in items] == [(Tag("v1"), IMAGE.digest, None)]
    assert hostile.count("/blobs/") == 0
    assert await replicating.runs.list_runs(RunFilter(), 10) == []


async def test_a_rule_without_a_source_is_refused_whole(replicating: Replicating) -> None:
    rule = {"source": "none", "repositories": ["a/b"], "tags": {"include": ["*"]}}
    file = parse_rule_file({"sources": {"new": {"type": "oci", "url": "http://x"}}, "rules": {"r": rule}})
    with pytest.raises(RuleInvalid, match=r"^rules.r.source: there is no source 'none'"):
        await replicating.rulebook.apply(file, TESTER)
    assert [rule.name for rule in await replicating.rulebook.list_rules()] == [RULE]
    with pytest.raises(RuleUnknown):
        await replicating.runs.list_runs(RunFilter("r"), 1)


async def test_what_is_applied_stands_in_the_audit_log_without_secrets(replicating: Replicating) -> None:
    rows = await replicating.served.parts.audit.list_rows(AuditFilter(), None, 10)
    actions = [(row.action, row.target) for row in rows if row.action.startswith(("rule", "source"))]
    assert actions == [("rule.applied", RULE), ("source.applied", "hostile")]


async def test_finished_runs_are_kept_in_bounded_number(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    forgetful = replicating.beside(kept_runs=3)
    ids = [(await forgetful.run()).id for _ in range(5)]
    assert [run.id for run in await replicating.runs.list_runs(RunFilter(RULE), 10)] == ids[:1:-1]


async def test_finished_runs_are_kept_for_so_long(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    clock = FakeClock(utc_now())
    limits = replace(LIMITS, kept=timedelta(days=90))
    dated = Replicating(replicating.served, PATIENT, limits=limits, clock=clock)
    await dated.run()
    clock.now += timedelta(days=90)
    kept = await dated.run()
    clock.now += timedelta(seconds=1)
    latest = await dated.run()
    assert [run.id for run in await dated.runs.list_runs(RunFilter(RULE), 10)] == [latest.id, kept.id]


async def test_a_listener_that_fails_ends_the_run_with_a_reason(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    def fail(event: object) -> None:
        raise ValueError("a mistake of ours")

    hostile.put_image(API.value, "v1", IMAGE)
    run = await replicating.replications.run(RULE, TESTER, fail)
    assert run.status == "failed"
    assert "failed unexpectedly" in run.report["problem"]["problem"]


async def test_bytes_are_counted_as_they_arrive(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)

    async def in_pieces(request: web.Request) -> web.StreamResponse | None:
        if str(LAYER) not in request.path:
            return None
        pieces = [IMAGE.layer[start : start + 100_000] for start in range(0, len(IMAGE.layer), 100_000)]
        return await send_pieces(request, pieces)

    hostile.misbehave = in_pieces
    assert (await replicating.run()).report["bytes"] == len(IMAGE.layer) + len(IMAGE.config)
