"""Limits over the real processes of a server, whatever becomes of them."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.programs import Credential, Entrepot, Process
from tests.support.servers import Redis
from tests.support.servers import redis as serve_redis

ALLOWED = 30
PLANS = {
    "publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]},
    "free": {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}], "limits": {"pulls_per_day": ALLOWED}},
}


@pytest.fixture(params=["database", "redis"])
def redis(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis | None]:
    """A Redis for the server, where it has one."""
    if request.param == "database":
        yield None
        return
    with serve_redis(tmp_path) as server:
        monkeypatch.setenv("ENTREPOT_REDIS_URL", server.url)
        yield server


def push(entrepot: Entrepot, credential: Credential, tags: int) -> None:
    auth = (credential.username, credential.secret)
    with httpx.Client(base_url=entrepot.url, auth=auth, timeout=30) as http:
        for tag in range(tags):
            image = Image(layer=b"the same", config=b'{"id": %d}' % tag)
            for blob in (image.config, image.layer):
                http.post("/v2/smm/api/blobs/uploads/", params={"digest": str(Digest.of(blob))}, content=blob)
            headers = {"Content-Type": media_types.OCI_MANIFEST}
            answer = http.put(f"/v2/smm/api/manifests/v{tag}", content=image.manifest, headers=headers)
            assert answer.status_code == 201, answer.text


def pull(entrepot: Entrepot, credential: Credential, tag: int) -> int:
    """Pull over a connection of its own, which may lead to any of the processes."""
    auth = (credential.username, credential.secret)
    with httpx.Client(base_url=entrepot.url, auth=auth, timeout=30) as http:
        return http.get(f"/v2/smm/api/manifests/v{tag}").status_code


def kill_workers(process: Process) -> None:
    children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def test_a_limit_holds_over_workers_and_outlives_them(tmp_path: Path, redis: Redis | None) -> None:
    entrepot = Entrepot(tmp_path / "data")
    entrepot.apply_plans(PLANS)
    publisher, customer = entrepot.issue("pipeline", "publisher"), entrepot.issue("customer", "free")
    with entrepot.serving("--workers", "2", "--no-jobs") as process, ThreadPoolExecutor(8) as threads:
        push(entrepot, publisher, ALLOWED + 15)
        found = list(threads.map(lambda tag: pull(entrepot, customer, tag), range(ALLOWED + 10)))
        assert sorted(found) == [200] * ALLOWED + [429] * 10
        if redis is None:
            kill_workers(process)  # the database knows
        else:
            # Each worker is sure to have heard by now.
            assert set(threads.map(lambda tag: pull(entrepot, customer, tag), [ALLOWED + 10] * 40)) == {429}
            redis.process.kill()
        found = [pull_patiently(entrepot, customer, ALLOWED + 10 + number) for number in range(5)]
        assert found == [429] * 5


def pull_patiently(entrepot: Entrepot, credential: Credential, tag: int) -> int:
    """Pull, as soon as there is somebody to pull from."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return pull(entrepot, credential, tag)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
