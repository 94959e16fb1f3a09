"""The real clients behind one small interface, each with storage and credentials of its own."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol, Self

from tests.support.programs import Credential, Process, require, run, run_well, running

Done = CompletedProcess[str]


class Client(Protocol):
    """Logs in, pushes and pulls images."""

    def login(self, host: str, username: str, secret: str) -> Done:
        """Log in, as far as the client has such a thing."""

    def pull(self, host: str, name: str, credential: Credential | None = None) -> Done:
        """Pull `name` (repository:tag) afresh; with the login before, or `credential` where there is no login."""

    def digest(self, host: str, name: str) -> str:
        """The digest of what was pulled."""

    def read(self, digest: str) -> bytes | None:
        """The content of a digest that was pulled, None when the client does not keep it as it came."""

    def push(self, host: str, name: str, layout: Path, credential: Credential) -> Done:
        """Push the image of an OCI layout."""


class Skopeo:
    """skopeo: copies images without a daemon."""

    def __init__(self, folder: Path) -> None:
        self._program = require("skopeo")
        self._folder = folder
        self.authfile = folder / "auth.json"
        self._auth = ("--authfile", self.authfile)

    def login(self, host: str, username: str, secret: str) -> Done:
        command = (self._program, "login", "--tls-verify=false", *self._auth, "-u", username, "--password-stdin", host)
        return run(*command, stdin=secret)

    def pull(self, host: str, name: str, credential: Credential | None = None) -> Done:
        options = ("--src-tls-verify=false", *self._auth)
        return run(self._program, "copy", *options, f"docker://{host}/{name}", f"dir:{self._folder}/pulled")

    def digest(self, host: str, name: str) -> str:
        return run_well(self._program, "manifest-digest", self._folder / "pulled" / "manifest.json").strip()

    def read(self, digest: str) -> bytes | None:
        path = self._folder / "pulled" / digest.partition(":")[2]
        return path.read_bytes() if path.exists() else (self._folder / "pulled" / "manifest.json").read_bytes()

    def push(self, host: str, name: str, layout: Path, credential: Credential) -> Done:
        options = ("--dest-tls-verify=false", *self._auth)
        return run(self._program, "copy", *options, f"oci:{layout}:v1", f"docker://{host}/{name}")


class Podman:
    """podman, with a storage of its own."""

    def __init__(self, folder: Path, run_folder: Path) -> None:
        storage = ("--root", folder / "storage", "--runroot", run_folder, "--storage-driver", "vfs")
        self._podman = (require("podman"), *storage)
        self._environment = {"REGISTRY_AUTH_FILE": str(folder / "auth.json")}

    def _run(self, *arguments: str | Path, stdin: str | None = None) -> Done:
        return run(*self._podman, *arguments, environment=self._environment, stdin=stdin)

    def login(self, host: str, username: str, secret: str) -> Done:
        return self._run("login", "--tls-verify=false", "-u", username, "--password-stdin", host, stdin=secret)

    def pull(self, host: str, name: str, credential: Credential | None = None) -> Done:
        self._run("rmi", "--force", "--all")
        return self._run("pull", "--tls-verify=false", f"{host}/{name}")

    def digest(self, host: str, name: str) -> str:
        return self._run("image", "inspect", "--format", "{{.Digest}}", f"{host}/{name}").stdout.strip()

    def read(self, digest: str) -> bytes | None:
        return None  # it keeps layers unpacked

    def push(self, host: str, name: str, layout: Path, credential: Credential) -> Done:
        pulled = self._run("pull", "-q", f"oci:{layout}:v1")
        return self._run("push", "--tls-verify=false", pulled.stdout.strip(), f"{host}/{name}")


class Docker:
    """The docker client with an engine of its own."""

    def __init__(self, folder: Path) -> None:
        self.program = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else require("docker")
        self.address = f"unix://{folder}/docker.sock"
        self._docker = (self.program, "--host", self.address, "--config", folder / "config")
        self.config = folder / "config" / "config.json"
        self._skopeo = require("skopeo")
        self._folder = folder

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Self]:
        """Start an engine that touches neither network nor system folders."""
        command = [
            *(require("dockerd"), "--data-root", folder / "data", "--exec-root", folder / "exec"),
            *("--pidfile", folder / "pid", "--host", f"unix://{folder}/docker.sock", "--storage-driver", "vfs"),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"),
        ]
        with running(command, folder / "log") as process:
            client = cls(folder)
            _wait(process, lambda: run(*client._docker, "version").returncode == 0)
            yield client

    def login(self, host: str, username: str, secret: str) -> Done:
        return run(*self._docker, "login", "-u", username, "--password-stdin", host, stdin=secret)

    def pull(self, host: str, name: str, credential: Credential | None = None) -> Done:
        run(*self._docker, "image", "rm", "--force", f"{host}/{name}")
        return run(*self._docker, "pull", f"{host}/{name}")

    def digest(self, host: str, name: str) -> str:
        digests = json.loads(
            run_well(*self._docker, "image", "inspect", "-f", "{{json .RepoDigests}}", f"{host}/{name}")
        )
        repository = f"{host}/{name}".rpartition(":")[0]
        return next(one.partition("@")[2] for one in digests if one.partition("@")[0] == repository)

    def read(self, digest: str) -> bytes | None:
        return None  # it keeps layers unpacked

    def push(self, host: str, name: str, layout: Path, credential: Credential) -> Done:
        archive = self._folder / "push.tar"
        archive.unlink(missing_ok=True)
        run_well(self._skopeo, "copy", f"oci:{layout}:v1", f"docker-archive:{archive}:{host}/{name}")
        run_well(*self._docker, "load", "-i", archive)
        return run(*self._docker, "push", f"{host}/{name}")


class Containerd:
    """containerd and its own client, ctr, which has no login."""

    def __init__(self, folder: Path) -> None:
        self._ctr = (require("ctr"), "--address", folder / "containerd.sock")

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Self]:
        """Start containerd in a folder."""
        config = folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{folder}/containerd.sock"\n'
        )
        with running([require("containerd"), "--config", config], folder / "log", dict(os.environ)) as process:
            client = cls(folder)
            _wait(process, lambda: run(*client._ctr, "version").returncode == 0)
            yield client

    def login(self, host: str, username: str, secret: str) -> Done:
        return CompletedProcess([], 0, "", "")

    def pull(self, host: str, name: str, credential: Credential | None = None) -> Done:
        assert credential is not None
        run(*self._ctr, "images", "rm", "--sync", f"{host}/{name}")
        options = ("--plain-http", "--user", f"{credential.username}:{credential.secret}", "--snapshotter", "native")
        return run(*self._ctr, "images", "pull", *options, f"{host}/{name}")

    def digest(self, host: str, name: str) -> str:
        listed = run_well(*self._ctr, "images", "ls", f"name=={host}/{name}").splitlines()
        return next(word for word in listed[1].split() if word.startswith("sha256:"))

    def read(self, digest: str) -> bytes | None:
        import subprocess

        command = [str(part) for part in (*self._ctr, "content", "get", digest)]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def push(self, host: str, name: str, layout: Path, credential: Credential) -> Done:
        archive = layout.parent / "archive.tar"
        run_well("tar", "-C", layout, "-cf", archive, ".")
        run_well(*self._ctr, "images", "import", "--base-name", f"{host}/{name.partition(':')[0]}", archive)
        options = ("--plain-http", "--user", f"{credential.username}:{credential.secret}")
        return run(*self._ctr, "images", "push", *options, f"{host}/{name}")


class Helm:
    """Helm 3 or 4."""

    def __init__(self, program: str, folder: Path) -> None:
        self._helm = require(program)
        self._folder = folder
        self._environment = {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CONFIG", "CACHE", "DATA")}
        # Helm 4 speaks plain http at login only when told so in the same words as everywhere else.
        self._insecure = "--plain-http" if program == "helm4" else "--insecure"

    def _run(self, *arguments: str | Path, stdin: str | None = None) -> Done:
        return run(self._helm, *arguments, environment=self._environment, stdin=stdin)

    def login(self, host: str, username: str, secret: str) -> Done:
        command = ("registry", "login", self._insecure, host, "-u", username, "--password-stdin")
        return self._run(*command, stdin=secret)

    def pull(self, host: str, chart: str, version: str) -> Done:
        """Pull a chart; it lands in `pulled`."""
        return self._run(
            "pull", "--plain-http", f"oci://{host}/{chart}", "--version", version, "-d", self.pulled.parent
        )

    @property
    def pulled(self) -> Path:
        """Where a pulled chart of the tests lands."""
        return self._folder / "hello-1.0.0.tgz"

    def push(self, host: str, repository: str, packaged: Path) -> Done:
        """Push a packaged chart below a repository."""
        return self._run("push", "--plain-http", packaged, f"oci://{host}/{repository}")


def _wait(process: Process, is_ready: object) -> None:
    import time

    import pytest

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.popen.poll() is None:
        if is_ready():  # type: ignore[operator]
            return
        time.sleep(0.2)
    pytest.fail(f"the engine did not start:\n{process.log.read_text(errors='replace')[-3000:]}")
