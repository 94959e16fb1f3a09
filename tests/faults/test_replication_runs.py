"""Runs that meet each other, are stopped, or lose their process."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from entrepot.accounts.records import AuditFilter
from entrepot.errors import RuleInvalid, RuleUnknown, RunActive, RunInterrupted
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Replications, Run
from entrepot.replication.sources import Sources
from entrepot.replication.worker import work
from entrepot.storage.clock import utc_now
from tests.faults.conftest import RULE, Replicating
from tests.support.content import Image
from tests.support.hostile import HostileRegistry, send_pieces
from tests.support.served import TESTER, Served

API = RepositoryName("smm/api")
IMAGE = Image(layer=os.urandom(1_000_000))
LAYER = Digest.of(IMAGE.layer)
PATIENCE_SECONDS = 60


class Gate:
    """Holds up the layer until it is opened."""

    def __init__(self, hostile: HostileRegistry) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        hostile.misbehave = self.misbehave

    async def misbehave(self, request: web.Request) -> web.StreamResponse | None:
        if str(LAYER) not in request.path or self.opened.is_set():
            return None
        answer = web.StreamResponse(headers={"Content-Length": str(len(IMAGE.layer))})
        await answer.prepare(request)
        await answer.write(IMAGE.layer[:100_000])
        self.reached.set()
        await self.opened.wait()
        await answer.write(IMAGE.layer[100_000:])
        return answer


def replications(served: Served, *, silence_seconds: float = 15) -> Replications:
    """As another process would have it."""
    parts = served.parts
    return Replications(
        parts.database,
        parts.registry,
        utc_now,
        concurrency=2,
        open_source=Sources().open,
        beat_seconds=0.05,
        silence_seconds=silence_seconds,
    )


@asynccontextmanager
async def working(*some: Replications) -> AsyncIterator[asyncio.Event]:
    """Workers, which end when the event is set, or the context."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(work(one, stop)) for one in some]
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def eventually(ask: Callable[[], Awaitable[bool]]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while not await ask():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


async def latest(replicating: Replicating) -> Run:
    return (await replicating.replications.list_runs(RULE, 1))[0]


async def test_a_queued_run_is_carried_out_by_one_worker(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    queued = await replicating.replications.queue(RULE, TESTER)
    assert queued.status == "queued"
    async with working(*(replications(replicating.served) for _ in range(3))):

        async def is_done() -> bool:
            return (await latest(replicating)).status == "done"

        await eventually(is_done)
    assert hostile.count("GET", str(LAYER)) == 1
    assert len(await replicating.replications.list_runs(None, 10)) == 1


async def test_a_rule_has_one_unfinished_run(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    for ask in (replicating.replications.queue, replications(replicating.served).run):
        with pytest.raises(RunActive, match="has a run that is running"):
            await ask(RULE, TESTER)
    gate.opened.set()
    assert (await running).status == "done"


async def test_of_many_who_queue_a_rule_one_succeeds(replicating: Replicating) -> None:
    results = await asyncio.gather(
        *(replicating.replications.queue(RULE, TESTER) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(result, Run) for result in results) == 1
    assert sum(isinstance(result, RunActive) for result in results) == 7


async def test_waiting_for_a_queued_run_carries_it_out(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    queued = await replicating.replications.queue(RULE, TESTER)
    assert (await replicating.run()).id == queued.id


async def test_a_run_without_a_sign_of_life_is_taken_over(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    lost = await replicating.replications.queue(RULE, TESTER)
    dead = replications(replicating.served)
    assert (await dead.claim()) is not None  # and then its process dies
    impatient = replications(replicating.served, silence_seconds=2)
    assert await impatient.claim() is None
    async with working(impatient):

        async def is_done() -> bool:
            return (await latest(replicating)).status == "done"

        await eventually(is_done)
    assert (await latest(replicating)).id == lost.id


async def test_a_run_that_was_taken_over_ends_where_it_was(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile)
    slow = replications(replicating.served)
    running = asyncio.create_task(slow.run(RULE, TESTER))
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    hasty = replications(replicating.served, silence_seconds=-1)  # believes everyone dead
    assert await hasty.claim() is not None
    with pytest.raises(RunInterrupted, match="taken over"):
        await asyncio.wait_for(running, PATIENCE_SECONDS)
    gate.opened.set()
    assert (await latest(replicating)).status == "running"


async def test_a_worker_that_stops_gives_its_run_back(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile)
    await replicating.replications.queue(RULE, TESTER)
    async with working(replications(replicating.served)):
        await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    assert (await latest(replicating)).status == "queued"
    gate.opened.set()
    assert (await replicating.run()).status == "done"


async def test_a_run_that_its_user_stops_says_so(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    run = await latest(replicating)
    assert run.status == "failed"
    assert "stopped before its end" in run.report["problem"]["problem"]
    gate.opened.set()
    assert (await replicating.run()).status == "done"


async def test_a_run_shows_how_far_it_is(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile)
    running = asyncio.create_task(replications(replicating.served).run(RULE, TESTER))

    async def is_shown() -> bool:
        report = (await latest(replicating)).report if gate.reached.is_set() else {}
        return report.get("tags", {}).get("new") == 1 and report["bytes"] > 0

    await eventually(is_shown)
    gate.opened.set()
    await running


async def test_a_slow_rule_does_not_hold_up_another(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.put_image("other/api", "v1")
    gate = Gate(hostile)
    quick = {"source": "hostile", "repositories": ["other/api"], "tags": {"include": ["*"]}}
    await replicating.replications.apply(parse_rule_file({"rules": {"quick": quick}}), TESTER)
    await replicating.replications.queue(RULE, TESTER)
    await replicating.replications.queue("quick", TESTER)
    async with working(replications(replicating.served)):

        async def is_done() -> bool:
            return (await replicating.replications.list_runs("quick", 1))[0].status == "done"

        await eventually(is_done)
        assert (await latest(replicating)).status == "running"
        gate.opened.set()


async def test_a_reader_never_sees_a_tag_before_its_content(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_index(API.value, "v1", IMAGE, Image())
    gate = Gate(hostile)
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
    assert await replicating.replications.list_runs(None, 10) == []


async def test_a_rule_without_a_source_is_refused_whole(replicating: Replicating) -> None:
    rule = {"source": "none", "repositories": ["a/b"], "tags": {"include": ["*"]}}
    file = parse_rule_file({"sources": {"new": {"type": "oci", "url": "http://x"}}, "rules": {"r": rule}})
    with pytest.raises(RuleInvalid, match=r"^rules.r.source: there is no source 'none'"):
        await replicating.replications.apply(file, TESTER)
    assert [rule.name for rule in await replicating.replications.list_rules()] == [RULE]
    with pytest.raises(RuleUnknown):
        await replicating.replications.list_runs("r", 1)


async def test_what_is_applied_stands_in_the_audit_log_without_secrets(replicating: Replicating) -> None:
    rows = await replicating.served.parts.audit.list_rows(AuditFilter(), None, 10)
    actions = [(row.action, row.target) for row in rows if row.action.startswith(("rule", "source"))]
    assert actions == [("rule.applied", RULE), ("source.applied", "hostile")]


async def test_finished_runs_are_kept_in_bounded_number(
    hostile: HostileRegistry, replicating: Replicating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.replication.runs._KEPT_RUNS", 3)
    hostile.put_image(API.value, "v1", IMAGE)
    ids = [(await replicating.run()).id for _ in range(5)]
    assert [run.id for run in await replicating.replications.list_runs(RULE, 10)] == ids[:1:-1]


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
