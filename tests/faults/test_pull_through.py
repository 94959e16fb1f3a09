"""Pull-through, with real servers: what is not here is fetched once, and served while it arrives.

One server of two workers for all; each test has a tag of its own.
"""

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot.access.plans import parse_plans
from entrepot.bootstrap import build_parts, close_parts
from entrepot.oci.digest import Digest
from entrepot.oci.media_types import OCI_INDEX, OCI_MANIFEST
from entrepot.oci.reference import cosign_tags
from entrepot.replication.rules import parse_rule_file
from entrepot.settings import Settings
from tests.support.content import Image, descriptor, image_for, index_of, platform_index
from tests.support.hostile import Gate, HostileRegistry, serving
from tests.support.programs import Entrepot, Process, require, run
from tests.support.served import TESTER, RegistryClient, serve
from tests.support.servers import PostgreSql
from tests.support.signatures import private_pem, public_pem
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

API = "smm/api"
PULL = {"repositories": ["smm/**"], "actions": ["pull"]}
PLANS = {
    "free": {"grants": [PULL]},
    "some": {"grants": [PULL | {"tags": {"include": ["v1-*"]}}]},
    "other": {"grants": [{"repositories": ["other/**"], "actions": ["pull"]}]},
    "tight": {"grants": [PULL], "limits": {"pulls_per_hour": 1}},
    "publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]},
}
AMD, ARM = "linux/amd64", "linux/arm64"
RULE = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["v*"]}, "pull_through": True}
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = public_pem(KEY)
SIGNED = {"repositories": ["vendor/*"], "target": "smm/of/{repository}", "trust": {"cosign": {"keys": [PEM]}}}
PICKED = {
    "repositories": ["picked/*"],
    "target": "smm/{repository}",
    "tags": {"include": ["v*"], "newest": {"count": 1, "by": "version"}},
    "platforms": {"keep": [AMD], "rebuild": True},
}
SPARSE = {"repositories": ["sparse/*"], "target": "smm/{repository}", "platforms": [AMD]}
# Nothing follows from the source; what speaks of it is ours.
OURS = {"repositories": ["ours/*"], "target": "smm/{repository}", "referrers": "none"}
LARGE, PART = 3_000_000, 1024 * 1024
PATIENCE_SECONDS = 60


@dataclass
class World:
    """A server, a source, and credentials by plan."""

    program: Entrepot
    source: HostileRegistry
    credentials: dict[str, tuple[str, str]]
    http: aiohttp.ClientSession
    stack: ExitStack = field(default_factory=ExitStack)
    process: Process | None = None

    async def start(self) -> None:
        """Start the server."""
        self.process = await asyncio.to_thread(self.stack.enter_context, self.program.serving("--workers", "2"))

    async def kill(self) -> None:
        """End it with -9."""
        assert self.process is not None
        await asyncio.to_thread(self.process.kill)

    def call(self, path: str, method: str = "GET", plan: str | None = "free") -> Any:
        """A request on a connection of its own, so that every worker gets some; a context."""
        headers = {}
        if plan is not None:
            pair = ":".join(self.credentials[plan]).encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return self.http.request(method, f"{self.program.url}/v2/{path}", headers=headers)

    async def get(self, path: str, method: str = "GET", plan: str | None = "free") -> tuple[int, bytes]:
        """Status and body of an answer."""
        async with self.call(path, method, plan) as answer:
            return answer.status, await answer.read()

    async def blob(self, content: bytes, plan: str = "free") -> bytes:
        """A blob, which must be had."""
        status, body = await self.get(f"{API}/blobs/{Digest.of(content)}", plan=plan)
        assert status == 200, body
        return body

    async def pull(self, tag: str, *images: Image, plan: str = "free") -> None:
        """Pull an index as clients do, with all its platforms."""
        assert (await self.get(f"{API}/manifests/{tag}", "HEAD", plan))[0] == 200
        assert (await self.get(f"{API}/manifests/{tag}", plan=plan)) == (200, index_of(*images))
        for image in images:
            assert (await self.get(f"{API}/manifests/{image.digest}", plan=plan)) == (200, image.manifest)
        blobs = [content for image in images for content in (image.config, image.layer)]
        assert await asyncio.gather(*(self.blob(content, plan) for content in blobs)) == blobs

    async def is_here(self, tag: str) -> bool:
        """Whether the tag has arrived."""
        status, body = await self.get(f"{API}/tags/list")
        return status == 200 and tag in json.loads(body)["tags"]

    async def arrive(self, tag: str) -> None:
        """Wait until it has."""
        await eventually(lambda: self.is_here(tag))

    async def latest_run(self) -> dict[str, Any]:
        """The latest run."""
        text = await asyncio.to_thread(self.program.run, "replicate", "status", "smm", "--json")
        run: dict[str, Any] = json.loads(text)["runs"][0]
        return run

    async def count(self, result: str, rule: str = "smm") -> float:
        """What the metric says."""
        async with self.http.get(f"{self.program.url}/metrics") as answer:
            text = await answer.text()
        wanted = f'entrepot_pull_through_total{{result="{result}",rule="{rule}"}} '
        return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted))


