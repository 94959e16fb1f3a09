"""Large blobs on their way: broken off, given up, gone on with, by one process or two; and tags that move meanwhile."""

import asyncio
import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from aiohttp import web

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry.garbage import GarbageCollector
from entrepot.replication.listing import Spot
from entrepot.replication.runs import MAX_SPOTS
from entrepot.storage.clock import utc_now
from entrepot.storage.tables import replication_transfers, upload_chunks, uploads
from tests.faults.conftest import PATIENT, RULE, Replicating
from tests.support.content import Image
from tests.support.hostile import Gate, HostileRegistry, send_pieces
from tests.support.programs import run_measured
from tests.support.served import TESTER, Served, files_below, serve

API = RepositoryName("smm/api")
PART = 200_000
IMAGE = Image(layer=os.urandom(1_000_000))
LAYER = Digest.of(IMAGE.layer)


class Counting:
    """Sends a layer from wherever it is asked for, counts its bytes, and breaks off after some of them."""

    def __init__(self, hostile: HostileRegistry, content: bytes = IMAGE.layer, *, breaks_after: int = 0) -> None:
        self.sent = 0
        self.starts: list[int] = []
        self.breaks_after = breaks_after
        self._content = content
        hostile.misbehave = self.misbehave

    async def misbehave(self, request: web.Request) -> web.StreamResponse | None:
        if str(LAYER) not in request.path:
            return None
        start = request.http_range.start or 0
        self.starts.append(start)
        status, headers = 200, {}
        size = len(self._content)
        if start:
            status, headers = 206, {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        answer = web.StreamResponse(status=status, headers=headers | {"Content-Length": str(size - start)})
        await answer.prepare(request)
        for at in range(start, size, 10_000):
            if self.breaks_after and self.sent >= self.breaks_after:
                assert request.transport is not None
                request.transport.close()
                return answer
            piece = self._content[at : at + 10_000]
            await answer.write(piece)
            self.sent += len(piece)
        return answer


@pytest.fixture
def parted(replicating: Replicating) -> Replicating:
    """Replication that copies blobs in small parts."""
    return replicating.beside(part_bytes=PART)


def rows(served: Served, table: sa.Table) -> int:
    query = sa.select(sa.func.count()).select_from(table)
    return served.parts.database.read_now(lambda connection: connection.scalar(query)) or 0


async def has_layer(served: Served) -> bool:
    client = await served.client("publisher")
    answer = await client.call("GET", f"/v2/smm/api/blobs/{LAYER}")
    return answer.status_code == 200 and answer.content == IMAGE.layer


async def test_a_large_blob_comes_in_parts_and_is_whole(hostile: HostileRegistry, parted: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    counting = Counting(hostile)
    run = await parted.run()
    assert run.status == "done", run.report
    # One request: the source does not notice the parts.
    assert (counting.starts, counting.sent, run.report["bytes_resumed"]) == ([0], len(IMAGE.layer), 0)
    assert run.report["bytes"] == len(IMAGE.layer) + len(IMAGE.config)
    assert await has_layer(parted.served)
    # Nothing is left of the parts.
    assert rows(parted.served, uploads) == rows(parted.served, replication_transfers) == 0
    assert len(files_below(parted.served.parts.settings.data / "blobs")) == 2


async def test_a_huge_layer_takes_little_memory(hostile: HostileRegistry, tmp_path: Path) -> None:
    # It comes in several parts, each larger than what may be added to the memory of a process that copies nothing.
    piece, count, part, most = os.urandom(1024 * 1024), 160, 64 * 1024**2, 50_000_000
    hasher = hashlib.sha256()
    for _ in range(count):
        hasher.update(piece)
    digest = f"sha256:{hasher.hexdigest()}"
    image = hostile.put_image(API.value)
    layer = json.loads(image.manifest)["layers"][0] | {"digest": digest, "size": count * len(piece)}
    manifest = json.dumps(json.loads(image.manifest) | {"layers": [layer]}).encode()
    hostile.put_manifest(API.value, manifest, media_types.OCI_MANIFEST, "v1")

    async def send(request: web.Request) -> web.StreamResponse | None:
        is_it = digest in request.path
        return await send_pieces(request, [piece] * count, length=count * len(piece)) if is_it else None

    hostile.misbehave = send
    rule = {"source": "hostile", "repositories": ["smm/*"], "tags": {"include": ["*"]}}
    document = {"sources": {"hostile": {"type": "oci", "url": hostile.url}}, "rules": {RULE: rule}}
    (tmp_path / "replication.yaml").write_text(json.dumps(document))
    command = ["--data", tmp_path / "data", "replicate"]
    await asyncio.to_thread(run_measured, tmp_path, *command, "apply", tmp_path / "replication.yaml")
    idle = await asyncio.to_thread(run_measured, tmp_path, *command, "plan", RULE, "--json")
    parts = {"ENTREPOT_REPLICATION__PART_BYTES": str(part)}
    measured = await asyncio.to_thread(
        run_measured, tmp_path, *command, "run", RULE, "--wait", "--json", environment=parts
    )
    assert json.loads(measured.output)["report"]["bytes"] > 2 * part
    assert measured.peak_bytes < idle.peak_bytes + most


async def test_another_run_goes_on_where_the_source_broke_off(hostile: HostileRegistry, parted: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    counting = Counting(hostile, breaks_after=500_000)
    broken = await parted.run()
    assert broken.status == "failed"
    before, counting.breaks_after = counting.sent, 0
    assert rows(parted.served, upload_chunks) >= 1
    reader = await parted.served.client("publisher")
    assert (await reader.call("GET", f"/v2/smm/api/blobs/{LAYER}")).status_code == 404
    counting.starts.clear()
    run = await parted.beside(part_bytes=PART).run()
    assert run.status == "done", run.report
    # What came before a break is kept, if it was worth an object.
    (start,) = counting.starts
    assert start >= broken.report["bytes"] - PART // 16 - len(IMAGE.config)
    assert start > PART
    assert run.report["bytes_resumed"] == start
    assert counting.sent - before == len(IMAGE.layer) - start
    assert await has_layer(parted.served)


async def test_a_blob_whose_first_parts_are_wrong_is_copied_anew(hostile: HostileRegistry, parted: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    lie = os.urandom(len(IMAGE.layer))
    Counting(hostile, lie, breaks_after=500_000)
    assert (await parted.run()).status == "failed"
    counting = Counting(hostile)
    run = await parted.run()
    assert run.status == "failed"
    assert "not sha256:" in run.report["failures"][0]["problem"]
    assert run.report["failures"][0]["side"] == "source"
    assert counting.starts[0] > 0
    assert not await parted.served.parts.registry.hold_blob(API, LAYER)
    counting = Counting(hostile)
    assert (await parted.run()).status == "done"
    assert counting.starts == [0]
    assert await has_layer(parted.served)


async def test_two_that_copy_the_same_blob_do_not_spoil_it(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.put_image("smm/web", "v1", IMAGE)
    hostile.put_image(API.value, "w1", IMAGE)
    await replicating.apply_other(RULE, "nothing/here")
    await replicating.apply_other("one", API.value, tags={"include": ["v1"]})
    await replicating.apply_other("two", API.value, tags={"include": ["w1"]})

    async def slowly(request: web.Request) -> web.StreamResponse | None:
        if str(LAYER) not in request.path:
            return None
        start = request.http_range.start or 0
        pieces = [IMAGE.layer[at : at + 50_000] for at in range(start, len(IMAGE.layer), 50_000)]
        return await send_pieces(request, pieces, pause=0.01) if not start else None

    hostile.misbehave = slowly
    both = [replicating.beside(part_bytes=PART) for _ in range(2)]
    runs = await asyncio.gather(
        *(one.replications.run(name, TESTER) for one, name in zip(both, ("one", "two"), strict=True))
    )
    assert [run.status for run in runs] == ["done", "done"], runs
    assert await has_layer(replicating.served)
    assert rows(replicating.served, uploads) == 0


async def test_what_is_on_its_way_is_garbage_only_when_nobody_goes_on(
    hostile: HostileRegistry, parted: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    Counting(hostile, breaks_after=500_000)
    assert (await parted.run()).status == "failed"
    parts = parted.served.parts
    stored = files_below(parts.settings.data / "blobs")
    assert max(path.stat().st_size for path in stored) > PART

    def collector(now: datetime) -> GarbageCollector:
        grace = timedelta(hours=1)
        return GarbageCollector(parts.database, parts.blobs, parts.signals, lambda: now, grace=grace, untagged=False)

    await collector(datetime.now(UTC)).collect()
    assert files_below(parts.settings.data / "blobs") == stored
    await collector(datetime.now(UTC) + timedelta(hours=2)).collect()
    assert rows(parted.served, uploads) == rows(parted.served, replication_transfers) == 0
    assert [path for path in files_below(parts.settings.data / "blobs") if path.stat().st_size > 1000] == []
    Counting(hostile)
    assert (await parted.run()).status == "done"


async def test_a_tag_that_moves_while_it_is_copied_names_the_later_push(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    later = Image()
    hostile.put_image(API.value, "v1", IMAGE)
    gate = Gate(hostile, IMAGE.layer)
    running = asyncio.create_task(replicating.run())
    await asyncio.wait_for(gate.reached.wait(), 30)
    # The later push comes over at once, by a run of pushes, while the first is still being copied.
    hostile.put_image(API.value, "v1", later)
    pushed = replicating.beside()
    assert await pushed.runs.queue_pushes("hostile", [Spot("smm/api", "v1")])
    run = await pushed.runs.claim()
    assert run is not None
    assert (await pushed.replications.carry_out(run)).status == "done"
    gate.opened.set()
    ended = await asyncio.wait_for(running, 30)
    assert ended.status == "done", ended.report
    registry = replicating.served.parts.registry
    assert await registry.read_tag_digests(API, [Tag("v1")]) == {Tag("v1"): later.digest}


async def test_a_tag_whose_old_manifest_is_gone_is_looked_at_again(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    later = Image()
    hostile.put_image(API.value, "v1", IMAGE)
    path = f"/manifests/{IMAGE.digest}"

    async def move(request: web.Request) -> web.StreamResponse | None:
        if path in request.path and (API.value, str(IMAGE.digest)) in hostile.manifests:
            del hostile.manifests[API.value, str(IMAGE.digest)]
            hostile.put_image(API.value, "v1", later)
        return None

    hostile.misbehave = move
    run = await replicating.run()
    assert run.status == "done", run.report
    (artifact,) = await replicating.runs.list_artifacts(run.id, 0, 10)
    assert (artifact["outcome"], artifact["digest"]) == ("copied", str(later.digest))
    registry = replicating.served.parts.registry
    assert await registry.read_tag_digests(API, [Tag("v1")]) == {Tag("v1"): later.digest}


async def test_an_immutable_tag_stays_and_the_conflict_is_told(hostile: HostileRegistry, tmp_path: Path) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    async with serve(tmp_path / "data", repositories={"immutable_tags": ["smm/**:v*"]}) as served:
        replicating = Replicating(served)
        await replicating.apply(hostile.url)
        assert (await replicating.run()).status == "done"
        hostile.put_image(API.value, "v1", Image())
        run = await replicating.run()
        assert (run.status, run.report["refused"], run.report["tags_copied"]) == ("failed", 1, 0)
        (failure,) = run.report["failures"]
        assert (failure["kind"], failure["side"], failure["is_temporary"]) == ("refused", "destination", False)
        assert "is immutable" in failure["problem"]
        assert await served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {Tag("v1"): IMAGE.digest}


async def test_a_tag_that_was_deleted_while_it_was_copied_fails_with_its_reason(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)

    async def delete(request: web.Request) -> web.StreamResponse | None:
        if f"/manifests/{IMAGE.digest}" in request.path:
            hostile.manifests.clear()
        return None

    hostile.misbehave = delete
    run = await replicating.run()
    assert run.status == "failed"
    assert "404" in run.report["failures"][0]["problem"]


async def test_pushes_wait_together_and_cost_no_listing(hostile: HostileRegistry, served: Served) -> None:
    replicating = Replicating(served, PATIENT, clock=utc_now)
    await replicating.apply(hostile.url)
    for number in range(4):
        hostile.put_image(API.value, f"v{number}")
    hostile.put_image("smm/web", "v1")
    hostile.put_image("other/web", "v1")
    for spot in (Spot("smm/api", "v1"), Spot("smm/api", "v2"), Spot("other/web", "v1"), Spot("smm/api", "v1")):
        assert await replicating.runs.queue_pushes("hostile", [spot])
    run = await replicating.runs.claim()
    assert run is not None
    assert run.scope == [{"repository": "smm/api", "tag": "v1"}, {"repository": "smm/api", "tag": "v2"}]
    ended = await replicating.replications.carry_out(run)
    assert (ended.status, ended.cause, ended.report["tags_copied"]) == ("done", "push", 2)
    assert hostile.count("tags/list") == hostile.count("_catalog") == 0
    # What has no tag is about all of its repository, and about no other.
    assert await replicating.runs.queue_pushes("hostile", [Spot("smm/api")])
    run = await replicating.runs.claim()
    assert run is not None
    assert (await replicating.replications.carry_out(run)).report["tags_copied"] == 2
    assert hostile.count("tags/list") == 1
    assert await served.parts.registry.read_tag_digests(RepositoryName("smm/web"), [Tag("v1")]) == {}


async def test_more_pushes_than_can_wait_stay_where_they_are(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    many = [Spot("smm/api", f"v{number}") for number in range(MAX_SPOTS)]
    assert await replicating.runs.queue_pushes("hostile", many)
    assert await replicating.runs.queue_pushes("hostile", many[:10])
    assert not await replicating.runs.queue_pushes("hostile", [Spot("smm/web", "v1")])
    waiting = await replicating.latest()
    assert waiting.scope is not None
    assert len(waiting.scope) == MAX_SPOTS


async def test_pushes_are_not_held_up_by_long_runs(hostile: HostileRegistry, replicating: Replicating) -> None:
    await replicating.apply(hostile.url, concurrent_runs=1)
    await replicating.runs.queue(RULE, TESTER)
    assert await replicating.runs.claim() is not None
    hostile.put_image(API.value, "v1")
    assert await replicating.runs.queue_pushes("hostile", [Spot("smm/api", "v1")])
    assert await replicating.runs.claim(takes_pushes=False) is None
    claimed = await replicating.runs.claim(takes_whole=False)
    assert claimed is not None
    # One that goes on does not keep the next from being queued, nor does one that is given back.
    assert await replicating.runs.queue_pushes("hostile", [Spot("smm/api", "v2")])
    assert (await replicating.replications.carry_out(claimed)).status == "done"
