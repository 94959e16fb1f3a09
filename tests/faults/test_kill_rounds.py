"""kill -9 at a random moment of uploads, manifests, deletions and garbage collection, over and over.

ROUNDS says how many times, ROUNDS_SEED repeats a run. Each writer has a repository of its own, and knows after every
answer what must be there; what it was about to change when no answer came may have happened or not.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.programs import Credential, Entrepot, Process, running, wait_for

ROUNDS = int(os.environ.get("ROUNDS", "8"))
SEED = int(os.environ.get("ROUNDS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
WRITERS = 4
# Longer than any push here takes, shorter than a few rounds.
GRACE_SECONDS = 4
# What is left of a hold at least: whoever is slower, on a machine that is stuck, may be told that something is gone.
HOLD_SECONDS = GRACE_SECONDS * 0.7
ENVIRONMENT = {"ENTREPOT_GC__GRACE_SECONDS": str(GRACE_SECONDS), "ENTREPOT_GC__UNTAGGED": "true"}
PLANS = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]}}
TAGS = ("v1", "v2", "v3")
Outcome = bytes | None
"""What a tag names: a manifest's bytes, or nothing."""


@dataclass
class Writer:
    """One client, its repository, and what it knows of it."""

    http: httpx.Client
    repository: str
    random: random.Random
    known: dict[str, Outcome] = field(default_factory=dict)
    # What a tag may name beside what is known, for want of an answer.
    unanswered: dict[str, Outcome] = field(default_factory=dict)
    answered: int = 0
    problem: str = ""
    begun_at: float = 0.0

    def write_until(self, stop: threading.Event) -> None:
        """Change things until the server is gone, or the time is over."""
        try:
            while not stop.is_set() and not self.unanswered:
                self.begun_at = time.monotonic()
                self._write()
        except httpx.TransportError:
            return
        except AssertionError as error:
            if time.monotonic() - self.begun_at < HOLD_SECONDS:
                self.problem = f"{self.repository}: {error}"

    def _write(self) -> None:
        tag = self.random.choice(TAGS)
        before = self.known.get(tag)
        kind = self.random.random()
        if before is not None and kind < 0.2:
            self._change({tag: None}, "DELETE", f"manifests/{tag}", 202)
        elif before is not None and kind < 0.3:
            gone = {name: None for name, content in self.known.items() if content == before}
            self._change(gone, "DELETE", f"manifests/{Digest.of(before)}", 202)
        else:
            # Of a few sizes and contents, so that writers share some of them.
            size = self.random.choice((10, 5_000, 300_000))
            image = Image(b"{}", self.random.randrange(6).to_bytes(4) * (size // 4))
            for blob in (image.config, image.layer):
                self._push(blob)
            headers = {"Content-Type": media_types.OCI_MANIFEST}
            self._change({tag: image.manifest}, "PUT", f"manifests/{tag}", 201, content=image.manifest, headers=headers)
            if self.random.random() < 0.2:
                answer = self.http.delete(f"/v2/{self.repository}/blobs/{Digest.of(image.layer)}")
                assert answer.status_code == 409, f"a blob that is needed was deleted: {answer.status_code}"

    def _change(self, changes: dict[str, Outcome], method: str, path: str, status: int, **body: object) -> None:
        self.unanswered = changes
        answer = self.http.request(method, f"/v2/{self.repository}/{path}", **body)  # type: ignore[arg-type]
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        self.known |= changes
        self.unanswered = {}
        self.answered += 1

    def _push(self, blob: bytes) -> None:
        digest = str(Digest.of(blob))
        if self.http.head(f"/v2/{self.repository}/blobs/{digest}").status_code == 200:
            return
        uploads = f"/v2/{self.repository}/blobs/uploads/"
        kind = self.random.randrange(4)
        if kind == 0:
            answer = self.http.post(uploads, params={"digest": digest}, content=blob)
        elif kind == 1 and self.http.post(uploads, params={"mount": digest}).status_code == 201:
            return
        else:
            location = self.http.post(uploads).headers["location"]
            cuts = sorted(self.random.randrange(len(blob) + 1) for _ in range(kind))
            for start, end in zip([0, *cuts], [*cuts, len(blob)], strict=True):
                answer = self.http.patch(location, content=blob[start:end])
                assert answer.status_code == 202, answer.text
                location = answer.headers["location"]
            answer = self.http.put(location, params={"digest": digest})
        assert answer.status_code == 201, answer.text

    def verify(self) -> None:
        """Everything that was answered is there, whole; what was not answered has happened or not."""
        assert not self.problem, self.problem
        for tag in TAGS:
            answer = self.http.get(f"/v2/{self.repository}/manifests/{tag}")
            found = answer.content if answer.status_code == 200 else None
            possible = [self.known.get(tag), *([self.unanswered[tag]] if tag in self.unanswered else [])]
            assert found in possible, f"{self.repository}:{tag} is {answer.status_code} {answer.content[:200]!r}"
            if found is not None:
                self._verify_whole(answer.json())
            self.known[tag] = found
        self.unanswered = {}

    def _verify_whole(self, manifest: dict[str, object]) -> None:
        config, layers = manifest["config"], manifest["layers"]
        for blob in [config, *layers]:  # type: ignore[misc]
            answer = self.http.get(f"/v2/{self.repository}/blobs/{blob['digest']}")  # type: ignore[index]
            assert answer.status_code == 200, f"{self.repository} lacks {blob}: {answer.text}"
            assert str(Digest.of(answer.content)) == blob["digest"]  # type: ignore[index]


@pytest.fixture
def entrepot(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Entrepot:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    program = Entrepot(tmp_path_factory.mktemp("rounds") / "data")
    program.apply_plans(PLANS)
    return program


@pytest.fixture
def writers(entrepot: Entrepot) -> Iterator[list[Writer]]:
    credential = entrepot.issue("pipeline", "publisher")
    with contextlib.ExitStack() as stack:
        yield [
            Writer(stack.enter_context(client(entrepot, credential)), f"smm/app{number}", random.Random(SEED + number))
            for number in range(WRITERS)
        ]


def client(entrepot: Entrepot, credential: Credential) -> httpx.Client:
    return httpx.Client(base_url=entrepot.url, auth=(credential.username, credential.secret), timeout=60)


def workers_of(server: Process) -> list[int]:
    """The processes that serve; the supervisor's others carry out jobs."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [int(pid) for pid, parent, state in rows if int(parent) == server.popen.pid and not state.startswith("Z")]


@contextlib.contextmanager
def collecting(entrepot: Entrepot, log: Path) -> Iterator[Process]:
    """Garbage collection in a process of its own, killed at the end if it still runs."""
    with running(entrepot.command("gc"), log, patience_seconds=0) as process:
        yield process


def test_whatever_is_killed_what_was_answered_is_there(
    entrepot: Entrepot, writers: list[Writer], tmp_path: Path
) -> None:
    print(f"ROUNDS_SEED={SEED}")  # noqa: T201 - shown when the test fails
    dice = random.Random(SEED)
    for number in range(ROUNDS):
        with entrepot.serving("--workers", "2", "--no-jobs") as server:
            for writer in writers:
                writer.verify()
            stop = threading.Event()
            threads = [threading.Thread(target=writer.write_until, args=(stop,)) for writer in writers]
            with collecting(entrepot, tmp_path / "gc.log"):
                for thread in threads:
                    thread.start()
                time.sleep(dice.uniform(0.05, 1.5))
                if number % 2:
                    os.kill(dice.choice(workers_of(server)), signal.SIGKILL)
                    stop.set()
                else:
                    server.kill()
            for thread in threads:
                thread.join()
            if number % 2:
                wait_for(f"{entrepot.url}/readyz", server)
                for writer in writers:
                    writer.verify()
        entrepot.recorded_blobs()  # every file is what the database says
        age_collection(entrepot)
    assert all(writer.answered for writer in writers)
    with entrepot.serving():
        for writer in writers:
            writer.verify()
    verify_collected(entrepot)


def age_collection(entrepot: Entrepot) -> None:
    """Let the minute pass after which another process takes over from a killed collector."""
    with contextlib.closing(sqlite3.connect(entrepot.data / "entrepot.db")) as connection, connection:
        connection.execute("UPDATE gc_runs SET seen_at = '2000-01-01 00:00:00.000000'")


def verify_collected(entrepot: Entrepot) -> None:
    """After a collection there is nothing in storage but what the database records, and another finds nothing."""
    time.sleep(GRACE_SECONDS + 0.1)
    entrepot.run("gc")  # may only finish what a killed one had begun
    entrepot.run("gc")
    kept = {path for path in (entrepot.data / "blobs").rglob("*") if path.is_file()}
    assert kept == set(entrepot.recorded_blobs().values())
    assert '"freed_bytes": 0' in entrepot.run("gc", "--json")
