"""Two that change the same thing at the same moment, wherever things are kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from entrepot.errors import BlobUnknown, ManifestUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry import records
from entrepot.registry.garbage import GarbageCollector
from entrepot.storage import tables
from entrepot.storage.clock import utc_now
from tests.support.content import Image
from tests.support.served import Served, serve

NAME = RepositoryName("smm/api")
# Enough for the other where nothing keeps it waiting; where something does, it goes on afterwards.
HEAD_START_SECONDS = 0.5


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def push(served: Served, tag: str) -> Manifest:
    image = Image()
    registry = served.parts.registry
    for blob in (image.config, image.layer):
        await registry.put_blob(NAME, Digest.of(blob), pieces(blob))
    manifest = Manifest.parse(image.manifest)
    await registry.put_manifest(NAME, manifest, tags=[Tag(tag)])
    return manifest


class Other:
    """Another process, which does its part while this one is in the middle of a transaction."""

    def __init__(self, served: Served, pool: ThreadPoolExecutor) -> None:
        self.served = served
        self._pool = pool
        self.done: Future[Any] | None = None

    def meanwhile(self, monkeypatch: pytest.MonkeyPatch, step: str, work: Callable[[Served], Any]) -> None:
        """Do `work` right after the statement `step` of this process, once."""
        real = getattr(records, step)

        def then(*arguments: Any) -> Any:
            answer = real(*arguments)
            if getattr(records, step) is then:
                monkeypatch.setattr(records, step, real)
                self.done = self._pool.submit(lambda: asyncio.run(work(self.served)))
                with suppress(TimeoutError):
                    self.done.exception(HEAD_START_SECONDS)
            return answer

        monkeypatch.setattr(records, step, then)

    async def finish(self) -> BaseException | None:
        """What its work failed with."""
        assert self.done is not None
        return await asyncio.to_thread(self.done.exception)


@pytest.fixture
async def other(tmp_path: Path, variant: dict[str, Any], anywhere: Served) -> AsyncIterator[Other]:
    with ThreadPoolExecutor(1) as pool:
        async with serve(tmp_path / "data", **variant) as served:
            yield Other(served, pool)


async def test_a_tag_that_comes_while_its_manifest_goes_is_served_by_nobody(
    anywhere: Served, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await push(anywhere, "v1")

    async def tag_and_pull(there: Served) -> None:
        await there.parts.registry.put_tag(NAME, Tag("late"), manifest.digest)
        await there.parts.registry.pull_manifest(NAME, Tag("late"))

    other.meanwhile(monkeypatch, "list_tags_of", tag_and_pull)
    await anywhere.parts.registry.delete_manifest(NAME, manifest.digest)
    assert isinstance(await other.finish(), ManifestUnknown)
    other.served.parts.signals.catch_up()
    for registry in (anywhere.parts.registry, other.served.parts.registry):
        for reference in (Tag("v1"), Tag("late"), manifest.digest):
            with pytest.raises(ManifestUnknown):
                await registry.pull_manifest(NAME, reference)


async def test_of_two_who_delete_a_blob_one_takes_its_room_off(
    anywhere: Served, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = b"x" * 700, b"y" * 300
    for content in (kept, gone):
        await anywhere.parts.registry.put_blob(NAME, Digest.of(content), pieces(content))
    other.meanwhile(
        monkeypatch,
        "list_manifests_with",
        lambda there: there.parts.registry.delete_blob(NAME, Digest.of(gone)),
    )
    ours = await asyncio.gather(anywhere.parts.registry.delete_blob(NAME, Digest.of(gone)), return_exceptions=True)
    outcomes = [*ours, await other.finish()]
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, BlobUnknown) for outcome in outcomes) == 1
    query = sa.select(tables.repositories.c.size_bytes)
    assert anywhere.parts.database.read_now(lambda connection: connection.scalar(query)) == len(kept)


async def test_a_tag_that_comes_while_its_manifest_is_collected_stays(
    anywhere: Served, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As replication sets it: on a manifest that was here for long, and to which nothing led."""
    manifest = await push(anywhere, "v1")
    registry, grace = anywhere.parts.registry, timedelta(hours=1)
    await registry.delete_manifest(NAME, Tag("v1"))

    def later() -> datetime:
        return utc_now() + 2 * grace

    async def collect(there: Served) -> None:
        parts = there.parts
        await GarbageCollector(parts.database, parts.blobs, parts.signals, later, grace=grace, untagged=True).collect()

    monkeypatch.setattr(registry, "_clock", later)
    other.meanwhile(monkeypatch, "put_tag", collect)
    await registry.put_tag(NAME, Tag("v2"), manifest.digest)
    assert await other.finish() is None
    assert await registry.find_manifest(NAME, Tag("v2")) == manifest
