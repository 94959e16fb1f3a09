"""A full disk: what comes is refused with a reason and leaves nothing, what is there is served."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.backoff import Backoff
from tests.faults.conftest import RULE, Replicating, eventually, working
from tests.support.content import Image
from tests.support.hostile import HostileRegistry
from tests.support.programs import Credential, Entrepot, run, run_well
from tests.support.served import TESTER, serve
from tests.support.whole import verify_whole

DISK_BYTES = 24 * 1024**2
PUBLISHER = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}}
UPLOADS = "/v2/smm/api/blobs/uploads/"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    if done.returncode:
        message = f"a small disk takes the right to mount: {done.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def entrepot(disk: Path) -> Entrepot:
    program = Entrepot(disk / "data")
    program.apply_plans(PUBLISHER)
    return program


@pytest.fixture
def publisher(entrepot: Entrepot) -> Credential:
    return entrepot.issue("pipeline", "publisher")


def client(entrepot: Entrepot, credential: Credential) -> httpx.Client:
    return httpx.Client(base_url=entrepot.url, auth=(credential.username, credential.secret), timeout=60)


def push(http: httpx.Client, image: Image, tag: str) -> httpx.Response:
    for blob in (image.config, image.layer):
        answer = http.post(UPLOADS, params={"digest": str(Digest.of(blob))}, content=blob)
        assert answer.status_code == 201, answer.text
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    return http.put(f"/v2/smm/api/manifests/{tag}", content=image.manifest, headers=headers)


def pulls(http: httpx.Client, image: Image) -> bool:
    return (
        http.get("/v2/smm/api/manifests/v1").content == image.manifest
        and http.get(f"/v2/smm/api/blobs/{Digest.of(image.layer)}").content == image.layer
    )


def objects(entrepot: Entrepot) -> set[Path]:
    return {path for path in (entrepot.data / "blobs").rglob("*") if path.is_file()}


def fill(disk: Path) -> Path:
    """Leave no room at all."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1024**2, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def test_a_blob_that_does_not_fit_is_refused_and_leaves_nothing(entrepot: Entrepot, publisher: Credential) -> None:
    image, large = Image(), os.urandom(DISK_BYTES)
    digest = str(Digest.of(large))
    with entrepot.serving(), client(entrepot, publisher) as http:
        assert push(http, image, "v1").status_code == 201
        before = objects(entrepot)
        whole = http.post(UPLOADS, params={"digest": digest}, content=large)
        chunk = http.patch(http.post(UPLOADS).headers["location"], content=large)
        for answer in (whole, chunk):
            assert answer.status_code == 507, answer.text
            assert "storage is full" in answer.json()["errors"][0]["message"]
        assert objects(entrepot) == before
        assert http.get(f"/v2/smm/api/blobs/{digest}").status_code == 404
        assert pulls(http, image)
        # What does fit is taken as before.
        assert push(http, Image(layer=os.urandom(1_000_000)), "v2").status_code == 201


def test_a_database_without_room_writes_nothing_and_recovers(
    entrepot: Entrepot, publisher: Credential, disk: Path
) -> None:
    image, other = Image(), Image()
    with entrepot.serving(), client(entrepot, publisher) as http:
        assert push(http, image, "v1").status_code == 201
        assert pulls(http, image)
        blobs = [http.post(UPLOADS, params={"digest": str(Digest.of(one))}, content=one) for one in (other.config,)]
        assert [answer.status_code for answer in blobs] == [201]
        filler = fill(disk)
        # It may find room in pages that it has already, but not for ever.
        answers = [http.post(UPLOADS) for _ in range(2000)]
        assert {answer.status_code for answer in answers} <= {202, 507}
        assert answers[-1].status_code == 507
        assert "disk is full" in answers[-1].json()["errors"][0]["message"]
        assert pulls(http, image)
        filler.unlink()
        assert http.post(UPLOADS).status_code == 202
        assert push(http, other, "v2").status_code == 201
    with entrepot.serving(), client(entrepot, publisher) as http:
        assert pulls(http, image)
    entrepot.recorded_blobs()


@pytest.fixture
async def replicating(disk: Path, hostile: HostileRegistry) -> AsyncIterator[Replicating]:
    """Replication onto the small disk, in parts."""
    async with serve(disk / "data") as served:
        replicating = Replicating(served).beside(
            part_bytes=2 * 1024**2, backoff=Backoff(first_seconds=0.5, most_seconds=0.5), tries=1000
        )
        await replicating.apply(hostile.url)
        yield replicating
        await verify_whole(served)


async def test_a_replication_waits_for_room_and_copies_nothing_again(
    hostile: HostileRegistry, replicating: Replicating, disk: Path
) -> None:
    # It fits, but not twice, as it does for a moment when its parts are joined.
    image = Image(layer=os.urandom(DISK_BYTES * 2 // 3))
    hostile.put_image("smm/api", "v1", image)
    registry = replicating.served.parts.registry
    async with working(replicating):
        await replicating.runs.queue(RULE, TESTER)

        async def is_waiting() -> bool:
            return await replicating.status() == "waiting"

        await eventually(is_waiting)
        waiting = await replicating.latest()
        assert waiting.report["problem"]["side"] == "destination"
        assert "full" in waiting.report["problem"]["problem"]
        assert waiting.report["problem"]["is_temporary"]
        assert await registry.read_tag_digests(RepositoryName("smm/api"), [Tag("v1")]) == {}
        assert await registry.find_manifest(RepositoryName("smm/api"), image.digest) is None
        await verify_whole(replicating.served)
        await asyncio.to_thread(run_well, "mount", "-o", f"remount,size={DISK_BYTES * 4}", disk)

        async def is_done() -> bool:
            return await replicating.status() == "done"

        await eventually(is_done)
    done = await replicating.latest()
    assert done.report["bytes"] == len(image.layer) + len(image.config)
    assert await registry.read_tag_digests(RepositoryName("smm/api"), [Tag("v1")]) == {Tag("v1"): image.digest}
