"""Runs that wait: to be tried again, for their window, their turn, their schedule; and runs that are cancelled."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from entrepot.accounts.records import AuditFilter
from entrepot.errors import RuleUnknown, RunActive, RunCancelled, RunFinished, RunUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.backoff import Backoff
from entrepot.replication.listing import Spot
from entrepot.replication.records import RunFilter
from entrepot.replication.runs import Run
from tests.faults.conftest import PATIENT, RULE, FakeClock, Replicating, eventually, working
from tests.support.content import Image
from tests.support.hostile import Gate, HostileRegistry
from tests.support.served import TESTER, Served

API = RepositoryName("smm/api")
IMAGE = Image(layer=os.urandom(1_000_000))
LAYER = str(Digest.of(IMAGE.layer))
MORNING = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


def answering(status: int, word: str, times: int = 1_000_000) -> Any:
    """Answer requests whose path has a word with a status, as often as that."""
    left = times

    async def misbehave(request: web.Request) -> web.Response | None:
        nonlocal left
        if word not in request.path or left == 0:
            return None
        left -= 1
        return web.Response(status=status)

    return misbehave


async def wait_for_status(replicating: Replicating, *statuses: str) -> Run:
    async def is_so() -> bool:
        return await replicating.status() in statuses

    await eventually(is_so)
    return await replicating.latest()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(MORNING)


@pytest.fixture
async def dated(served: Served, hostile: HostileRegistry, clock: FakeClock) -> Replicating:
    """Replication by a clock of the test's own."""
    replicating = Replicating(served, PATIENT, clock=clock)
    await replicating.apply(hostile.url)
    return replicating


