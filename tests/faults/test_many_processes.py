"""Several servers on one database, bucket and Redis: they are as one, whatever becomes of Redis."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.programs import Credential, Entrepot
from tests.support.servers import ObjectStore, PostgreSql, Redis
from tests.support.servers import redis as serve_redis

PLANS = {
    "publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]},
    "free": {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}]},
}
LAG_SECONDS = 1
# What a busy machine may take to show it.
PATIENCE_SECONDS = 60
PATH = "/v2/smm/api/manifests/v1"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with serve_redis(tmp_path) as server:
        yield server


@pytest.fixture
def servers(
    postgresql_server: PostgreSql,
    object_store: ObjectStore,
    redis: Redis,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[Entrepot]]:
    monkeypatch.setenv("ENTREPOT_SECRET_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("ENTREPOT_DATABASE_URL", postgresql_server.create_migrated())
    monkeypatch.setenv("ENTREPOT_STORAGE_URL", object_store.url())
    monkeypatch.setenv("ENTREPOT_STORAGE__ENDPOINT", object_store.endpoint)
    monkeypatch.setenv("ENTREPOT_REDIS_URL", redis.url)
    # Tokens are made out to one service, by whatever address it is reached.
    monkeypatch.setenv("ENTREPOT_PUBLIC_URL", "http://registry.example.com")
    folder = tmp_path_factory.mktemp("many")
    programs = [Entrepot(folder / name) for name in ("one", "two", "three")]
    programs[0].apply_plans(PLANS)
    with ExitStack() as stack:
        for program in programs:
            stack.enter_context(program.serving("--no-jobs"))
        yield programs


def client(entrepot: Entrepot, credential: Credential) -> httpx.Client:
    auth = (credential.username, credential.secret)
    return httpx.Client(base_url=entrepot.url, auth=auth, timeout=PATIENCE_SECONDS, follow_redirects=True)


def push(http: httpx.Client, image: Image, tag: str) -> None:
    for blob in (image.config, image.layer):
        answer = http.post("/v2/smm/api/blobs/uploads/", params={"digest": str(Digest.of(blob))}, content=blob)
        assert answer.status_code == 201, answer.text
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    assert http.put(f"/v2/smm/api/manifests/{tag}", content=image.manifest, headers=headers).status_code == 201


def path_of(location: str) -> str:
    return location.removeprefix("http://registry.example.com")


@dataclass(frozen=True)
class Refusal:
    """Something else than the image: when it was asked for, and when it came."""

    begun_at: float
    ended_at: float
    status: int


class Customer:
    """Pulls from one server all the time, and remembers what came.

    When a pull began is what counts: how long an answer takes says nothing of what the server knew.
    """

    def __init__(self, entrepot: Entrepot, credential: Credential, image: Image) -> None:
        self.refused: list[Refusal] = []
        self.pulls = 0
        self.last_pull_begun_at = 0.0
        self._http = client(entrepot, credential)
        self._image = image
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._http:
            while not self._stopping.wait(0.005):
                begun_at = time.monotonic()
                answer = self._http.get(PATH)
                if answer.status_code == 200 and answer.content == self._image.manifest:
                    self.last_pull_begun_at = begun_at
                    self.pulls += 1
                else:
                    self.refused.append(Refusal(begun_at, time.monotonic(), answer.status_code))

    def is_refused_since(self, moment: float) -> bool:
        """Whether something that was asked for after `moment` did not come."""
        return bool(self.refused) and self.refused[-1].begun_at > moment

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def verify_all_refused(customers: list[Customer], changed_at: float) -> None:
    """Whatever was asked for later than the lag after a change is refused, and goes on to be."""
    late = changed_at + LAG_SECONDS
    wait_until(lambda: all(customer.is_refused_since(late) for customer in customers))
    lags = [customer.last_pull_begun_at - changed_at for customer in customers]
    assert max(lags) < LAG_SECONDS, f"pulled {lags} seconds after the change"


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_upload_wanders_between_servers(servers: list[Entrepot]) -> None:
    credential = servers[0].issue("pipeline", "publisher")
    pieces = [os.urandom(300_000) for _ in range(6)]
    whole = b"".join(pieces)
    with ExitStack() as stack:
        clients = [stack.enter_context(client(server, credential)) for server in servers]
        location = path_of(clients[0].post("/v2/smm/api/blobs/uploads/").headers["location"])
        received = 0
        for number, piece in enumerate(pieces):
            place = {"Content-Range": f"{received}-{received + len(piece) - 1}"}
            answer = clients[number % 3].patch(location, content=piece, headers=place)
            assert answer.status_code == 202, answer.text
            received += len(piece)
            location = path_of(answer.headers["location"])
            assert clients[(number + 1) % 3].get(location).headers["range"] == f"0-{received - 1}"
        digest = str(Digest.of(whole))
        assert clients[2].put(location, params={"digest": digest}).status_code == 201
        for http in clients:
            assert http.get(f"/v2/smm/api/blobs/{digest}").content == whole


@pytest.mark.parametrize("redis_is", ["there", "killed", "killed and back"])
def test_what_changes_at_one_changes_at_all(servers: list[Entrepot], redis: Redis, redis_is: str) -> None:
    """Under load, and nobody is refused who should not be."""
    publisher = servers[0].issue("pipeline", "publisher")
    image = Image()
    with ExitStack() as stack:
        writer = stack.enter_context(client(servers[0], publisher))
        push(writer, image, "v1")
        faithful, leaving = servers[0].issue("faithful", "free"), servers[0].issue("leaving", "free")
        groups = {
            name: [Customer(server, credential, image) for server in servers]
            for name, credential in (("faithful", faithful), ("leaving", leaving))
        }
        everybody = [customer for group in groups.values() for customer in group]
        try:
            wait_until(lambda: all(customer.pulls > 20 for customer in everybody))
            if redis_is != "there":
                redis.process.kill()
                time.sleep(1)
            if redis_is == "killed and back":
                redis.restart()
                time.sleep(1)
            assert not any(customer.refused for customer in everybody)

            servers[0].run("account", "suspend", leaving.account)
            verify_all_refused(groups["leaving"], time.monotonic())
            pulls = [customer.pulls for customer in groups["leaving"]]
            assert not any(customer.refused for customer in groups["faithful"])

            deleted_at = time.monotonic()
            assert writer.delete(PATH).status_code == 202
            verify_all_refused(groups["faithful"], time.monotonic())
            assert [customer.pulls for customer in groups["leaving"]] == pulls
        finally:
            for customer in everybody:
                customer.stop()
        assert {refusal.status for customer in groups["leaving"] for refusal in customer.refused} == {401}
        assert {refusal.status for customer in groups["faithful"] for refusal in customer.refused} == {404}
        assert all(refusal.ended_at > deleted_at for customer in groups["faithful"] for refusal in customer.refused)