async def prepare(data: Path, source: str) -> dict[str, tuple[str, str]]:
    """Put plans and rules in force; answers a credential for each plan."""
    parts = build_parts(Settings(data=data))
    try:
        await parts.plans.apply(parse_plans({"plans": PLANS}), TESTER)
        rules = {"smm": RULE, "signed": RULE | SIGNED, "picked": RULE | PICKED, "sparse": RULE | SPARSE}
        key = data.parent / "publish.key"
        key.write_bytes(private_pem(KEY))
        rules["ours"] = RULE | OURS | {"sign": {"key_file": str(key)}}
        document = {"sources": {"internal": {"type": "oci", "url": source}}, "rules": rules}
        await parts.rulebook.apply(parse_rule_file(document), TESTER)
        found = {}
        for plan in PLANS:
            _, issued = await parts.accounts.create(plan, plan, {}, None, TESTER)
            assert issued is not None
            found[plan] = (issued.username, issued.secret.reveal())
        return found
    finally:
        close_parts(parts)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    program = Entrepot(tmp_path_factory.mktemp("pull") / "data")
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    patch = pytest.MonkeyPatch()
    patch.setenv("ENTREPOT_REPLICATION__PART_BYTES", str(PART))
    async with serving() as source, aiohttp.ClientSession(connector=connector) as http:
        world = World(program, source, await prepare(program.data, source.url), http)
        await world.start()
        try:
            yield world
        finally:
            await asyncio.to_thread(world.stack.close)
            patch.undo()


@pytest.fixture(autouse=True)
def behaving(world: World) -> None:
    """A source that does what it should, and has seen nothing yet."""
    world.source.misbehave = None
    world.source.has_referrers = False
    world.source.seen.clear()


async def test_twenty_clients_at_once_cost_the_source_one_fetch(world: World) -> None:
    images = [Image(layer=os.urandom(LARGE)) for _ in range(2)]
    world.source.put_index(API, "v1-many", *images)
    await asyncio.gather(*(world.pull("v1-many", *images) for _ in range(20)))
    await world.arrive("v1-many")
    blobs = Counter(line for line in world.source.seen if "/blobs/" in line)
    assert sorted(blobs.values()) == [1, 1, 1, 1]
    manifests = Counter(line for line in world.source.seen if line.startswith("GET") and "/manifests/sha256:" in line)
    assert set(manifests.values()) == {1}
    ended = await world.latest_run()
    assert (ended["status"], ended["cause"], ended["report"]["tags_copied"]) == ("done", "pull", 1)
    assert await world.count("fetched") >= 1
    assert list((world.program.data / "arriving").iterdir()) == []


