"""The servers that are measured, each in its own folder and on its own port, stopped at the end."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

REPOSITORY = "bench/image"
REPOSITORIES = (REPOSITORY, f"{REPOSITORY}-500mb")
# Tokens of Entrepot live for five minutes, which is less than all measurements take.
_TOKEN_SECONDS = 240
_ISSUER = "bench"
_SERVICE = "registry"
_START_SECONDS = 20


@dataclass
class Server:
    """A running server: where it is, how to log in, and its processes."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log_in: Callable[[], str] | None = None
    start_seconds: float = 0.0
    paths: dict[str, str] = field(default_factory=dict)
    _token: tuple[str, float] = ("", float("-inf"))

    @property
    def authorization(self) -> str:
        """What to send as Authorization, empty for nothing."""
        if self.log_in is not None and time.monotonic() - self._token[1] > _TOKEN_SECONDS:
            self._token = (self.log_in(), time.monotonic())
        return self._token[0]

    def pids(self) -> list[int]:
        """The server's processes, its children included."""
        listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(ppid) for pid, ppid in (line.split() for line in listing.splitlines())}
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu_seconds(self) -> float:
        """CPU time that the server has used so far, user and system. Source: proc(5), /proc/pid/stat."""
        ticks = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except FileNotFoundError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory of the server's processes that no other process shares, and their part of what is shared (PSS)."""
        total = 0
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except FileNotFoundError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(name: str, command: list[str], port: int, probe: str, folder: Path, **variables: str) -> Iterator[Server]:
    """`command`, once it answers `probe`."""
    # Debian's docker-registry cannot start while AWS_CA_BUNDLE is set (its s3 driver reads it).
    environment = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"} | variables
    begun = time.perf_counter()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    server = Server(name, f"http://127.0.0.1:{port}", process)
    try:
        _wait(server, probe, folder / f"{name}.log")
        server.start_seconds = time.perf_counter() - begun
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, probe: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(server.url + probe, timeout=1):
                return
        except urllib.error.HTTPError:
            return  # it answers, which is enough
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"{server.name} did not start:\n{log.read_text(errors='replace')[-2000:]}")


def find_program(name: str) -> str:
    """Where a program is."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is not installed; run: make tools")
    return found


def run_entrepot(folder: Path, variables: Mapping[str, str], *arguments: str) -> str:
    """What a command of Entrepot prints, on the data below `folder`."""
    command = [str(Path(sys.executable).with_name("entrepot")), "--data", str(folder / "entrepot"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | variables).stdout


@contextmanager
def entrepot(
    folder: Path,
    workers: int,
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = (),
    *,
    has_jobs: bool = False,
) -> Iterator[Server]:
    """Entrepot with an account that may push and pull, and a token for it.

    `variables` are settings; `program` is what serves where it is not the command itself; with `has_jobs` it
    replicates.
    """
    settings = dict(variables or {})
    port = free_port()
    plans = folder / "plans.yaml"
    plans.write_text('plans: {publisher: {grants: [{repositories: ["**"], actions: [pull, push, delete]}]}}\n')
    run_entrepot(folder, settings, "plan", "apply", str(plans))
    # Another one each time, since a server may be started again on the same data.
    created = run_entrepot(folder, settings, "account", "create", f"bench-{port}", "--plan", "publisher", "--json")
    credential = json.loads(created)["credential"]
    own = [str(Path(sys.executable).with_name("entrepot"))]
    command = [*(program or own), "--data", str(folder / "entrepot"), "serve", "--port", str(port)]
    command += ["--workers", str(workers), *([] if has_jobs else ["--no-jobs"])]
    settings["ENTREPOT_LOG__LEVEL"] = "warning"
    with _running("Entrepot", command, port, "/readyz", folder, **settings) as server:
        basic = base64.b64encode(f"{credential['username']}:{credential['secret']}".encode()).decode()
        scopes = "&".join(f"scope=repository:{name}:pull,push" for name in REPOSITORIES)
        server.paths["token"] = f"/token?{scopes}"
        server.paths["token_basic"] = f"Basic {basic}"

        def log_in() -> str:
            headers = {"Authorization": f"Basic {basic}"}
            with urllib.request.urlopen(
                urllib.request.Request(f"{server.url}/token?{scopes}", headers=headers)
            ) as answer:
                return f"Bearer {json.load(answer)['token']}"

        server.log_in = log_in
        yield server


@contextmanager
def docker_registry(folder: Path) -> Iterator[Server]:
    """Debian's docker-registry (CNCF distribution 2.8) with token authentication, and a token for it."""
    key, certificate = _make_certificate()
    bundle = folder / "root.pem"
    bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    port = free_port()
    config = folder / "docker-registry.yaml"
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(folder / "docker-registry")}},
                "http": {"addr": f"127.0.0.1:{port}"},
                "auth": {
                    "token": {
                        "realm": "http://127.0.0.1/token",
                        "service": _SERVICE,
                        "issuer": _ISSUER,
                        "rootcertbundle": str(bundle),
                    }
                },
            }
        )
    )
    command = [find_program("docker-registry"), "serve", str(config)]
    with _running("docker-registry", command, port, "/v2/", folder) as server:
        server.log_in = lambda: f"Bearer {_sign_token(key, certificate)}"
        yield server


@contextmanager
def open_registry(folder: Path, name: str, basic: tuple[str, str] | None = None) -> Iterator[Server]:
    """Another docker-registry, open to everybody or with one login by Basic."""
    port = free_port()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / name)}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if basic is not None:
        users = folder / f"{name}.htpasswd"
        # The least work that bcrypt can do: a password is checked with every request.
        command = [find_program("htpasswd"), "-Bbn", "-C", "4", *basic]
        users.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        config["auth"] = {"htpasswd": {"realm": "bench", "path": str(users)}}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config))
    command = [find_program("docker-registry"), "serve", str(path)]
    with _running(name, command, port, "/v2/", folder) as server:
        if basic is not None:
            header = f"Basic {base64.b64encode(':'.join(basic).encode()).decode()}"
            server.log_in = lambda: header
        yield server


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[Server]:
    """Nginx that sends the files below `root` with sendfile, and knows no credentials."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 2; error_log {folder}/nginx-error.log; pid {folder}/nginx.pid;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n"
        f"  client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;\n"
        f"  fastcgi_temp_path {folder}/nginx-fastcgi; uwsgi_temp_path {folder}/nginx-uwsgi;\n"
        f"  scgi_temp_path {folder}/nginx-scgi;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    # As root nginx would serve as another user, who cannot read a private temporary folder.
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    command = [find_program("nginx"), "-c", str(config), *user]
    with _running("nginx", command, port, "/", folder) as server:
        yield server


def _make_certificate() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _sign_token(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> str:
    """A token as the CNCF distribution verifies it: the certificate in `x5c` leads to its root bundle."""
    now = int(time.time())
    claims = {
        "iss": _ISSUER,
        "aud": _SERVICE,
        "sub": "bench",
        "iat": now,
        "nbf": now - 60,
        "exp": now + 3600,
        "jti": "bench",
        "access": [{"type": "repository", "name": name, "actions": ["pull", "push"]} for name in REPOSITORIES],
    }
    der = certificate.public_bytes(serialization.Encoding.DER)
    return jwt.encode(claims, key, algorithm="ES256", headers={"x5c": [base64.b64encode(der).decode()]})
