"""Clients that send next to nothing, or never read: nobody else waits for them, and in time they are given up."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from entrepot.oci.digest import Digest
from tests.support.programs import Entrepot

PUBLISHER = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}}
STALL_SECONDS = 2
SLOW_CLIENTS = 100
# What others may wait at most; it would be the stall itself if they waited for the slow ones.
PATIENCE_SECONDS = 1
# More than the buffers on the way hold.
BLOB = os.urandom(1_000_000) * 64
BLOB_PATH = f"/v2/smm/api/blobs/{Digest.of(BLOB)}"


@pytest.fixture
def entrepot(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entrepot]:
    monkeypatch.setenv("ENTREPOT_LIMITS__STALL_SECONDS", str(STALL_SECONDS))
    program = Entrepot(tmp_path_factory.mktemp("slow") / "data")
    program.apply_plans(PUBLISHER)
    with program.serving("--no-jobs"):
        yield program


@pytest.fixture
def http(entrepot: Entrepot) -> Iterator[httpx.Client]:
    credential = entrepot.issue("pipeline", "publisher")
    with httpx.Client(base_url=entrepot.url, auth=(credential.username, credential.secret), timeout=20) as client:
        digest = str(Digest.of(BLOB))
        answer = client.post("/v2/smm/api/blobs/uploads/", params={"digest": digest}, content=BLOB)
        assert answer.status_code == 201
        yield client


def authorization(http: httpx.Client) -> str:
    request = next(http.auth.auth_flow(httpx.Request("GET", "http://x")))  # type: ignore[union-attr]
    return request.headers["Authorization"]


def connect(entrepot: Entrepot, stack: ExitStack, lines: str) -> socket.socket:
    """A client that sent the beginning of a request."""
    connection = stack.enter_context(closing(socket.create_connection(("127.0.0.1", entrepot.port), timeout=20)))
    connection.sendall(lines.replace("\n", "\r\n").encode())
    return connection


def longest_wait(http: httpx.Client, seconds: float, meanwhile: Callable[[], object]) -> float:
    """The longest that an ordinary pull took in the time."""
    ends_at, longest = time.monotonic() + seconds, 0.0
    while time.monotonic() < ends_at:
        meanwhile()
        begun = time.monotonic()
        assert http.get(BLOB_PATH, headers={"Range": "bytes=0-99"}).content == BLOB[:100]
        assert http.get("/v2/smm/api/tags/list").status_code in {200, 404}
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.05)
    return longest


def test_uploads_of_a_byte_a_second_hold_up_nobody_and_are_given_up(entrepot: Entrepot, http: httpx.Client) -> None:
    location = http.post("/v2/smm/api/blobs/uploads/").headers["location"]
    head = f"PATCH {location} HTTP/1.1\nHost: x\nAuthorization: {authorization(http)}\nContent-Length: 1000000\n\n"
    with ExitStack() as stack:
        slow = [connect(entrepot, stack, head) for _ in range(SLOW_CLIENTS)]
        alive = list(slow)

        def drip() -> None:
            for connection in list(alive):
                try:
                    connection.sendall(b"x")
                except OSError:
                    alive.remove(connection)

        assert longest_wait(http, STALL_SECONDS * 2, drip) < PATIENCE_SECONDS
        for connection in slow:
            assert b" 400 " in connection.recv(1000)
    # Nothing of it was kept.
    assert http.get(location).headers["range"] == "0-0"


def test_clients_that_never_read_hold_up_nobody(entrepot: Entrepot, http: httpx.Client) -> None:
    headers = {"whole": "", "part": "Range: bytes=1-\n"}
    with ExitStack() as stack:
        for extra in headers.values():
            lines = f"GET {BLOB_PATH} HTTP/1.1\nHost: x\nAuthorization: {authorization(http)}\n{extra}\n"
            for _ in range(SLOW_CLIENTS // 2):
                connect(entrepot, stack, lines)
        assert longest_wait(http, STALL_SECONDS * 2, lambda: None) < PATIENCE_SECONDS


def test_a_part_that_is_never_read_is_given_up(entrepot: Entrepot, http: httpx.Client) -> None:
    lines = f"GET {BLOB_PATH} HTTP/1.1\nHost: x\nAuthorization: {authorization(http)}\nRange: bytes=1-\n\n"
    with ExitStack() as stack:
        connection = connect(entrepot, stack, lines)
        time.sleep(STALL_SECONDS * 3)
        received = 0
        while piece := connection.recv(1_000_000):
            received += len(piece)
    # What was on its way arrives; then the connection ends, without the rest.
    assert received < len(BLOB)
