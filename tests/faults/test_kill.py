"""kill -9 in the middle of things, on the real program: what was acknowledged is there, nothing half-written is."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.hostile import HostileRegistry, Misbehave, send_pieces
from tests.support.programs import Credential, Entrepot, Process

PUBLISHER = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]}}
LAYERS = [os.urandom(3_000_000) for _ in range(2)]
PIECE = 100_000
PATIENCE_SECONDS = 90


@pytest.fixture
def entrepot(tmp_path_factory: pytest.TempPathFactory) -> Entrepot:
    program = Entrepot(tmp_path_factory.mktemp("killed") / "data")
    program.apply_plans(PUBLISHER)
    return program


@pytest.fixture
def publisher(entrepot: Entrepot) -> Credential:
    return entrepot.issue("pipeline", "publisher")


def client(entrepot: Entrepot, credential: Credential) -> httpx.Client:
    return httpx.Client(base_url=entrepot.url, auth=(credential.username, credential.secret), timeout=60)


def test_an_upload_goes_on_after_the_server_was_killed_in_the_middle_of_a_chunk(
    entrepot: Entrepot, publisher: Credential
) -> None:
    content = os.urandom(2_000_000)
    digest = Digest.of(content)
    with entrepot.serving() as server, client(entrepot, publisher) as http:
        location = http.post("/v2/smm/api/blobs/uploads/").headers["location"]
        answer = http.patch(location, content=content[:500_000])
        assert answer.status_code == 202
        location = answer.headers["location"]

        def slowly() -> object:
            yield content[500_000:700_000]
            server.kill()
            yield content[700_000:]

        with pytest.raises(httpx.TransportError):
            http.patch(location, content=slowly())  # type: ignore[arg-type]
    with entrepot.serving(), client(entrepot, publisher) as http:
        # Nothing of it is visible.
        assert http.get(f"/v2/smm/api/blobs/{digest}").status_code == 404
        # What was acknowledged is there, and the upload goes on behind it.
        status = http.get(location)
        assert (status.status_code, status.headers["range"]) == (204, "0-499999")
        headers = {"Content-Range": "500000-1999999"}
        answer = http.patch(status.headers["location"], content=content[500_000:], headers=headers)
        assert answer.status_code == 202
        answer = http.put(answer.headers["location"], params={"digest": str(digest)})
        assert answer.status_code == 201, answer.text
        assert http.get(f"/v2/smm/api/blobs/{digest}").content == content


def test_what_was_acknowledged_survives_a_kill(entrepot: Entrepot, publisher: Credential) -> None:
    image = Image()
    with entrepot.serving() as server, client(entrepot, publisher) as http:
        for blob in (image.config, image.layer):
            digest = str(Digest.of(blob))
            assert http.post("/v2/smm/api/blobs/uploads/", params={"digest": digest}, content=blob).status_code == 201
        headers = {"Content-Type": media_types.OCI_MANIFEST}
        assert http.put("/v2/smm/api/manifests/v1", content=image.manifest, headers=headers).status_code == 201
        server.kill()
    with entrepot.serving(), client(entrepot, publisher) as http:
        assert http.get("/v2/smm/api/manifests/v1").content == image.manifest
        assert http.get(f"/v2/smm/api/blobs/{Digest.of(image.layer)}").content == image.layer


def test_a_killed_server_leaves_its_port_free(entrepot: Entrepot) -> None:
    for _ in range(2):
        with entrepot.serving("--workers", "2") as server:
            server.popen.kill()  # the supervisor alone; its processes must follow
            server.popen.wait()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                try:
                    httpx.get(f"{entrepot.url}/livez", timeout=1)
                except httpx.ConnectError:  # and no timeout, which only says that it is slow
                    break
                except httpx.TransportError:
                    continue
                time.sleep(0.05)
            else:
                pytest.fail("a killed server's processes went on serving")


def stuck_in_the_middle_of(layer: bytes, halfway: asyncio.Event) -> Misbehave:
    """Sends half of a layer and then nothing, once."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(layer) // 2, PIECE):
            yield layer[start : start + PIECE]
        halfway.set()
        await asyncio.sleep(PATIENCE_SECONDS)

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        if str(Digest.of(layer)) not in request.path or halfway.is_set():
            return None
        return await send_pieces(request, pieces(), length=len(layer))

    return misbehave


