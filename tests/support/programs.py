"""Programs that tests run: finding them, starting servers, stopping them whatever happens."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / ".tools" / "bin"
START_SECONDS = 90
_given_ports: set[int] = set()


def require(name: str) -> str:
    """The path of a program; the test is skipped where it is missing, except in CI, where that is a failure."""
    path = f"{TOOLS}:/usr/bin:/usr/sbin:{os.environ['PATH']}"
    found = shutil.which(name, path=path)
    if found is None:
        message = f"{name} is not installed; run: make tools"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """A port that nobody listens on, and that was not given to anybody else, who may listen only later."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


def run(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 300,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; never raises for its exit code."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=folder,
        check=False,
    )


def run_well(*command: str | Path, **options: Any) -> str:
    """Run a program that must succeed; answers its standard output."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Measured:
    """What a run of `entrepot` printed, its seconds of processor time, and the most memory that it had, in bytes."""

    output: str
    seconds: float
    peak_bytes: int


def run_measured(folder: Path, *arguments: str | Path, **options: Any) -> Measured:
    """Run `entrepot` with these arguments, which must succeed; `folder` takes a file.

    By its own account: what wait4 tells of a process that was forked from a large one says nothing.
    """
    report = folder / "measured"
    script = (
        "import atexit, os, pathlib, runpy\n"
        f"report = pathlib.Path({str(report)!r})\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "atexit.register(lambda: report.write_text(f'{sum(os.times()[:2])}\\n{status.read_text()}'))\n"
        "runpy.run_module('entrepot', run_name='__main__')\n"
    )
    output = run_well(sys.executable, "-c", script, *arguments, **options)
    text = report.read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert peak is not None
    return Measured(output, float(text.splitlines()[0]), int(peak[1]) * 1024)


@dataclass
class Process:
    """A server in the background."""

    popen: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it and all its children with -9, as the kernel would when memory is short."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    patience_seconds: float = 15,
) -> Iterator[Process]:
    """A server, in a process group of its own, which is gone at the end: by itself, or killed when it takes long."""
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [str(part) for part in command],
            env=environment or dict(os.environ),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process = Process(popen, log)
    try:
        yield process
    finally:
        popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(patience_seconds)
        process.kill()


def wait_for(url: str, process: Process) -> None:
    """Return once `url` answers anything at all, with whatever certificate."""
    anybody = ssl._create_unverified_context() if url.startswith("https") else None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.popen.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5, context=anybody):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"{url} does not answer:\n{process.log.read_text(errors='replace')[-3000:]}")


@dataclass
class Credential:
    """What a customer got."""

    account: str
    id: str
    username: str
    secret: str


class Entrepot:
    """The program over one data folder: its commands, and its server."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """A command line on this data."""
        return [sys.executable, "-m", "entrepot", "--data", self.data, *arguments]

    def run(self, *arguments: str | Path) -> str:
        """Run a command that must succeed; answers what it printed."""
        return run_well(*self.command(*arguments))

    def apply_plans(self, plans: Mapping[str, Any]) -> None:
        """Put plans in force."""
        path = self.data.parent / "plans.yaml"
        path.write_text(json.dumps({"plans": plans}))  # JSON is YAML
        self.run("plan", "apply", path)

    def recorded_blobs(self) -> dict[str, Path]:
        """The digests of all blobs that it has, and their files. Fails where a file is not what it should be."""
        with contextlib.closing(sqlite3.connect(self.data / "entrepot.db")) as connection:
            rows = connection.execute("SELECT digest, size_bytes, key FROM blobs").fetchall()
        found = {digest: self.data / "blobs" / key for digest, _, key in rows}
        for digest, size, key in rows:
            content = (self.data / "blobs" / key).read_bytes()
            algorithm, _, value = digest.partition(":")
            assert (len(content), hashlib.new(algorithm, content).hexdigest()) == (size, value)
        return found

    def issue(self, external_id: str, plan: str) -> Credential:
        """A new account's credential."""
        document = json.loads(self.run("account", "create", external_id, "--plan", plan, "--json"))
        credential = document["credential"]
        return Credential(document["account"]["name"], credential["id"], credential["username"], credential["secret"])

    @contextmanager
    def serving(self, *options: str) -> Iterator[Process]:
        """The server, ready."""
        log = self.data.parent / f"{self.data.name}-serve.log"
        with running(self.command("serve", "--port", str(self.port), *options), log) as process:
            wait_for(f"{self.url}/readyz", process)
            yield process


@contextmanager
def docker_registry(
    folder: Path, username: str, password: str, tls: tuple[Path, Path] | None = None, **more: Any
) -> Iterator[str]:
    """Debian's docker-registry (CNCF distribution 2.8) with htpasswd; answers its host and port.

    `tls` are the files of a key and its certificate, `more` other parts of its configuration.
    """
    program, htpasswd = require("docker-registry"), require("htpasswd")
    folder.mkdir(parents=True, exist_ok=True)
    users = folder / "htpasswd"
    users.write_text(run_well(htpasswd, "-Bbn", username, password))
    port = free_port()
    config = folder / "config.yml"
    http: dict[str, Any] = {"addr": f"127.0.0.1:{port}"}
    if tls is not None:
        http["tls"] = {"key": str(tls[0]), "certificate": str(tls[1])}
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
                "http": http,
                "auth": {"htpasswd": {"realm": "test", "path": str(users)}},
                **more,
            }
        )
    )
    # Its s3 driver reads this variable at start, and fails on it.
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    with running([program, "serve", config], folder / "log", environment) as process:
        wait_for(f"http{'s' if tls else ''}://127.0.0.1:{port}/v2/", process)
        yield f"127.0.0.1:{port}"
