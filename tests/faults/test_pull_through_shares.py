"""What one account may take of pull-through, so that something is left for the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web

from entrepot.access.plans import parse_plans
from entrepot.access.scopes import Action
from entrepot.errors import FetchUnfinished
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry.service import StoredManifest
from entrepot.replication.pull_through import HURRY_TOPIC, PullThrough, PullThroughLimits
from entrepot.replication.records import RunFilter
from entrepot.replication.sources import Sources
from entrepot.replication.spools import Spools
from entrepot.storage.clock import utc_now
from entrepot.storage.tables import signals, tags
from tests.faults.conftest import PATIENT, RULE, Replicating, eventually
from tests.support.hostile import HostileRegistry

NAME = "smm/api"
API = RepositoryName(NAME)
GREEDY, OTHER = 1, 2


@asynccontextmanager
async def pulling(
    replicating: Replicating,
    hostile: HostileRegistry,
    folder: Path,
    held: str,
    released: asyncio.Event | None = None,
    **limits: Any,
) -> AsyncIterator[PullThrough]:
    """Pull-through with these limits, from a source that answers nothing that has `held` in its path until released."""
    await replicating.apply_rule(pull_through=True)
    released = released or asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse | None:
        if held in request.path:
            await released.wait()
        return None

    hostile.misbehave = hold
    sources = Sources(deadlines=PATIENT)
    parts = replicating.served.parts
    pulls = PullThrough(
        parts.database,
        parts.signals,
        replicating.rulebook,
        replicating.runs,
        replicating.replications,
        parts.registry,
        parts.uploads,
        utc_now,
        open_source=sources.open,
        spools=Spools(folder),
        limits=PullThroughLimits(**{"answer_seconds": 60, "look_up_seconds": 60} | limits),
    )
    pulls.start()
    try:
        yield pulls
    finally:
        released.set()
        await pulls.stop()


async def room() -> None:
    """There are no limits of plans."""


def ask(pulls: PullThrough, tag: str, account: int) -> asyncio.Task[StoredManifest | None]:
    """A client that pulls a tag."""
    return asyncio.create_task(pulls.find_manifest(API, Tag(tag), account, room))


async def refuse(waiting: list[asyncio.Task[StoredManifest | None]], count: int) -> None:
    """Wait until so many of the clients are refused, while the others wait."""

    async def are_refused() -> bool:
        done = [one for one in waiting if one.done()]
        assert all(isinstance(one.exception(), FetchUnfinished) for one in done)
        return len(done) == count

    await eventually(are_refused)


async def test_clients_of_one_account_leave_room_for_another_to_wait(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    hostile.put_image(NAME, "v1")
    async with pulling(replicating, hostile, tmp_path, "/manifests/", waiting=8) as pulls:
        greedy = [ask(pulls, "v1", GREEDY) for _ in range(20)]
        await refuse(greedy, 16)
        other = ask(pulls, "v1", OTHER)
        await eventually(lambda: was_asked(hostile, "/manifests/v1", 1))
        assert not other.done()


async def test_what_one_account_fetches_leaves_room_for_another(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    for number in range(4):
        hostile.put_image(NAME, f"v{number}")
    async with pulling(replicating, hostile, tmp_path, "/blobs/", flights=4) as pulls:
        for number in (0, 1):
            assert await ask(pulls, f"v{number}", GREEDY) is not None
        with pytest.raises(FetchUnfinished, match="much is fetched already"):
            await ask(pulls, "v2", GREEDY)
        assert await ask(pulls, "v3", OTHER) is not None


async def test_questions_that_are_not_answered_yet_count_as_in_vain(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    async with pulling(replicating, hostile, tmp_path, "/none-", misses_per_minute=3) as pulls:
        await refuse([ask(pulls, f"none-{number}", GREEDY) for number in range(10)], 7)
        other = ask(pulls, "none-other", OTHER)
        await eventually(lambda: was_asked(hostile, "/manifests/none-", 4))
        assert not other.done()


async def test_who_leaves_has_asked_all_the_same(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    released = asyncio.Event()
    async with pulling(replicating, hostile, tmp_path, "/none-", released, misses_per_minute=3) as pulls:
        clients = [ask(pulls, f"none-{number}", GREEDY) for number in range(3)]
        await eventually(lambda: was_asked(hostile, "/manifests/none-", 3))
        for client in clients:
            client.cancel()
        released.set()

        async def may_not_ask() -> bool:
            try:
                return await ask(pulls, "none-3", GREEDY) is None
            except FetchUnfinished:  # the questions are not answered yet
                return False

        await eventually(may_not_ask)
        assert hostile.count("/manifests/none-3") == 0


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_a_source_refuses_to_show_is_remembered_and_in_vain(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path, status: int
) -> None:
    """Docker Hub and GitHub do not say of a repository that they have not got it, but that one may not see it."""

    async def refuse_all(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if "/manifests/" in request.path else None

    async with pulling(replicating, hostile, tmp_path, "no such path", misses_per_minute=3) as pulls:
        hostile.misbehave = refuse_all
        for number in range(6):
            for _ in range(2):
                await asyncio.wait({ask(pulls, f"none-{number}", GREEDY)})
        assert {line.partition("/manifests/")[2] for line in hostile.seen} - {""} == {"none-0", "none-1", "none-2"}
        assert hostile.count("/manifests/none-1") == 1
        hostile.misbehave = None
        hostile.put_image(NAME, "v1")
        assert await ask(pulls, "v1", OTHER) is not None


async def test_what_cannot_be_fetched_makes_one_run_however_often_it_is_asked_for(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    hostile.put_image(NAME, "v1")
    async with pulling(replicating, hostile, tmp_path, "no such path") as pulls:
        await replicating.apply_rule(pull_through=True, sign={"key_file": str(tmp_path / "gone.pem")})
        for _ in range(5):
            with pytest.raises(FetchUnfinished, match=r"^smm/api:v1 is not here yet, and could not be fetched"):
                await ask(pulls, "v1", GREEDY)
    assert len(await replicating.runs.list_runs(RunFilter(RULE), 10)) == 1


async def test_a_blob_that_is_asked_for_again_and_again_is_hurried_once(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    layer = Digest.of(hostile.put_image(NAME, "v1").layer)
    async with (
        pulling(replicating, hostile, tmp_path / "here", "/blobs/") as pulls,
        pulling(replicating, hostile, tmp_path / "elsewhere", "/blobs/", blob_seconds=0.05) as elsewhere,
    ):
        assert await ask(pulls, "v1", OTHER) is not None
        for _ in range(5):
            with pytest.raises(FetchUnfinished):
                await elsewhere.find_blob(API, layer, GREEDY, is_whole=True)
        count = sa.select(sa.func.count()).select_from(signals).where(signals.c.topic == HURRY_TOPIC)
        assert replicating.served.parts.database.read_now(lambda connection: connection.scalar(count)) == 1


async def test_a_plan_of_some_tags_does_not_lose_what_has_arrived_before_that_is_heard_of(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    grant = {"repositories": ["smm/**"], "actions": ["pull"], "tags": {"include": ["v1"]}}
    limits = parse_plans({"plans": {"some": {"grants": [grant]}}})[0].tag_limits(API, Action.PULL)
    assert limits is not None
    image = hostile.put_image(NAME, "v2")
    async with pulling(replicating, hostile, tmp_path, "no such path") as pulls:
        await replicating.run()
        reach, layer = replicating.served.parts.registry.reach, Digest.of(image.layer)
        assert not await reach.is_reached(API, layer, limits)
        assert not await pulls.leads_to(API, layer, limits)
        # As another process does, whose word has not come yet.
        rename = tags.update().values(name="v1")
        replicating.served.parts.database.write_now(lambda connection: connection.execute(rename))
        assert await pulls.leads_to(API, layer, limits)
        assert not await pulls.leads_to(API, Digest.of(b"nothing"), limits)


async def test_what_customers_pull_does_not_hide_how_the_rule_fares(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    forgetful = replicating.beside(kept_runs=2)
    assert (await forgetful.run()).status == "done"
    before = (await replicating.runs.read_figures()).rules[0]["succeeded_at"]
    async with pulling(forgetful, hostile, tmp_path, "no such path") as pulls:
        for number in range(4):
            hostile.put_image(NAME, f"v{number}")
            assert await ask(pulls, f"v{number}", OTHER) is not None
            await eventually(lambda number=number: has_pulls(replicating, min(number + 1, 2)))
    assert [run.cause for run in await replicating.runs.list_runs(RunFilter(RULE), 10)] == ["pull", "pull", "request"]
    assert (await replicating.runs.read_figures()).rules[0]["succeeded_at"] == before


async def has_pulls(replicating: Replicating, count: int) -> bool:
    """Whether so many pulls have ended, and none goes on."""
    runs = [run for run in await replicating.runs.list_runs(RunFilter(RULE), 10) if run.cause == "pull"]
    return len(runs) == count and not any(run.is_unfinished for run in runs)


async def was_asked(hostile: HostileRegistry, path: str, times: int) -> bool:
    """Whether the source was asked for it so often."""
    return hostile.count(path) == times
