"""Requests that no well-meaning client sends, over a bare socket to the real server."""

import base64
import contextlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from entrepot.oci.digest import Digest
from tests.support.programs import Entrepot
from tests.support.served import files_below

REPOSITORY = "smm/api"


@dataclass
class Raw:
    """A server, and a publisher's login for it."""

    entrepot: Entrepot
    authorization: str

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.entrepot.port), timeout=60)

    def head(self, method: str, path: str, *headers: str) -> bytes:
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.entrepot.host}",
            f"Authorization: {self.authorization}",
            *headers,
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def ask(self, data: bytes, *, breaks_off: bool = False) -> tuple[int, str]:
        """Send bytes; answers status and text. Status 0: the connection was closed without an answer."""
        answer = b""
        with self.open() as connection, contextlib.suppress(OSError):
            connection.sendall(data)
            if breaks_off:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        match = re.match(rb"HTTP/1\.1 (\d+)", answer)
        return (int(match[1]) if match else 0), answer.decode("latin-1")

    def begin_upload(self) -> str:
        status, text = self.ask(
            self.head("POST", f"/v2/{REPOSITORY}/blobs/uploads/", "Content-Length: 0", "Connection: close")
        )
        assert status == 202, text
        location = re.search(r"(?i)^location: (\S+)", text, re.MULTILINE)
        assert location is not None
        return location[1].removeprefix(self.entrepot.url)

    def is_well(self) -> bool:
        return httpx.get(f"{self.entrepot.url}/readyz", timeout=60).status_code == 200


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raw]:
    entrepot = Entrepot(tmp_path_factory.mktemp("raw") / "data")
    entrepot.apply_plans({"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]}})
    credential = entrepot.issue("publisher", "publisher")
    basic = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
    with entrepot.serving():
        yield Raw(entrepot, f"Basic {basic}")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/../etc/passwd/manifests/v1",
        "/v2/smm/../../manifests/v1",
        "/v2/smm/..%2f..%2fetc/manifests/v1",
        "/v2/smm%2fapi/manifests/v1",
        "/v2/smm%2Fapi/tags/list",
        "/v2/SMM/api/tags/list",
        "/v2/smm//api/tags/list",
        "/v2//smm/tags/list",
        "/v2/smm/api/manifests/" + "v" * 129,
        "/v2/" + "s" * 256 + "/manifests/v1",
        "/v2/smm/api/manifests/..",
        "/v2/smm/api/blobs/sha256:../../secret.key",
        "/v2/smm/api/blobs/sha256:..%2f..%2fsecret.key",
        "/v2/smm/api/blobs/md5:d41d8cd98f00b204e9800998ecf8427e",
        "/v2/smm/api/blobs/uploads/../../../secret.key",
        "/v2/smm/api/manifests/v1%00",
        "/v2/smm/api/manifests/%ff%fe",
        "/v2/%2e%2e/manifests/v1",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(raw: Raw, path: str) -> None:
    status, text = raw.ask(raw.head("GET", path, "Connection: close"))
    assert status in {400, 404}, text
    assert '"errors"' in text or '"code"' in text, text
    assert raw.is_well()


def test_a_truncated_upload_leaves_the_session_as_it_was(raw: Raw) -> None:
    path = raw.begin_upload()
    before = files_below(raw.entrepot.data / "blobs")
    status, text = raw.ask(raw.head("PATCH", path, "Content-Length: 100000") + b"x" * 5000, breaks_off=True)
    assert status in {0, 400, 499}, text
    deadline = time.monotonic() + 60
    while files_below(raw.entrepot.data / "blobs") != before:
        assert time.monotonic() < deadline, "what was received stayed"
        time.sleep(0.05)
    status, text = raw.ask(raw.head("GET", path, "Connection: close"))
    assert status == 204
    assert re.search(r"(?i)^range: 0-0\b", text, re.MULTILINE), text


def test_a_truncated_put_makes_no_blob(raw: Raw) -> None:
    content = b"y" * 100_000
    digest = Digest.of(content)
    path = raw.begin_upload()
    separator = "&" if "?" in path else "?"
    head = raw.head("PUT", f"{path}{separator}digest={digest}", f"Content-Length: {len(content)}")
    raw.ask(head + content[:-1], breaks_off=True)
    status, _ = raw.ask(raw.head("HEAD", f"/v2/{REPOSITORY}/blobs/{digest}", "Connection: close"))
    assert status == 404


def test_a_truncated_chunked_body_makes_no_blob(raw: Raw) -> None:
    content = b"z" * 1000
    digest = Digest.of(content)
    head = raw.head("POST", f"/v2/{REPOSITORY}/blobs/uploads/?digest={digest}", "Transfer-Encoding: chunked")
    raw.ask(head + b"3e8\r\n" + content, breaks_off=True)  # without the chunk that ends the body
    status, _ = raw.ask(raw.head("HEAD", f"/v2/{REPOSITORY}/blobs/{digest}", "Connection: close"))
    assert status == 404


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\n" + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(5000)) + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"",
    ],
    ids=[
        "no-path",
        "tls",
        "version",
        "negative",
        "both-lengths",
        "huge-header",
        "many-headers",
        "huge-path",
        "nothing",
    ],
)
def test_what_is_no_http_is_refused_and_harms_nobody(raw: Raw, request_line: bytes) -> None:
    status, _ = raw.ask(request_line, breaks_off=True)
    assert status in {0, 400, 401, 414, 431, 505}
    assert raw.is_well()


def test_clients_that_say_nothing_are_dropped(raw: Raw) -> None:
    connections = [raw.open() for _ in range(50)]
    try:
        for connection in connections:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n")  # and never the end
        assert raw.is_well()
        connections[0].settimeout(90)
        assert b" 200 " not in connections[0].recv(1000)  # closed, with or without a 408
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("place", ["5-10", "4-0", "0-", "-1-4", "0-99999999999999999999999999", "x"])
def test_a_chunk_with_a_bad_place_is_refused(raw: Raw, place: str) -> None:
    path = raw.begin_upload()
    answer, text = raw.ask(
        raw.head("PATCH", path, f"Content-Range: {place}", "Content-Length: 5", "Connection: close") + b"12345"
    )
    assert answer == 416, text
    assert "BLOB_UPLOAD_INVALID" in text


def test_a_request_hidden_in_a_body_is_not_answered(raw: Raw) -> None:
    hidden = raw.head("DELETE", f"/v2/{REPOSITORY}/manifests/v1")
    head = raw.head("POST", f"/v2/{REPOSITORY}/blobs/uploads/", f"Content-Length: {len(hidden)}", "Connection: close")
    _, text = raw.ask(head + hidden)
    assert text.count("HTTP/1.1 ") == 1
