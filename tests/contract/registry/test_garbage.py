"""What garbage collection must do, wherever things are kept."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from entrepot.errors import BlobUnknown, CollectionActive, ManifestUnknown, UploadUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry import garbage as garbage_module
from entrepot.registry.garbage import GarbageCollector, Removed, collect_regularly
from entrepot.storage import tables
from entrepot.storage.blobs import SHARDS
from entrepot.storage.clock import utc_now
from tests.support.content import Image, index_of
from tests.support.served import Served, serve

NAME = RepositoryName("smm/api")
OTHER = RepositoryName("smm/web")
GRACE = timedelta(hours=1)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Shop:
    """The registry of a served application, and a collector whose clock can be moved."""

    def __init__(self, served: Served) -> None:
        self.registry = served.parts.registry
        self.uploads = served.parts.uploads
        self.parts = served.parts
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return utc_now() + self.ahead

    def collector(self, *, untagged: bool = False) -> GarbageCollector:
        parts = self.parts
        return GarbageCollector(parts.database, parts.blobs, parts.signals, self.now, grace=GRACE, untagged=untagged)

    async def push(self, tag: str | None, image: Image, name: RepositoryName = NAME, **fields: Any) -> Manifest:
        for blob in (image.config, image.layer):
            await self.registry.put_blob(name, Digest.of(blob), pieces(blob))
        content = image.manifest if not fields else image.manifest[:-1] + b"," + fields["more"] + b"}"
        manifest = Manifest.parse(content)
        await self.registry.put_manifest(name, manifest, tags=[Tag(tag)] if tag else [])
        return manifest

    async def objects(self) -> set[str]:
        blobs = self.parts.blobs
        return {entry.key for shard in SHARDS async for page in blobs.list_objects(shard) for entry in page}

    def size(self, name: RepositoryName = NAME) -> int:
        query = sa.select(tables.repositories.c.size_bytes).where(tables.repositories.c.name == name.value)
        return self.parts.database.read_now(lambda connection: connection.scalar(query)) or 0


@pytest.fixture
async def shop(tmp_path: Path, variant: dict[str, Any]) -> AsyncIterator[Shop]:
    grace = {"grace_seconds": int(GRACE.total_seconds())}
    async with serve(tmp_path / "data", gc=grace, **variant) as served:
        yield Shop(served)


async def test_what_a_manifest_names_stays_and_the_rest_goes_after_its_grace(shop: Shop) -> None:
    kept, gone = Image(), Image()
    await shop.push("v1", kept)
    manifest = await shop.push("v2", gone)
    await shop.registry.delete_manifest(NAME, manifest.digest)
    assert (await shop.collector().collect()).freed_bytes == 0
    assert len(await shop.objects()) == 4

    shop.ahead = GRACE + timedelta(minutes=1)
    report = await shop.collector().collect()
    assert report.removed == {"uploads": 0, "manifests": 0, "links": 2, "blobs": 2, "objects": 0}
    assert report.freed_bytes == len(gone.config) + len(gone.layer)
    for blob in (gone.config, gone.layer):
        with pytest.raises(BlobUnknown):
            await shop.registry.open_blob(NAME, Digest.of(blob))
    for blob in (kept.config, kept.layer):
        assert (await shop.registry.open_blob(NAME, Digest.of(blob))).size == len(blob)
    assert len(await shop.objects()) == 2
    assert shop.size() == len(kept.config) + len(kept.layer) + len(kept.manifest)


async def test_a_blob_stays_as_long_as_any_repository_holds_it(shop: Shop) -> None:
    image = Image()
    here = await shop.push("v1", image)
    await shop.push("v1", image, OTHER)
    await shop.registry.delete_manifest(NAME, here.digest)
    shop.ahead = GRACE * 2
    report = await shop.collector().collect()
    assert (report.removed["links"], report.removed["blobs"], report.freed_bytes) == (2, 0, 0)
    with pytest.raises(BlobUnknown):
        await shop.registry.open_blob(NAME, Digest.of(image.layer))
    assert (await shop.registry.open_blob(OTHER, Digest.of(image.layer))).size == len(image.layer)
    assert shop.size() == 0


async def test_what_a_publisher_was_told_is_here_stays_for_the_grace(shop: Shop, monkeypatch: Any) -> None:
    """Told by HEAD, mount or upload; it is old, and no manifest names it yet."""
    contents = [os.urandom(100) for _ in range(4)]
    for content in contents:
        await shop.registry.put_blob(NAME, Digest.of(content), pieces(content))
    shop.ahead = GRACE * 2
    monkeypatch.setattr(shop.registry, "_clock", shop.now)
    asked, mounted, sent, _ = contents
    assert await shop.registry.hold_blob(NAME, Digest.of(asked))
    assert await shop.registry.mount_blob(NAME, Digest.of(mounted), lambda _: True, source=NAME)
    await shop.registry.put_blob(NAME, Digest.of(sent), pieces(sent))
    assert (await shop.collector().collect()).removed["links"] == 1
    for content in contents[:3]:
        assert await shop.registry.hold_blob(NAME, Digest.of(content))
    assert not await shop.registry.hold_blob(NAME, Digest.of(contents[3]))


async def test_stale_uploads_are_closed_with_what_they_received(shop: Shop) -> None:
    stale = await shop.uploads.begin(NAME)
    await shop.uploads.append(NAME, stale.id, pieces(b"x" * 100), None)
    empty = await shop.uploads.begin(NAME)
    shop.ahead = GRACE * 2
    report = await shop.collector().collect()
    assert (report.removed["uploads"], report.freed_bytes) == (2, 100)
    for upload in (stale, empty):
        with pytest.raises(UploadUnknown):
            await shop.uploads.get(NAME, upload.id)
    assert await shop.objects() == set()


async def test_an_upload_that_goes_on_is_left_alone(shop: Shop, monkeypatch: Any) -> None:
    upload = await shop.uploads.begin(NAME)
    shop.ahead = GRACE * 2
    monkeypatch.setattr(shop.uploads, "_clock", shop.now)
    await shop.uploads.append(NAME, upload.id, pieces(b"x"), None)
    assert (await shop.collector().collect()).removed["uploads"] == 0
    assert await shop.uploads.finish(NAME, upload.id, Digest.of(b"xy"), pieces(b"y"), None) == 2


async def test_objects_that_the_database_does_not_know_are_swept_away(shop: Shop) -> None:
    await shop.push("v1", Image())
    known = await shop.objects()
    lost = await shop.parts.blobs.stage(pieces(b"x" * 50), limit=100)
    assert (await shop.collector().collect()).removed["objects"] == 0  # it may be recorded in a moment
    shop.ahead = GRACE * 2
    report = await shop.collector().collect()
    assert (report.removed["objects"], report.freed_bytes) == (1, 50)
    assert lost.key not in known
    assert await shop.objects() == known


class TestUntagged:
    async def test_stay_unless_asked_for(self, shop: Shop) -> None:
        manifest = await shop.push(None, Image())
        shop.ahead = GRACE * 2
        assert (await shop.collector().collect()).removed["manifests"] == 0
        assert await shop.registry.find_manifest(NAME, manifest.digest) is not None

    async def test_go_with_all_that_only_they_lead_to(self, shop: Shop) -> None:
        """An index that lost its tag, its child, and a signature of the child."""
        child = Image()
        child_manifest = await shop.push(None, child)
        subject = f'"subject":{{"mediaType":"a/b","digest":"{child_manifest.digest}","size":{child_manifest.size}}}'
        signature = await shop.push(None, Image(), more=subject.encode())
        index = Manifest.parse(index_of(child))
        await shop.registry.put_manifest(NAME, index, tags=[Tag("v1")])
        tagged = await shop.push("v2", Image())
        shop.ahead = GRACE * 2
        assert (await shop.collector(untagged=True).collect()).removed["manifests"] == 0

        await shop.registry.delete_manifest(NAME, Tag("v1"))
        report = await shop.collector(untagged=True).collect()
        assert report.removed["manifests"] == 3
        for digest in (index.digest, child_manifest.digest, signature.digest):
            with pytest.raises(ManifestUnknown):
                await shop.registry.pull_manifest(NAME, digest)
        assert await shop.registry.find_manifest(NAME, Tag("v2")) == tagged
        assert len(await shop.objects()) == 2

    async def test_a_new_tag_saves_a_manifest(self, shop: Shop, monkeypatch: Any) -> None:
        manifest = await shop.push(None, Image())
        shop.ahead = GRACE * 2
        await shop.registry.put_tag(NAME, Tag("v1"), manifest.digest)
        assert (await shop.collector(untagged=True).collect()).removed["manifests"] == 0


async def test_a_preview_tells_the_same_and_changes_nothing(shop: Shop) -> None:
    manifest = await shop.push("v1", Image())
    await shop.registry.delete_manifest(NAME, manifest.digest)
    upload = await shop.uploads.begin(NAME)
    await shop.uploads.append(NAME, upload.id, pieces(b"x" * 100), None)
    await shop.parts.blobs.stage(pieces(b"x" * 50), limit=100)
    await shop.push(None, Image(), OTHER)
    shop.ahead = GRACE * 2
    before = await shop.objects()
    told: list[Removed] = []
    preview = await shop.collector().preview(told.append)
    assert await shop.objects() == before
    done: list[Removed] = []
    assert await shop.collector().collect(done.append) == preview
    assert sorted(told, key=str) == sorted(done, key=str)
    assert preview.removed == {"uploads": 1, "manifests": 0, "links": 2, "blobs": 2, "objects": 1}


async def test_a_run_that_died_is_taken_up_where_it_stood(shop: Shop, monkeypatch: Any) -> None:
    monkeypatch.setattr(garbage_module, "_STEP", 3)
    for _ in range(10):
        content = os.urandom(50)
        await shop.registry.put_blob(NAME, Digest.of(content), pieces(content))
    shop.ahead = GRACE * 2
    died: list[Removed] = []

    def die(removed: Removed) -> None:
        died.append(removed)
        if len(died) == 7:
            raise SystemExit

    with pytest.raises(SystemExit):
        await shop.collector().collect(die)
    with pytest.raises(CollectionActive, match="run this again 60 seconds later"):
        await shop.collector().collect()
    shop.ahead += timedelta(minutes=2)
    done: list[Removed] = []
    report = await shop.collector().collect(done.append)
    # What the step removed in which it died is not counted, but not looked for again either.
    assert report.removed["links"] == 7
    assert len([one for one in done if one.phase == "links"]) == 1
    assert report.removed["blobs"] == 10
    assert await shop.objects() == set()


async def test_processes_that_collect_regularly_do_it_once(shop: Shop, tmp_path: Path) -> None:
    stop = asyncio.Event()
    runs = 0
    real = GarbageCollector._carry_out

    async def counting(self: GarbageCollector, run: Any) -> Any:
        nonlocal runs
        runs += 1
        return await real(self, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GarbageCollector, "_carry_out", counting)
        interval = timedelta(seconds=1)
        begun_at = time.monotonic()
        workers = [asyncio.create_task(collect_regularly(shop.collector(), interval, stop)) for _ in range(3)]
        while runs < 3:
            assert time.monotonic() - begun_at < 60
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*workers)
    assert runs <= (time.monotonic() - begun_at) / interval.total_seconds() + 1


async def test_another_process_no_longer_serves_what_was_collected(
    shop: Shop, tmp_path: Path, variant: dict[str, Any]
) -> None:
    async with serve(tmp_path / "data", **variant) as other:
        content = os.urandom(100)
        await shop.registry.put_blob(NAME, Digest.of(content), pieces(content))
        await other.parts.registry.open_blob(NAME, Digest.of(content))
        shop.ahead = GRACE * 2
        await shop.collector().collect()
        await asyncio.sleep(1)
        with pytest.raises(BlobUnknown):
            await other.parts.registry.open_blob(NAME, Digest.of(content))