async def test_a_real_client_pulls_what_is_not_here(world: World, tmp_path: Path) -> None:
    images = [Image(layer=os.urandom(LARGE)) for _ in range(2)]
    digest = world.source.put_index(API, "v1-crane", *images)
    login = [f"--src-creds={':'.join(world.credentials['free'])}", "--src-tls-verify=false"]
    done = await asyncio.to_thread(
        run,
        *(require("skopeo"), "--insecure-policy", "copy", "--all", "--preserve-digests", *login),
        *(f"docker://{world.program.host}/{API}:v1-crane", f"oci:{tmp_path}/layout:v1"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "layout/blobs" / digest.replace(":", "/")).read_bytes() == index_of(*images)


async def test_bytes_are_sent_on_before_the_source_has_sent_them_all(world: World) -> None:
    image = world.source.put_image(API, "v1-slow", Image(layer=os.urandom(LARGE)))
    world.source.has_referrers = True
    referrer = json.loads(image.manifest) | {"layers": [], "subject": descriptor(OCI_MANIFEST, image.manifest)}
    signature = world.source.put_manifest(API, json.dumps(referrer).encode(), OCI_MANIFEST)
    gate = Gate(world.source, image.layer, first=LARGE // 2)
    assert (await world.get(f"{API}/manifests/v1-slow"))[1] == image.manifest
    assert not await world.is_here("v1-slow")
    path = f"{API}/blobs/{Digest.of(image.layer)}"
    async with world.call(path) as leaving:  # a client that goes away
        assert await leaving.content.readexactly(1000) == image.layer[:1000]
    async with world.call(path) as one, world.call(path) as other:
        half = LARGE // 3
        assert await one.content.readexactly(half) == await other.content.readexactly(half) == image.layer[:half]
        # What belongs to it comes last, and is waited for.
        waiting = asyncio.create_task(world.get(f"{API}/referrers/{image.digest}"))
        assert (await world.get(path, "HEAD"))[0] == 200
        assert (await world.get(path, "HEAD", "publisher"))[0] == 404
        assert not waiting.done()
        assert not gate.opened.is_set()
        gate.opened.set()
        assert await one.read() == await other.read() == image.layer[half:]
    assert [entry["digest"] for entry in json.loads((await waiting)[1])["manifests"]] == [signature]
    await world.arrive("v1-slow")
    assert world.source.count("GET", str(Digest.of(image.layer))) == 1


async def test_clients_that_leave_while_a_source_hangs_leave_nothing_open(world: World) -> None:
    image = world.source.put_image(API, "v1-left", Image(layer=os.urandom(LARGE)))
    gate = Gate(world.source, image.layer)
    assert (await world.get(f"{API}/manifests/v1-left"))[0] == 200
    await gate.reached.wait()

    async def leave() -> None:
        async with world.call(f"{API}/blobs/{Digest.of(image.layer)}") as answer:
            await answer.content.readexactly(1000)

    async def is_let_go() -> bool:
        return await asyncio.to_thread(count_open, world.program.data / "arriving") == 1  # by the one that writes it

    await asyncio.gather(*(leave() for _ in range(40)))
    try:
        await eventually(is_let_go)
    finally:
        gate.opened.set()
    assert await world.blob(image.layer) == image.layer
    await world.arrive("v1-left")


def count_open(folder: Path) -> int:
    """How many of a folder's files are open, in all processes that we may look at."""
    count = 0
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            count += link.readlink().is_relative_to(folder)
    return count


async def test_wrong_bytes_are_never_a_complete_answer(world: World) -> None:
    image = world.source.put_image(API, "v1-liar", Image(layer=os.urandom(LARGE)))

    async def lie(request: web.Request) -> web.Response | None:
        return web.Response(body=image.layer[:-1] + b"!") if str(Digest.of(image.layer)) in request.path else None

    world.source.misbehave = lie
    before = await world.count("broken")
    assert (await world.get(f"{API}/manifests/v1-liar"))[1] == image.manifest
    async with world.call(f"{API}/blobs/{Digest.of(image.layer)}") as answer:
        if answer.status == 200:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
    assert not await world.is_here("v1-liar")

    async def is_noted() -> bool:
        return await world.count("broken") > before

    await eventually(is_noted)
    assert (await world.latest_run())["status"] == "failed"
    assert str(Digest.of(image.layer)) not in world.program.recorded_blobs()
    world.source.misbehave = None
    assert (await world.get(f"{API}/manifests/v1-liar"))[0] == 200
    assert await world.blob(image.layer) == image.layer


async def test_who_may_not_pull_reaches_no_source(world: World) -> None:
    image = world.source.put_image(API, "v2-closed")
    for plan, status in ((None, 401), ("other", 403), ("some", 403)):
        assert (await world.get(f"{API}/manifests/v2-closed", plan=plan))[0] == status
    # An account that has used up what it may pull; and what no rule means.
    open_image = world.source.put_image(API, "v2-open")
    assert (await world.get(f"{API}/manifests/v2-open", plan="tight"))[1] == open_image.manifest
    await world.arrive("v2-open")
    seen = len(world.source.seen)
    assert (await world.get(f"{API}/manifests/v2-closed", plan="tight"))[0] == 429
    world.source.put_image(API, "nightly", image)
    world.source.put_image("other/api", "v1", image)
    for path, plan in ((f"{API}/manifests/nightly", "free"), ("other/api/manifests/v1", "other")):
        assert (await world.get(path, plan=plan))[0] == 404
    # A digest alone says nothing of which tags a rule means.
    assert (await world.get(f"{API}/manifests/{image.digest}"))[0] == 404
    assert (await world.get(f"{API}/blobs/{Digest.of(image.layer)}"))[0] == 404
    assert world.source.seen[seen:] == []


async def test_what_is_not_signed_is_not_served_at_all(world: World) -> None:
    image = world.source.put_image("vendor/api", "v1-unsigned")
    for _ in range(2):
        assert (await world.get("smm/of/vendor/api/manifests/v1-unsigned"))[0] == 404
    assert (await world.get(f"smm/of/vendor/api/manifests/{image.digest}"))[0] == 404
    assert world.source.count("/vendor/api/manifests/v1-unsigned") > 0
    assert world.source.count("/blobs/") == 0
    assert await world.count("refused", "signed") >= 1


@pytest.mark.parametrize("kind", ["picked", "sparse"])
async def test_what_is_served_is_what_the_rule_makes_of_it(world: World, kind: str) -> None:
    images = {platform: image_for(platform) for platform in (AMD, ARM)}
    for image in images.values():
        world.source.put_image(f"{kind}/api", image=image)
    index = platform_index(images)
    # It is not the newest, but it is what is asked for.
    for tag in ("v2.0.0", "v1.0.0"):
        world.source.put_manifest(f"{kind}/api", index, OCI_INDEX, tag)
    gate = Gate(world.source, images[AMD].layer, first=100)
    status, body = await world.get(f"smm/{kind}/api/manifests/v1.0.0")
    children = [entry["digest"] for entry in json.loads(body)["manifests"]]
    assert (status, body == index) == (200, kind == "sparse")
    kept, others = str(images[AMD].digest), str(images[ARM].digest)
    assert children == ([kept, others] if kind == "sparse" else [kept])
    assert (await world.get(f"smm/{kind}/api/manifests/{Digest.of(body)}"))[1] == body
    assert (await world.get(f"smm/{kind}/api/manifests/{kept}"))[1] == images[AMD].manifest
    assert (await world.get(f"smm/{kind}/api/manifests/{others}"))[0] == 404
    gate.opened.set()

    async def list_tags() -> Any:
        return json.loads((await world.get(f"smm/{kind}/api/tags/list"))[1]).get("tags")

    async def is_here() -> bool:
        return bool(await list_tags())

    await eventually(is_here)
    assert await list_tags() == ["v1.0.0"]
    assert (await world.get(f"smm/{kind}/api/manifests/v1.0.0"))[1] == body
    # What is for others alone is left out.
    world.source.put_image(f"{kind}/api", "v3.0.0", image_for(ARM))
    assert (await world.get(f"smm/{kind}/api/manifests/v3.0.0"))[0] == 404


async def test_an_index_that_cannot_be_rebuilt_is_as_if_it_were_not_there(world: World) -> None:
    images = {platform: image_for(platform) for platform in (AMD, ARM)}
    # Written anew, each of these characters takes three times the room, and all of them too much.
    note = {"annotations": {"note": "\u00e9" * 1_000_000}}
    index = json.dumps(json.loads(platform_index(images)) | note, ensure_ascii=False).encode()
    world.source.put_manifest("picked/large", index, OCI_INDEX, "v1.0.0")
    assert (await world.get("smm/picked/large/manifests/v1.0.0"))[0] == 404
    assert await world.count("refused", "picked") >= 1


async def test_our_own_signature_is_waited_for_though_nothing_else_follows(world: World) -> None:
    image = world.source.put_image("ours/api", "v1", Image(layer=os.urandom(LARGE)))
    gate = Gate(world.source, image.layer, first=100)
    assert (await world.get("smm/ours/api/manifests/v1"))[1] == image.manifest
    paths = (f"manifests/{cosign_tags(image.digest)[0]}", f"referrers/{image.digest}")
    waiting = [asyncio.create_task(world.get(f"smm/ours/api/{path}")) for path in paths]
    done, _ = await asyncio.wait(waiting, timeout=0.5)
    assert not done
    gate.opened.set()
    (status, _), (_, referrers) = await asyncio.gather(*waiting)
    assert (status, len(json.loads(referrers)["manifests"])) == (200, 1)


async def test_a_plan_of_some_tags_gets_what_an_allowed_tag_on_its_way_leads_to(world: World) -> None:
    image = world.source.put_image(API, "v1-some", Image(layer=os.urandom(LARGE)))
    other = world.source.put_image(API, "v2-some", Image(layer=os.urandom(LARGE)))
    gates = [Gate(world.source, image.layer), Gate(world.source, other.layer)]

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        for gate in gates:
            answer = await gate.misbehave(request)
            if answer is not None:
                return answer
        return None

    world.source.misbehave = misbehave
    assert (await world.get(f"{API}/manifests/v1-some", plan="some"))[1] == image.manifest
    assert (await world.get(f"{API}/manifests/v2-some"))[1] == other.manifest
    assert (await world.get(f"{API}/manifests/{other.digest}", plan="some"))[0] == 403
    assert (await world.get(f"{API}/manifests/{image.digest}", plan="some"))[1] == image.manifest
    for gate in gates:
        gate.opened.set()
    assert await world.blob(image.layer, plan="some") == image.layer
    await world.arrive("v1-some")
    await world.arrive("v2-some")


async def test_a_blob_that_is_asked_for_goes_before_those_that_are_not(world: World) -> None:
    images = [Image(layer=os.urandom(200_000)) for _ in range(10)]
    world.source.put_index(API, "v1-wide", *images)
    opened = asyncio.Event()
    reached: list[str] = []
    last = str(Digest.of(images[-1].layer))

    async def hold(request: web.Request) -> None:
        if "/blobs/" in request.path:
            reached.append(request.path.rpartition("/")[2])
            if reached[-1] != last:
                await opened.wait()

    world.source.misbehave = hold
    assert (await world.get(f"{API}/manifests/v1-wide"))[0] == 200
    try:
        assert await asyncio.wait_for(world.blob(images[-1].layer), PATIENCE_SECONDS) == images[-1].layer
    finally:
        opened.set()
    assert len(reached) < 20
    await world.arrive("v1-wide")


async def test_a_tag_that_no_source_has_is_asked_for_once(world: World) -> None:
    for _ in range(6):
        assert (await world.get(f"{API}/manifests/v1-none"))[0] == 404
    assert 1 <= world.source.count("/manifests/v1-none") <= 2  # once in each worker
    # Whoever asks for one name after the other is soon not asked for any more.
    names = [f"{API}/manifests/v1-none-{number}" for number in range(200)]
    assert {(await world.get(name, plan="some"))[0] for name in names} == {404}
    assert world.source.count("/manifests/v1-none-") <= 120
    image = world.source.put_image(API, "v1-there")
    assert (await world.get(f"{API}/manifests/v1-there"))[1] == image.manifest


async def test_a_killed_fetch_leaves_nothing_and_is_taken_over(world: World) -> None:
    image = world.source.put_image(API, "v1-killed", Image(layer=os.urandom(LARGE)))
    gate = Gate(world.source, image.layer, first=LARGE // 2)
    starts: list[int] = []

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        if str(Digest.of(image.layer)) in request.path:
            starts.append(request.http_range.start or 0)
        return await gate.misbehave(request)

    async def has_part() -> bool:
        with contextlib.closing(sqlite3.connect(world.program.data / "entrepot.db")) as connection:
            sizes = connection.execute("SELECT MAX(size_bytes) FROM uploads").fetchone()
        return (sizes[0] or 0) >= PART

    world.source.misbehave = misbehave
    assert (await world.get(f"{API}/manifests/v1-killed"))[1] == image.manifest
    path = f"{API}/blobs/{Digest.of(image.layer)}"
    async with world.call(path) as answer:
        assert await answer.content.readexactly(LARGE // 3) == image.layer[: LARGE // 3]
        await eventually(has_part)
        await world.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await answer.read()
            pytest.fail("a complete answer")
    assert str(Digest.of(image.layer)) not in world.program.recorded_blobs()
    await world.start()
    assert not await world.is_here("v1-killed")
    gate.opened.set()
    assert await world.blob(image.layer) == image.layer
    assert [start >= PART for start in starts] == [False, True]
    assert (await world.get(f"{API}/manifests/v1-killed"))[1] == image.manifest
    await world.arrive("v1-killed")
    ended = await world.latest_run()
    assert (ended["status"], ended["tries"]) == ("done", 2)


async def test_a_source_that_is_away_keeps_nobody_from_what_is_here(world: World) -> None:
    image = world.source.put_image(API, "v1-here")
    assert (await world.get(f"{API}/manifests/v1-here"))[0] == 200
    await world.arrive("v1-here")

    async def hang(_: web.Request) -> None:
        await asyncio.sleep(600)

    world.source.misbehave = hang
    seen = len(world.source.seen)
    asking = [asyncio.create_task(world.get(f"{API}/manifests/v1-away-{number}")) for number in range(30)]
    await asyncio.sleep(0.5)
    assert (await world.get(f"{API}/manifests/v1-here"))[1] == image.manifest
    answers = [(await task) for task in asking]
    assert {status for status, _ in answers} == {503}
    assert "try again in a moment" in answers[0][1].decode()
    assert 1 <= len(world.source.seen) - seen <= 16


async def test_machines_that_share_a_database_fetch_once_and_both_answer(
    postgresql_server: PostgreSql, tmp_path: Path
) -> None:
    images = [Image(layer=os.urandom(200_000)) for _ in range(2)]
    settings = {"database_url": postgresql_server.create_migrated(), "storage_url": f"file://{tmp_path}/blobs"}
    settings |= {"secret_key": "0123456789abcdef" * 2}
    async with (
        serving() as source,
        serve(tmp_path / "one", **settings) as one,
        serve(tmp_path / "other", **settings) as other,
    ):
        source.put_index(API, "v1", *images)
        gate = Gate(source, images[0].layer)
        document = {"sources": {"internal": {"type": "oci", "url": source.url}}, "rules": {"smm": RULE}}
        await one.parts.rulebook.apply(parse_rule_file(document), TESTER)
        credential = await one.issue("free")
        clients = [RegistryClient(machine.http, credential) for machine in (one, other)]
        answers = [await client.call("GET", f"/v2/{API}/manifests/v1") for client in clients]
        assert [answer.content for answer in answers] == [index_of(*images)] * 2
        for image in images:
            answer = await clients[1].call("GET", f"/v2/{API}/manifests/{image.digest}")
            assert answer.content == image.manifest
        asking = [
            asyncio.create_task(client.call("GET", f"/v2/{API}/blobs/{Digest.of(image.layer)}"))
            for client in clients
            for image in images
        ]
        await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
        gate.opened.set()
        assert [(await task).content for task in asking] == [image.layer for image in images] * 2
        assert source.count("GET", "/manifests/v1") == 1
        assert {source.count("GET", str(Digest.of(image.layer))) for image in images} == {1}

        async def is_here() -> bool:
            return (await clients[1].call("GET", f"/v2/{API}/tags/list")).status_code == 200

        await eventually(is_here)


async def test_a_server_that_stops_lets_another_go_on(postgresql_server: PostgreSql, tmp_path: Path) -> None:
    image = Image(layer=os.urandom(200_000))
    settings = {"database_url": postgresql_server.create_migrated(), "storage_url": f"file://{tmp_path}/blobs"}
    settings |= {"secret_key": "0123456789abcdef" * 2}
    async with serving() as source, serve(tmp_path / "one", **settings) as one:
        source.put_image(API, "v1", image)
        document = {"sources": {"internal": {"type": "oci", "url": source.url}}, "rules": {"smm": RULE}}
        await one.parts.rulebook.apply(parse_rule_file(document), TESTER)
        client = RegistryClient(one.http, await one.issue("free"))
        gate = Gate(source, image.layer)
        async with serve(tmp_path / "stopping", **settings) as stopping:
            leaving = RegistryClient(stopping.http, client.credential)
            assert (await leaving.call("GET", f"/v2/{API}/manifests/v1")).content == image.manifest
            await asyncio.wait_for(gate.reached.wait(), PATIENCE_SECONDS)
        gate.opened.set()
        answer = await client.call("GET", f"/v2/{API}/blobs/{Digest.of(image.layer)}")
        assert (answer.status_code, answer.content) == (200, image.layer)
