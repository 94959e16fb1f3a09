"""Clients that send next to nothing, or never read: nobody else waits for them, and in time they are given up."""

import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from entrepot.oci.digest import Digest
from tests.support.programs import Entrepot, Process

PUBLISHER = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}}
STALL_SECONDS = 4
SLOW_CLIENTS = 100
# More connections than many servers take at once.
CROWD = 1200
# What others may wait at most; it would be the stall itself if they waited for the slow ones.
PATIENCE_SECONDS = 3
# What a busy machine may take to give somebody up.
GIVEN_UP_SECONDS = 60
# More than the buffers on the way hold.
BLOB = os.urandom(1_000_000) * 64
BLOB_PATH = f"/v2/smm/api/blobs/{Digest.of(BLOB)}"


@dataclass
class Shop:
    """A served program, its one server process, and a publisher's login."""

    entrepot: Entrepot
    process: Process
    authorization: str

    def connect(self, stack: ExitStack, lines: str) -> socket.socket:
        """A client that sent this much of a request, and has next to no room for an answer."""
        connection = stack.enter_context(closing(socket.socket()))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(GIVEN_UP_SECONDS)
        connection.connect(("127.0.0.1", self.entrepot.port))
        connection.sendall(lines.replace("\n", "\r\n").encode())
        return connection

    def request(self, line: str, headers: str = "") -> str:
        """The head of a request."""
        return f"{line} HTTP/1.1\nHost: x\nAuthorization: {self.authorization}\n{headers}\n"

    def open_files(self) -> int:
        """How many files and connections the server process has open."""
        listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listing.splitlines()]
        (worker,) = [pid for pid, parent in pairs if int(parent) == self.process.popen.pid]
        return len(list(Path(f"/proc/{worker}/fd").iterdir()))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    entrepot = Entrepot(tmp_path_factory.mktemp("slow") / "data")
    entrepot.apply_plans(PUBLISHER)
    credential = entrepot.issue("pipeline", "publisher")
    login = httpx.BasicAuth(credential.username, credential.secret)
    authorization = next(login.auth_flow(httpx.Request("GET", "http://x"))).headers["Authorization"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ENTREPOT_LIMITS__STALL_SECONDS", str(STALL_SECONDS))
        with entrepot.serving("--no-jobs") as process:
            yield Shop(entrepot, process, authorization)


@pytest.fixture(scope="module")
def http(shop: Shop) -> Iterator[httpx.Client]:
    """An ordinary client, which connects anew for every request."""
    headers, limits = {"Authorization": shop.authorization}, httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=shop.entrepot.url, headers=headers, limits=limits, timeout=60) as client:
        digest = str(Digest.of(BLOB))
        answer = client.post("/v2/smm/api/blobs/uploads/", params={"digest": digest}, content=BLOB)
        assert answer.status_code == 201
        yield client


@pytest.fixture
def crowd() -> Iterator[int]:
    """How many clients there may be at once, which takes as many files here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, CROWD + 500)), hard))
    yield CROWD
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pull(http: httpx.Client) -> None:
    assert http.get(BLOB_PATH, headers={"Range": "bytes=0-99"}).content == BLOB[:100]
    assert http.get("/v2/smm/api/tags/list").status_code == 200


def longest_wait(http: httpx.Client, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> float:
    """The longest that an ordinary pull took in the time."""
    ends_at, longest = time.monotonic() + seconds, 0.0
    while not longest or time.monotonic() < ends_at:
        meanwhile()
        begun = time.monotonic()
        pull(http)
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.05)
    return longest


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GIVEN_UP_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_uploads_of_a_byte_a_second_hold_up_nobody_and_are_given_up(shop: Shop, http: httpx.Client) -> None:
    location = http.post("/v2/smm/api/blobs/uploads/").headers["location"]
    head = shop.request(f"PATCH {location}", "Content-Length: 1000000\n")
    with ExitStack() as stack:
        slow = [shop.connect(stack, head) for _ in range(SLOW_CLIENTS)]
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


def test_clients_that_never_read_hold_up_nobody_and_are_given_up(shop: Shop, http: httpx.Client, crowd: int) -> None:
    """Most of them whole blobs, which the server sends by itself."""
    before = shop.open_files()
    with ExitStack() as stack:
        for number in range(crowd):
            shop.connect(stack, shop.request(f"GET {BLOB_PATH}", "Range: bytes=1-\n" if number % 50 == 0 else ""))
        pull(http)  # which may wait until the crowd has come in
        assert longest_wait(http, STALL_SECONDS) < PATIENCE_SECONDS
        wait_until(lambda: shop.open_files() < before + 20)


@pytest.mark.parametrize("lines", ["", "GET /livez HTTP/1.1\nHost: x\n\n", "GET /livez HTTP/1.1\n"])
def test_clients_that_only_keep_connections_hold_up_nobody(
    shop: Shop, http: httpx.Client, crowd: int, lines: str
) -> None:
    before = shop.open_files()
    with ExitStack() as stack:
        for _ in range(crowd):
            shop.connect(stack, lines)
        wait_until(lambda: shop.open_files() > before + crowd // 2)
        # They are dropped after 15 seconds, for which others would wait.
        assert longest_wait(http, 0) < 3 * PATIENCE_SECONDS


def test_a_part_that_is_never_read_is_given_up(shop: Shop, http: httpx.Client) -> None:
    log = shop.process.log
    before = log.read_text().count("answer_broken_off")
    with ExitStack() as stack:
        connection = shop.connect(stack, shop.request(f"GET {BLOB_PATH}", "Range: bytes=1-\n"))
        wait_until(lambda: log.read_text().count("answer_broken_off") > before)
        received = 0
        while piece := connection.recv(1_000_000):
            received += len(piece)
    # What was on its way arrives; then the connection ends, without the rest.
    assert received < len(BLOB)
