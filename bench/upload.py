"""Pushing blobs with as little work as a client can do, so that the server is what is measured."""

import hashlib
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from bench.servers import REPOSITORY, Server

_PIECE = 1024**2
_OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Blob:
    """A file and its digest."""

    path: Path
    digest: str

    @classmethod
    def make(cls, path: Path, size: int) -> "Blob":
        """A new file of random bytes."""
        piece = os.urandom(_PIECE)
        with path.open("wb") as file:
            for number in range(0, size, _PIECE):
                file.write((number.to_bytes(8) + piece[8:])[: size - number])
        with path.open("rb") as file:
            return cls(path, f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.path.stat().st_size


class Connection:
    """One connection to a server; sends files with sendfile."""

    def __init__(self, server: Server) -> None:
        self._server = server
        address = urlsplit(server.url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=300)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers: BinaryIO = self._socket.makefile("rb")

    def call(self, method: str, target: str, body: bytes | Path = b"", headers: dict[str, str] | None = None) -> str:
        """One request that must succeed; answers its Location, as a path."""
        length = body.stat().st_size if isinstance(body, Path) else len(body)
        lines = {"Host": urlsplit(self._server.url).netloc, "Authorization": self._server.authorization}
        lines |= {"Content-Length": str(length), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._socket.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
        if isinstance(body, Path):
            with body.open("rb") as file:
                self._socket.sendfile(file)
        elif body:
            self._socket.sendall(body)
        return self._read_answer(f"{method} {target}")

    def _read_answer(self, what: str) -> str:
        status = self._answers.readline().decode()
        headers = {}
        while line := self._answers.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self._answers.read(int(headers.get("content-length", 0)))
        if status.split()[1] not in {"200", "201", "202", "204"}:
            raise SystemExit(f"{self._server.name}: {what}: {status} {body[:500]!r}")
        location = urlsplit(headers.get("location", ""))
        return f"{location.path}?{location.query}" if location.query else location.path

    def begin_download(self, target: str) -> None:
        """Ask for a blob, whose bytes are then to be received."""
        lines = f"Host: {urlsplit(self._server.url).netloc}\r\nAuthorization: {self._server.authorization}"
        self._socket.sendall(f"GET {target} HTTP/1.1\r\n{lines}\r\nConnection: close\r\n\r\n".encode())

    def receive_into(self, buffer: bytearray) -> int:
        """Some more bytes, 0 at the end."""
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def push_blob(server: Server, blob: Blob, repository: str = REPOSITORY) -> float:
    """Push a blob as docker does, POST, PATCH and PUT; answers the seconds that it took."""
    connection = Connection(server)
    begun = time.perf_counter()
    location = connection.call("POST", f"/v2/{repository}/blobs/uploads/")
    location = connection.call("PATCH", location, blob.path, _OCTETS)
    separator = "&" if "?" in location else "?"
    connection.call("PUT", f"{location}{separator}digest={blob.digest}", b"", _OCTETS)
    seconds = time.perf_counter() - begun
    connection.close()
    return seconds


def push_blobs(server: Server, blobs: Sequence[Blob], repository: str = REPOSITORY) -> float:
    """Push blobs at the same time, each on a connection of its own; answers the seconds until the last is there."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(blobs)) as pool:
        list(pool.map(lambda blob: push_blob(server, blob, repository), blobs))
    return time.perf_counter() - begun
