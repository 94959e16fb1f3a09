"""Three workers, processes of their own, on one PostgreSQL: they share the work, and one is killed."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web

from entrepot.oci.digest import Digest
from tests.faults.conftest import eventually
from tests.support.content import Image
from tests.support.hostile import HostileRegistry, serving
from tests.support.programs import Entrepot, Process, running
from tests.support.servers import PostgreSql

PART = 1024 * 1024
LAYER = os.urandom(24 * PART)
IMAGE = Image(layer=LAYER)
DIGEST = str(Digest.of(LAYER))


class SlowLayer:
    """Sends the layer at some MB a second, and notes who asked for what."""

    def __init__(self, hostile: HostileRegistry, pause: float) -> None:
        self.starts: list[int] = []
        self.ports: list[int] = []
        self.sent = 0
        self.open = 0
        self.pause = pause
        hostile.misbehave = self.misbehave

    async def misbehave(self, request: web.Request) -> web.StreamResponse | None:
        if DIGEST not in request.path:
            return None
        start = request.http_range.start or 0
        assert request.transport is not None
        self.ports.append(request.transport.get_extra_info("peername")[1])
        self.starts.append(start)
        part = {"Content-Range": f"bytes {start}-{len(LAYER) - 1}/{len(LAYER)}"} if start else {}
        answer = web.StreamResponse(
            status=206 if start else 200, headers=part | {"Content-Length": str(len(LAYER) - start)}
        )
        await answer.prepare(request)
        self.open += 1
        try:
            for at in range(start, len(LAYER), PART // 4):
                await answer.write(LAYER[at : at + PART // 4])
                self.sent += PART // 4
                await asyncio.sleep(self.pause)
        finally:
            self.open -= 1
        return answer


class Workers:
    """The workers, and a command line beside them."""

    def __init__(self, program: Entrepot, database: str, processes: list[Process]) -> None:
        self.program = program
        self.processes = processes
        self._database = database

    async def run(self, *arguments: str | Path) -> str:
        """A command that must succeed, while this process goes on serving."""
        return await asyncio.to_thread(self.program.run, *arguments)

    async def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the database answers."""

        def ask() -> list[tuple[Any, ...]]:
            with psycopg.connect(self._database, autocommit=True) as connection:
                cursor = connection.execute(statement.encode(), values)
                return cursor.fetchall() if cursor.description else []

        return await asyncio.to_thread(ask)

    def owner_of(self, port: int) -> Process:
        """The worker whose connection has this port."""
        sockets = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            sockets[int(fields[1].rpartition(":")[2], 16)] = f"socket:[{fields[9]}]"
        for process in self.processes:
            files = Path(f"/proc/{process.popen.pid}/fd")
            for file in files.iterdir() if files.exists() else ():
                try:
                    if str(file.readlink()) == sockets.get(port):
                        return process
                except OSError:
                    continue
        raise AssertionError(f"no worker has the connection from port {port}")


@pytest.fixture
async def hostile() -> AsyncIterator[HostileRegistry]:
    async with serving() as registry:
        yield registry


@pytest.fixture
def workers(postgresql_server: PostgreSql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    database = postgresql_server.create_migrated()
    monkeypatch.setenv("ENTREPOT_SECRET_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("ENTREPOT_DATABASE_URL", database)
    monkeypatch.setenv("ENTREPOT_STORAGE_URL", f"file://{tmp_path}/blobs")
    monkeypatch.setenv("ENTREPOT_REPLICATION__PART_BYTES", str(PART))
    programs = [Entrepot(tmp_path / name) for name in ("one", "two", "three")]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(program.command("worker"), tmp_path / f"{program.data.name}.log"))
            for program in programs
        ]
        yield Workers(Entrepot(tmp_path / "command"), database, processes)


async def apply(workers: Workers, hostile: HostileRegistry, tmp_path: Path) -> None:
    """A rule for the large layer, and one with a schedule."""
    tags = {"include": ["*"]}
    rules = {
        "large": {"source": "hostile", "repositories": ["smm/api"], "tags": tags},
        "often": {"source": "hostile", "repositories": ["other/api"], "tags": tags, "schedule": "0 0 1 1 *"},
    }
    file = tmp_path / "replication.yaml"
    file.write_text(json.dumps({"sources": {"hostile": {"type": "oci", "url": hostile.url}}, "rules": rules}))
    await workers.run("replicate", "apply", file)
    hostile.put_image("smm/api", "v1", IMAGE)
    hostile.put_image("other/api", "v1")