class TestTriedAgain:
    async def test_a_temporary_failure_is_tried_again_until_it_passes(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        # Each try of the run asks three times.
        hostile.misbehave = answering(503, LAYER, times=7)
        await replicating.runs.queue(RULE, TESTER)
        async with working(replicating.beside()):
            run = await wait_for_status(replicating, "done", "failed")
        assert (run.status, run.tries) == ("done", 3)
        assert (run.report["tags_copied"], run.report["failed"]) == (1, 0)
        outcomes = [
            (row["try"], row["outcome"], row["is_temporary"])
            for row in await replicating.runs.list_artifacts(run.id, 0, 9)
        ]
        assert outcomes == [(1, "failed", True), (2, "failed", True), (3, "copied", None)]

    async def test_throttling_for_minutes_is_waited_for_and_said(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        hostile.misbehave = answering(429, "tags/list")
        slow = replicating.beside(backoff=Backoff(first_seconds=3600, most_seconds=3600))
        before = datetime.now(UTC)
        await replicating.runs.queue(RULE, TESTER)
        async with working(slow):
            run = await wait_for_status(replicating, "waiting")
        assert run.report["problem"]["is_temporary"]
        assert "429" in run.report["problem"]["problem"]
        assert run.report["problem"]["side"] == "source"
        assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}
        assert run.due_at is not None
        assert timedelta(minutes=30) <= run.due_at - before <= timedelta(minutes=70)
        # Nobody touches it before, unless somebody asks for it.
        hostile.misbehave = None
        assert await slow.runs.claim() is None
        again = await replicating.runs.queue(RULE, TESTER)
        assert again.id == run.id
        async with working(slow):
            assert (await wait_for_status(replicating, "done")).report["tags_copied"] == 1

    async def test_a_failure_that_stays_is_not_tried_again(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        hostile.misbehave = answering(403, LAYER)
        await replicating.runs.queue(RULE, TESTER)
        async with working(replicating.beside()):
            run = await wait_for_status(replicating, "failed")
        assert run.tries == 1
        assert not run.report["failures"][0]["is_temporary"]

    async def test_tries_have_an_end(self, hostile: HostileRegistry, replicating: Replicating) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        hostile.misbehave = answering(500, LAYER)
        await replicating.runs.queue(RULE, TESTER)
        async with working(replicating.beside(tries=3)):
            run = await wait_for_status(replicating, "failed")
        assert run.tries == 3
        assert run.report["failures"][0]["is_temporary"]

    async def test_what_is_waited_for_here_is_not_tried_again_by_itself(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        hostile.misbehave = answering(500, LAYER)
        assert (await replicating.run()).status == "failed"

    async def test_a_run_that_kills_its_process_each_time_ends(self, replicating: Replicating) -> None:
        deadly = replicating.beside(silence=timedelta(seconds=-1), tries=3)  # believes everyone dead
        await replicating.runs.queue(RULE, TESTER)
        for _ in range(3):
            assert await deadly.runs.claim() is not None
        assert await deadly.runs.claim() is None
        run = await replicating.latest()
        assert run.status == "failed"
        assert run.report["problem"]["problem"] == "it was begun 3 times, and its process died each time"


class TestCancelled:
    async def test_a_run_ends_at_once_wherever_it_goes_on(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        gate = Gate(hostile, IMAGE.layer)
        # It would look by itself only after a minute: it hears of it.
        elsewhere = replicating.beside(beat_seconds=60)
        queued = await replicating.runs.queue(RULE, TESTER)
        async with working(elsewhere):
            await asyncio.wait_for(gate.reached.wait(), 30)
            cancelled = await replicating.runs.cancel(queued.id, TESTER)
            assert cancelled.status == "cancelled"

            async def is_reported() -> bool:
                return bool((await replicating.latest()).report)

            await eventually(is_reported, 10)
            gate.opened.set()
        run = await replicating.latest()
        assert (run.status, run.report["tags_copied"]) == ("cancelled", 0)
        assert run.finished_at is not None
        registry = replicating.served.parts.registry
        assert await registry.read_tag_digests(API, [Tag("v1")]) == {}
        assert not await registry.hold_blob(API, Digest.of(IMAGE.layer))
        assert (await replicating.run()).status == "done"

    async def test_a_run_here_and_now_says_that_it_was_cancelled(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        gate = Gate(hostile, IMAGE.layer)
        running = asyncio.create_task(replicating.run())
        await asyncio.wait_for(gate.reached.wait(), 30)
        assert len(await replicating.beside().runs.cancel_rule(RULE, TESTER)) == 1
        with pytest.raises(RunCancelled, match="was cancelled"):
            await asyncio.wait_for(running, 30)
        gate.opened.set()

    async def test_a_queued_run_does_not_begin(self, hostile: HostileRegistry, replicating: Replicating) -> None:
        queued = await replicating.runs.queue(RULE, TESTER)
        await replicating.runs.cancel(queued.id, TESTER)
        assert await replicating.runs.claim() is None
        with pytest.raises(RunFinished):
            await replicating.runs.cancel(queued.id, TESTER)
        with pytest.raises(RunUnknown):
            await replicating.runs.cancel("none", TESTER)
        with pytest.raises(RuleUnknown):
            await replicating.runs.cancel_rule("none", TESTER)
        rows = await replicating.served.parts.audit.list_rows(AuditFilter(target=RULE), None, 10)
        assert [row.action for row in rows] == ["run.cancelled", "run.started", "rule.applied"]

    async def test_dropping_a_rule_ends_its_run(self, hostile: HostileRegistry, replicating: Replicating) -> None:
        hostile.put_image(API.value, "v1", IMAGE)
        gate = Gate(hostile, IMAGE.layer)
        queued = await replicating.runs.queue(RULE, TESTER)
        async with working(replicating.beside(beat_seconds=60)):
            await asyncio.wait_for(gate.reached.wait(), 30)
            await replicating.rulebook.delete_rule(RULE, TESTER)

            async def is_ended() -> bool:
                return bool((await replicating.runs.get_run(queued.id)).report)

            await eventually(is_ended)
            gate.opened.set()
        assert (await replicating.runs.get_run(queued.id)).status == "cancelled"
        with pytest.raises(RuleUnknown):
            await replicating.runs.queue(RULE, TESTER)


class TestTurns:
    async def test_a_source_has_only_so_many_runs_at_once(
        self, hostile: HostileRegistry, replicating: Replicating
    ) -> None:
        await replicating.apply(hostile.url, concurrent_runs=2)
        for name in ("a", "b", "c"):
            await replicating.apply_other(name, f"other/{name}")
            await replicating.runs.queue(name, TESTER)
        workers = [replicating.beside(), replicating.beside()]
        first, second = [await worker.runs.claim() for worker in workers]
        assert first is not None
        assert second is not None
        assert await workers[0].runs.claim() is None
        # Pushes have turns of their own.
        assert (await workers[0].replications.carry_out(first)).status == "failed"  # there is no such repository
        third = await workers[1].runs.claim()
        assert third is not None
        assert {first.rule, second.rule, third.rule} == {"a", "b", "c"}

    async def test_the_more_urgent_rule_goes_first(self, hostile: HostileRegistry, replicating: Replicating) -> None:
        for name, priority in (("low", -5), ("normal", 0), ("high", 7)):
            await replicating.apply_other(name, f"other/{name}", priority=priority)
            await replicating.runs.queue(name, TESTER)
        # A rule that is changed while its run waits is taken at its new word.
        await replicating.apply_other("normal", "other/normal", priority=9)
        order = [run.rule for _ in range(3) if (run := await replicating.runs.claim()) is not None]
        assert order == ["normal", "high", "low"]

    async def test_a_rule_has_a_bandwidth(self, hostile: HostileRegistry, replicating: Replicating) -> None:
        hostile.put_image("other/api", "v1", IMAGE)
        await replicating.apply_other("slow", "other/api", bandwidth="500KB")
        begun = asyncio.get_running_loop().time()
        assert (await replicating.replications.run("slow", TESTER)).status == "done"
        # A megabyte at half a megabyte a second, of which a quarter may come at once.
        assert asyncio.get_running_loop().time() - begun >= 1.4


class TestWindow:
    async def test_a_run_begins_when_the_window_opens(
        self, hostile: HostileRegistry, dated: Replicating, clock: FakeClock
    ) -> None:
        hostile.put_image("other/api", "v1", IMAGE)
        await dated.apply_other("night", "other/api", window="22:00-06:00", time_zone="Europe/Berlin")
        queued = await dated.runs.queue("night", TESTER)
        opening = datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
        assert queued.due_at == opening
        assert await dated.runs.claim() is None
        clock.now = opening
        claimed = await dated.runs.claim()
        assert claimed is not None
        assert (await dated.replications.carry_out(claimed)).status == "done"

    async def test_a_run_that_nobody_took_in_time_waits_for_the_next_window(
        self, dated: Replicating, clock: FakeClock
    ) -> None:
        await dated.apply_other("day", "other/api", window="07:00-09:00")
        assert (await dated.runs.queue("day", TESTER)).due_at == MORNING
        clock.now = MORNING + timedelta(hours=2)
        assert await dated.runs.claim() is None
        assert (await dated.latest("day")).due_at == datetime(2026, 3, 3, 7, 0, tzinfo=UTC)

    async def test_a_run_stops_at_the_next_tag_and_goes_on_in_the_next_window(
        self, hostile: HostileRegistry, dated: Replicating, clock: FakeClock
    ) -> None:
        await dated.apply_other("day", "other/api", window="07:00-09:00", concurrency=1)
        hostile.put_image("other/api", "v1", IMAGE)
        hostile.put_image("other/api", "v2")
        gate = Gate(hostile, IMAGE.layer)
        await dated.runs.queue("day", TESTER)
        claimed = await dated.runs.claim()
        assert claimed is not None
        running = asyncio.create_task(dated.replications.carry_out(claimed))
        await asyncio.wait_for(gate.reached.wait(), 30)
        clock.now = MORNING + timedelta(hours=2)
        gate.opened.set()
        paused = await asyncio.wait_for(running, 30)
        assert (paused.status, paused.tries, paused.report["tags_copied"]) == ("queued", 0, 1)
        clock.now = datetime(2026, 3, 3, 7, 0, tzinfo=UTC)
        assert paused.due_at == clock.now
        again = await dated.runs.claim()
        assert again is not None
        ended = await dated.replications.carry_out(again)
        assert (ended.id, ended.status, ended.report["tags_copied"]) == (claimed.id, "done", 2)

    async def test_who_waits_for_a_run_here_and_now_needs_no_window(
        self, hostile: HostileRegistry, dated: Replicating
    ) -> None:
        await dated.apply_other("night", "other/api", window="22:00-06:00")
        hostile.put_image("other/api", "v1")
        assert (await dated.replications.run("night", TESTER)).status == "done"

    async def test_who_pulls_needs_no_window(self, hostile: HostileRegistry, dated: Replicating) -> None:
        await dated.apply_other("night", "other/api", window="22:00-06:00", pull_through=True)
        hostile.put_image("other/api", "v1")
        rule = (await dated.rulebook.get_rule("night")).rule
        spot, target = Spot("other/api", "v1"), RepositoryName("other/api")
        pull = await dated.runs.claim_pull(rule, spot, target, timedelta(seconds=5))
        assert pull is not None
        assert (await dated.replications.carry_out(pull)).status == "done"


class TestSchedule:
    async def test_it_fires_once_over_all_workers(
        self, hostile: HostileRegistry, dated: Replicating, clock: FakeClock
    ) -> None:
        hostile.put_image("other/api", "v1")
        await dated.apply_other("often", "other/api", schedule="*/15 * * * *")
        clock.now += timedelta(minutes=14, seconds=59)
        await dated.runs.queue_scheduled()
        assert await dated.runs.list_runs(RunFilter("often"), 10) == []
        clock.now += timedelta(seconds=1)
        await asyncio.gather(*(dated.beside().runs.queue_scheduled() for _ in range(5)))
        (run,) = await dated.runs.list_runs(RunFilter("often"), 10)
        assert (run.status, run.cause) == ("queued", "schedule")
        state = await dated.rulebook.get_rule("often")
        assert state.scheduled_at == MORNING + timedelta(minutes=30)

    async def test_what_was_missed_happens_once(self, dated: Replicating, clock: FakeClock) -> None:
        await dated.apply_other("often", "other/api", schedule="*/15 * * * *")
        clock.now += timedelta(days=2)
        for _ in range(3):
            await dated.runs.queue_scheduled()
        assert len(await dated.runs.list_runs(RunFilter("often"), 10)) == 1

    async def test_a_rule_that_is_still_at_it_is_left_alone(self, dated: Replicating, clock: FakeClock) -> None:
        await dated.apply_other("often", "other/api", schedule="*/15 * * * *")
        await dated.runs.queue("often", TESTER)
        for _ in range(4):
            clock.now += timedelta(minutes=15)
            await dated.runs.queue_scheduled()
        (run,) = await dated.runs.list_runs(RunFilter("often"), 10)
        assert run.cause == "request"
        with pytest.raises(RunActive):
            await dated.runs.queue("often", TESTER)

    async def test_applying_a_rule_again_does_not_put_it_off(self, dated: Replicating, clock: FakeClock) -> None:
        await dated.apply_other("often", "other/api", schedule="0 12 * * *")
        clock.now += timedelta(minutes=10)
        await dated.apply_other("often", "other/web", schedule="0 12 * * *")
        noon = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
        assert (await dated.rulebook.get_rule("often")).scheduled_at == noon
        await dated.apply_other("often", "other/web", schedule="0 13 * * *")
        assert (await dated.rulebook.get_rule("often")).scheduled_at == noon + timedelta(hours=1)
        await dated.apply_other("often", "other/web")
        assert (await dated.rulebook.get_rule("often")).scheduled_at is None

    async def test_a_worker_runs_what_is_scheduled(
        self, hostile: HostileRegistry, dated: Replicating, clock: FakeClock
    ) -> None:
        hostile.put_image("other/api", "v1")
        await dated.apply_other("often", "other/api", schedule="*/15 * * * *")
        clock.now += timedelta(minutes=15)
        async with working(*(dated.beside() for _ in range(3))):

            async def is_done() -> bool:
                found = await dated.runs.list_runs(RunFilter("often", ("done",)), 10)
                return len(found) == 1

            await eventually(is_done)
        assert len(await dated.runs.list_runs(RunFilter("often"), 10)) == 1
        assert hostile.count("tags/list") == 1