@asynccontextmanager
async def served(entrepot: Entrepot) -> AsyncIterator[Process]:
    """The server, while this process serves the source."""
    serving = entrepot.serving()
    process = await asyncio.to_thread(serving.__enter__)
    try:
        yield process
    finally:
        await asyncio.to_thread(serving.__exit__, None, None, None)


async def apply_rule(entrepot: Entrepot, hostile: HostileRegistry) -> None:
    """A rule that copies everything below smm/."""
    rules = {
        "sources": {"hostile": {"type": "oci", "url": hostile.url}},
        "rules": {"all": {"source": "hostile", "repositories": ["smm/*"], "tags": {"include": ["*"]}}},
    }
    path = entrepot.data.parent / "replication.yaml"
    path.write_text(json.dumps(rules))
    await asyncio.to_thread(entrepot.run, "replicate", "apply", path)


async def test_a_replication_goes_on_after_its_process_was_killed(
    entrepot: Entrepot, publisher: Credential, hostile: HostileRegistry
) -> None:
    """The server is killed while the second layer is on its way, and started again."""
    first, second = (str(Digest.of(layer)) for layer in LAYERS)
    images = [hostile.put_image("smm/api", f"v{number}", Image(layer=layer)) for number, layer in enumerate(LAYERS)]
    halfway = asyncio.Event()
    hostile.misbehave = stuck_in_the_middle_of(LAYERS[1], halfway)
    await apply_rule(entrepot, hostile)

    async with served(entrepot) as server:
        await asyncio.to_thread(entrepot.run, "replicate", "run", "all")
        await asyncio.wait_for(halfway.wait(), PATIENCE_SECONDS)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while first not in entrepot.recorded_blobs():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        server.kill()
    recorded = entrepot.recorded_blobs()
    assert first in recorded
    assert second not in recorded

    hostile.seen.clear()
    async with served(entrepot):
        deadline = time.monotonic() + PATIENCE_SECONDS
        run = None
        while run is None or run["status"] != "done":
            assert time.monotonic() < deadline, run
            await asyncio.sleep(0.5)
            shown = json.loads(await asyncio.to_thread(entrepot.run, "replicate", "status", "all", "--json"))
            (run,) = shown["runs"]
        assert hostile.count("GET", first) == 0  # it was there already
        with client(entrepot, publisher) as http:
            for number, image in enumerate(images):
                assert http.get(f"/v2/smm/api/manifests/v{number}").content == image.manifest
                assert http.get(f"/v2/smm/api/blobs/{Digest.of(image.layer)}").content == image.layer


async def test_a_killed_command_is_taken_over_by_the_next(entrepot: Entrepot, hostile: HostileRegistry) -> None:
    hostile.put_image("smm/api", "v1", Image(layer=LAYERS[0]))
    reached = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" in request.path and not reached.is_set():
            reached.set()
            await asyncio.sleep(PATIENCE_SECONDS)
        return None

    hostile.misbehave = hang
    await apply_rule(entrepot, hostile)
    command = [str(part) for part in entrepot.command("replicate", "run", "all", "--wait")]
    process = await asyncio.create_subprocess_exec(*command)
    await asyncio.wait_for(reached.wait(), PATIENCE_SECONDS)
    process.kill()
    await process.wait()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        again = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, errors = await again.communicate()
        if again.returncode == 0:
            break
        assert b"has a run that is running" in errors, errors
        assert time.monotonic() < deadline
        await asyncio.sleep(1)