async def test_one_is_killed_and_another_goes_on_behind_the_last_part(
    workers: Workers, hostile: HostileRegistry, tmp_path: Path
) -> None:
    slow = SlowLayer(hostile, pause=0.1)
    await apply(workers, hostile, tmp_path)
    await workers.run("replicate", "run", "large")

    async def has_parts() -> bool:
        ((count,),) = await workers.query("SELECT count(*) FROM upload_chunks")
        return bool(count >= 3)

    await eventually(has_parts, 60)
    killed = workers.owner_of(slow.ports[0])
    killed.kill()
    ((received,),) = await workers.query("SELECT size_bytes FROM uploads")
    slow.pause = 0

    async def is_done() -> bool:
        return bool(await workers.query("SELECT 1 FROM replication_runs WHERE rule = 'large' AND status = 'done'"))

    await eventually(is_done, 90)
    (run,) = json.loads(await workers.run("replicate", "status", "large", "--json"))["runs"]
    assert run["tries"] == 2
    # The second asks for what the first had not written down, and for nothing else.
    assert slow.starts == [0, received]
    assert run["report"]["bytes_resumed"] == received >= 3 * PART
    assert len(slow.ports) == 2
    ((size, key),) = await workers.query("SELECT size_bytes, key FROM blobs WHERE digest = %s", DIGEST)
    stored = (tmp_path / "blobs" / key).read_bytes()
    assert (size, str(Digest.of(stored))) == (len(LAYER), DIGEST)
    assert await workers.query("SELECT id FROM uploads") == []
    verified = await workers.run("replicate", "verify", "large", "--deep")
    assert verified == "large: equal, 1 tags\n"


async def test_deletions_go_on_where_a_killed_worker_stopped(
    workers: Workers, hostile: HostileRegistry, tmp_path: Path
) -> None:
    for number in range(6):
        hostile.put_image("smm/api", f"v{number}")
    rule = {"source": "hostile", "repositories": ["smm/api"], "tags": {"include": ["*"]}, "deletions": "mirror"}
    file = tmp_path / "replication.yaml"
    file.write_text(json.dumps({"sources": {"hostile": {"type": "oci", "url": hostile.url}}, "rules": {"all": rule}}))
    await workers.run("replicate", "apply", file)
    await workers.run("replicate", "run", "all", "--wait")
    for number in range(5):
        hostile.delete_tag("smm/api", f"v{number}")
    asked: list[int] = []

    async def hang(request: web.Request) -> web.StreamResponse | None:
        """Say that two tags are gone, and of the others nothing, to the first that asks."""
        if request.method == "HEAD" and request.path.endswith(("/v2", "/v3", "/v4")) and len(asked) < 3:
            assert request.transport is not None
            asked.append(request.transport.get_extra_info("peername")[1])
            await asyncio.sleep(60)
        return None

    hostile.misbehave = hang
    await workers.run("replicate", "run", "all")
    count = "SELECT count(*) FROM tags"

    async def are_two_gone() -> bool:
        return len(asked) == 3 and await workers.query(count) == [(4,)]

    await eventually(are_two_gone, 60)
    workers.owner_of(asked[0]).kill()

    async def is_done() -> bool:
        return await workers.query("SELECT status FROM replication_runs ORDER BY queued_at") == [("done",), ("done",)]

    await eventually(is_done, 90)
    assert await workers.query("SELECT name FROM tags") == [("v5",)]
    assert await workers.query("SELECT tag FROM replicated_tags") == [("v5",)]
    assert await workers.run("replicate", "verify", "all") == "all: equal, 1 tags\n"


async def test_they_share_a_schedule_and_a_cancelled_run_ends_at_once(
    workers: Workers, hostile: HostileRegistry, tmp_path: Path
) -> None:
    slow = SlowLayer(hostile, pause=0.5)
    await apply(workers, hostile, tmp_path)
    for number in range(1, 4):
        # As if the time had come: every worker sees it.
        await workers.query("UPDATE replication_rules SET scheduled_at = now() WHERE name = 'often'")

        async def is_done(number: int = number) -> bool:
            found = await workers.query("SELECT status, cause FROM replication_runs WHERE rule = 'often'")
            assert len(found) <= number
            return found == [("done", "schedule")] * number

        await eventually(is_done, 60)
    await workers.run("replicate", "run", "large")

    async def is_sent() -> bool:
        return slow.open > 0

    await eventually(is_sent, 60)
    command = [str(part) for part in workers.program.command("replicate", "status", "large", "--watch")]
    watching = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert watching.stdout is not None
    # Until the report has the list, a run is just running.
    async with asyncio.timeout(60):
        while not (line := await watching.stdout.readline()).startswith(b"large: running, 0 of 1 tags"):
            assert line
    cancelled = json.loads(await workers.run("replicate", "cancel", "large", "--json"))
    assert len(cancelled["cancelled"]) == 1

    async def is_let_go() -> bool:
        return slow.open == 0

    # Only the next piece shows the source that nobody reads any more.
    await eventually(is_let_go, 15)
    output, errors = await asyncio.wait_for(watching.communicate(), 30)
    assert watching.returncode == 1
    assert b"large: cancelled" in output
    assert b"replication of 'large' cancelled" in errors
    assert (
        await workers.query(
            "SELECT name FROM tags WHERE name = 'v1' AND repository_id IN "
            "(SELECT id FROM repositories WHERE name = 'smm/api')"
        )
        == []
    )
    for process in workers.processes:
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(30) == 0
