"""Collect garbage over and over while others push, mount, replicate, delete and pull the same content.

SOAK_SECONDS says for how long, each way to keep things.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.registry.garbage import GarbageCollector
from entrepot.storage.blobs import SHARDS
from entrepot.storage.clock import utc_now
from tests.conftest import make_variant
from tests.faults.conftest import Replicating
from tests.support.content import Image, index_of
from tests.support.hostile import HostileRegistry
from tests.support.served import RegistryClient, Served, rows_of, serve

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
# A push here takes a fraction of it.
GRACE_SECONDS = 3
# What is left of a hold at least: whoever is slower, on a machine that is stuck, may be told that something is gone.
HOLD_SECONDS = GRACE_SECONDS * 0.7
REPOSITORIES = ("smm/a", "smm/b", "smm/c")
TAGS = ("v1", "v2", "v3", "v4")


def some_image(dice: random.Random) -> Image:
    """One of so many contents that each is garbage for a while, and of so few that it comes back."""
    return Image(b'{"os":"linux"}', b"layer %d " % dice.randrange(40) * 2000)


@pytest.fixture(params=["folder-sqlite", "folder-postgresql"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return make_variant(request) | {"gc": {"grace_seconds": GRACE_SECONDS, "untagged": True}}


@pytest.fixture
async def served(tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[Served]:
    async with serve(tmp_path / "data", **settings) as application:
        yield application


@pytest.fixture
async def collector(served: Served, tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[GarbageCollector]:
    """That of another process, as far as the registry can tell."""
    async with serve(tmp_path / "data", **settings) as other:
        yield other.parts.garbage


class Shared:
    """What all take part in, until the time is over."""

    def __init__(self) -> None:
        self.ends_at = time.monotonic() + SECONDS
        self.done: dict[str, int] = {}

    async def repeat(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        while time.monotonic() < self.ends_at:
            begun_at = time.monotonic()
            try:
                await work()
            except AssertionError:
                if not name.startswith("push") or time.monotonic() - begun_at < HOLD_SECONDS:
                    raise
            self.done[name] = self.done.get(name, 0) + 1


async def push(publisher: RegistryClient, dice: random.Random) -> None:
    """Push an image or an index as clients do: what is here already is not sent."""
    repository = dice.choice(REPOSITORIES)
    images = [some_image(dice) for _ in range(dice.choice((1, 1, 2)))]
    for image in images:
        for blob in (image.config, image.layer):
            await push_blob(publisher, repository, blob, dice)
    for image in images[1:] and images:
        answer = await publisher.push_manifest(repository, str(image.digest), image.manifest)
        assert answer.status_code == 201, answer.text
    content, kind = (images[0].manifest, media_types.OCI_MANIFEST)
    if images[1:]:
        content, kind = index_of(*images), media_types.OCI_INDEX
    answer = await publisher.push_manifest(repository, dice.choice(TAGS), content, kind)
    assert answer.status_code == 201, answer.text


async def push_blob(publisher: RegistryClient, repository: str, blob: bytes, dice: random.Random) -> None:
    digest = Digest.of(blob)
    kind = dice.randrange(3)
    if kind and (await publisher.call("HEAD", f"/v2/{repository}/blobs/{digest}")).status_code == 200:
        return
    uploads = f"/v2/{repository}/blobs/uploads/"
    if kind == 1:
        answer = await publisher.call("POST", uploads, params={"mount": str(digest)})
        if answer.status_code == 201:
            return
        answer = await publisher.call("PATCH", answer.headers["location"], content=blob)
        answer = await publisher.call("PUT", f"{answer.headers['location']}?digest={digest}")
    else:
        answer = await publisher.call("POST", f"{uploads}?digest={digest}", content=blob)
    assert answer.status_code == 201, answer.text


async def delete(publisher: RegistryClient, dice: random.Random) -> None:
    path = f"/v2/{dice.choice(REPOSITORIES)}/manifests/{dice.choice(TAGS)}"
    assert (await publisher.call("DELETE", path)).status_code in {202, 404}
    await asyncio.sleep(0.05)


async def pull(customer: RegistryClient, repository: str, tag: str) -> None:
    """Pull an image wholly: while a tag names it, nothing of it may be missing."""
    path = f"/v2/{repository}/manifests/{tag}"
    answer = await customer.call("GET", path)
    if answer.status_code == 404:
        return
    problem = await find_missing(customer, repository, answer.content)
    if problem is not None:
        again = await customer.call("GET", path)
        assert again.headers.get("etag") != answer.headers["etag"], f"{repository}:{tag} {problem}"


async def find_missing(customer: RegistryClient, repository: str, content: bytes) -> str | None:
    manifest = json.loads(content)
    for child in manifest.get("manifests", []):
        answer = await customer.call("GET", f"/v2/{repository}/manifests/{child['digest']}")
        problem = None if answer.status_code == 200 else f"lacks manifest {child['digest']}"
        problem = problem or await find_missing(customer, repository, answer.content)
        if problem is not None:
            return problem
    for blob in [manifest["config"], *manifest["layers"]] if "config" in manifest else []:
        answer = await customer.call("GET", f"/v2/{repository}/blobs/{blob['digest']}")
        if answer.status_code != 200:
            return f"lacks blob {blob['digest']}: {answer.text}"
        assert str(Digest.of(answer.content)) == blob["digest"]
    return None


async def test_nothing_that_is_needed_is_ever_collected(
    served: Served, collector: GarbageCollector, hostile: HostileRegistry
) -> None:
    publisher = await served.client("publisher")
    dice = random.Random(7)
    shared = Shared()
    replicating = Replicating(served)
    await replicating.apply(hostile.url)

    async def replicate() -> None:
        hostile.put_image("smm/a", "copied", some_image(dice))
        run = await replicating.run()
        assert run.status == "done", run.report

    async def pull_something() -> None:
        await pull(publisher, dice.choice(REPOSITORIES), dice.choice((*TAGS, "copied")))

    work: dict[str, Callable[[], Awaitable[object]]] = {
        "collect": collector.collect,
        "replicate": replicate,
        "delete": lambda: delete(publisher, dice),
        **{f"push {number}": lambda: push(publisher, dice) for number in range(3)},
        **{f"pull {number}": pull_something for number in range(3)},
    }
    async with asyncio.TaskGroup() as group:
        for name, one in work.items():
            group.create_task(shared.repeat(name, one))
    assert all(shared.done.get(name, 0) > 0 for name in work), shared.done
    for repository in REPOSITORIES:
        for tag in (*TAGS, "copied"):
            await pull(publisher, repository, tag)
    await verify_only_recorded(served)


async def verify_only_recorded(served: Served) -> None:
    """With everybody gone and no grace left, storage holds what the database records and nothing else."""
    parts = served.parts
    at_once = GarbageCollector(parts.database, parts.blobs, parts.signals, utc_now, grace=timedelta(0), untagged=True)
    await at_once.collect()
    kept = {entry.key for shard in SHARDS async for page in parts.blobs.list_objects(shard) for entry in page}
    recorded = {row[-1] for row in rows_of(served)["blobs"]}
    assert kept == recorded
    assert (await at_once.collect()).freed_bytes == 0
