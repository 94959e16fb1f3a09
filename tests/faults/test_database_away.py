"""A database that is gone, or hangs: what is in memory is served for a while, the rest is refused, all by itself."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.programs import Credential, Entrepot, Process
from tests.support.servers import PostgreSql, cluster

PUBLISHER = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}}
# One that hangs is found out when nothing came for 20 seconds; the machine may take as long again.
BOUND_SECONDS = 40
OUTAGE_SECONDS = {"kill": 10, "hang": BOUND_SECONDS + 40}
PATIENCE_SECONDS = 120


class Away:
    """Takes the database away and brings it back."""

    def __init__(self, server: PostgreSql) -> None:
        self._server = server
        self._serving = server.serving(survives_kill=True)
        self._process: Process = self._serving.__enter__()
        self._is_hanging = False

    def kill(self) -> None:
        # Every process at once: one that has a connection may answer a last question after the first of them is dead.
        self._signal(signal.SIGKILL)
        self._process.kill()

    def hang(self) -> None:
        self._is_hanging = True
        self._signal(signal.SIGSTOP)

    def restore(self) -> None:
        if self._is_hanging:
            self._is_hanging = False
            self._signal(signal.SIGCONT)
            return
        self.close()
        self._serving = self._server.serving(survives_kill=True)
        self._process = self._serving.__enter__()

    def _signal(self, number: signal.Signals) -> None:
        """To every process: each connection has one of its own, outside the server's process group."""
        listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listing.splitlines())}
        found = [self._process.popen.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        if self._is_hanging:
            self.restore()
        self._process.kill()
        self._serving.__exit__(None, None, None)


@pytest.fixture
def database() -> Iterator[PostgreSql]:
    with cluster() as server:
        yield server


@pytest.fixture
def away(database: PostgreSql) -> Iterator[Away]:
    away = Away(database)
    yield away
    away.close()


@pytest.fixture
def entrepot(
    how: str,
    away: Away,
    database: PostgreSql,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Entrepot:
    monkeypatch.setenv("ENTREPOT_DATABASE_URL", database.create())
    monkeypatch.setenv("ENTREPOT_DATABASE__OUTAGE_SECONDS", str(OUTAGE_SECONDS[how]))
    program = Entrepot(tmp_path_factory.mktemp("away") / "data")
    program.run("migrate")
    program.apply_plans(PUBLISHER)
    return program


@pytest.fixture
def publisher(entrepot: Entrepot) -> Credential:
    return entrepot.issue("pipeline", "publisher")


def push(http: httpx.Client, image: Image, tag: str) -> None:
    for blob in (image.config, image.layer):
        answer = http.post("/v2/smm/api/blobs/uploads/", params={"digest": str(Digest.of(blob))}, content=blob)
        assert answer.status_code == 201, answer.text
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    assert http.put(f"/v2/smm/api/manifests/{tag}", content=image.manifest, headers=headers).status_code == 201


def verify_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert "database" in answer.json()["errors"][0]["message"]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_what_is_in_memory_is_served_for_a_while_and_the_rest_is_refused(
    entrepot: Entrepot, publisher: Credential, away: Away, how: str
) -> None:
    api_key = json.loads(entrepot.run("api-key", "create", "platform", "--scope", "plans:read", "--json"))["secret"]
    image, other = Image(), Image()
    path = "/v2/smm/api/manifests/v1"
    with entrepot.serving("--no-jobs"), httpx.Client(base_url=entrepot.url, timeout=PATIENCE_SECONDS) as http:
        http.auth = (publisher.username, publisher.secret)
        push(http, image, "v1")
        push(http, other, "v2")
        scope = {"scope": "repository:smm/api:pull,push"}
        token = http.get("/token", params=scope).json()["token"]
        http.auth = None  # type: ignore[assignment]
        http.headers["Authorization"] = f"Bearer {token}"
        # Until all notices of what was just pushed are heard, which make it forget what it read before.
        time.sleep(1.5)
        assert http.get(path).content == image.manifest
        assert http.get(f"/v2/smm/api/blobs/{Digest.of(image.layer)}").content == image.layer

        getattr(away, how)()
        gone_at = time.monotonic()
        verify_refused(http.get("/v2/smm/api/manifests/v2"))
        assert time.monotonic() - gone_at < BOUND_SECONDS
        # A process that was about to ask, and has heard nothing for a while, must find out first that nobody answers.
        wait_until(lambda: http.get(path).status_code == 200)
        for _ in range(20):
            answer = http.get(path)
            assert (answer.status_code, answer.content) == (200, image.manifest), answer.text
            layer = http.get(f"/v2/smm/api/blobs/{Digest.of(image.layer)}")
            assert layer.content == image.layer
        if how == "kill":  # each of these takes its time where nobody answers
            verify_refused(http.post("/v2/smm/api/blobs/uploads/"))
            assert http.get("/readyz").status_code == 503
            assert http.get("/livez").status_code == 200
            wait_until(lambda: http.get(path).status_code == 503)
            assert time.monotonic() - gone_at > OUTAGE_SECONDS[how] / 2
            # Nobody is taken for somebody else, and nobody is told that nothing is here.
            login = (publisher.username, publisher.secret)
            for asked in (path, "/v2/", "/v2/_catalog", "/v2/smm/api/tags/list", "/v2/smm/none/manifests/v1"):
                verify_refused(http.get(asked))
                verify_refused(http.get(asked, auth=login))
            verify_refused(http.get("/token", params=scope, auth=login))
            answer = http.get("/api/v1/plans", headers={"Authorization": f"Bearer {api_key}"})
            assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)

        away.restore()
        wait_until(lambda: http.get("/v2/smm/api/manifests/v2").content == other.manifest)
        assert http.get(path).content == image.manifest
        push(http, Image(), "v3")
