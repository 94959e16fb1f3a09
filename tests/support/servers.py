"""PostgreSQL, Redis and SeaweedFS, real ones, on loopback: started once for all tests that want them."""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import obstore
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from obstore.exceptions import BaseError
from obstore.store import S3Store

from entrepot.storage.database import Database
from tests.support.programs import Process, free_port, require, run_well, running, wait_for

_START_SECONDS = 120
ACCESS_KEY, SECRET_KEY = "entrepot-tests", "secret-of-the-tests"


@dataclass
class PostgreSql:
    """A cluster of its own, with durability off unless asked for."""

    folder: Path
    port: int
    as_owner: tuple[str, ...]
    template: str = ""
    _number = itertools.count()

    def url(self, name: str) -> str:
        """The address of a database, as a setting."""
        return f"postgresql://postgres:secret@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        """Run a statement in the maintenance database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self) -> str:
        """A new and empty database, its address."""
        return self._create("template1")

    def create_migrated(self) -> str:
        """A new database with this version's schema, its address."""
        if not self.template:
            self.template = self.create().rpartition("/")[2]
            database = Database(self.url(self.template))
            database.migrate()
            database.close()
        return self._create(self.template)

    def _create(self, template: str) -> str:
        name = f"test_{next(self._number)}_{secrets.token_hex(4)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    @contextmanager
    def serving(self, *, survives_kill: bool = False, survives_power_cut: bool = False) -> Iterator[Process]:
        """The server, ready."""
        command = [*self.as_owner, _pg("postgres"), "-D", self.folder / "data", "-k", self.folder, "-h", "127.0.0.1"]
        options = {
            "port": self.port,
            "fsync": "on" if survives_power_cut else "off",
            "full_page_writes": "on" if survives_power_cut else "off",
            "synchronous_commit": "on" if survives_kill or survives_power_cut else "off",
        }
        command += [f"--{name}={value}" for name, value in options.items()]
        with running([*command, "--max_connections=300"], self.folder.parent / "postgres.log") as process:
            _wait_until(self._answers, process)
            yield process

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgresql(*, survives_power_cut: bool = False) -> Iterator[PostgreSql]:
    """A cluster, served."""
    with cluster() as made, made.serving(survives_power_cut=survives_power_cut):
        yield made


@contextmanager
def cluster() -> Iterator[PostgreSql]:
    top = Path(tempfile.mkdtemp(prefix="entrepot-postgresql-"))
    folder = top / "cluster"
    folder.mkdir()
    as_owner: tuple[str, ...] = ()
    if os.geteuid() == 0:  # it refuses to serve as root
        top.chmod(0o755)
        shutil.chown(folder, "postgres")
        as_owner = (require("runuser"), "-u", "postgres", "--")
    try:
        password = folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        options = ["-D", folder / "data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile", password, "--no-sync"]
        # A language whose order differs from the bytes': what must not matter.
        run_well(
            *as_owner, _pg("initdb"), *options, "--locale-provider=icu", "--icu-locale=en", "-E", "UTF8", "--locale=C"
        )
        yield PostgreSql(folder, free_port(), as_owner)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _pg(program: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(found[-1]) if found else require(program)


class Redis:
    """A Redis with a password, by plain TCP."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://:secret@127.0.0.1:{self.port}"
        self._stack = contextlib.ExitStack()
        self.process: Process

    def restart(self) -> None:
        """Serve, or serve again after it was killed."""
        command = [require("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--requirepass", "secret", "--dir", str(self._folder)]
        self.process = self._stack.enter_context(running(command, self._folder / "redis.log"))
        _wait_until(lambda: _listens(self.port), self.process)

    def close(self) -> None:
        """End it."""
        self._stack.close()


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """A Redis, served."""
    server = Redis(folder)
    try:
        server.restart()
        yield server
    finally:
        server.close()


@contextmanager
def redis_with_tls(folder: Path) -> Iterator[str]:
    """The address of a Redis that speaks TLS alone, with a certificate of its own."""
    key, certificate = make_certificate(folder)
    port = free_port()
    command = [require("redis-server"), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    command += ["--tls-auth-clients", "no", "--requirepass", "secret", "--dir", str(folder)]
    with running(command, folder / "redis.log") as process:
        _wait_until(lambda: _listens(port), process)
        yield f"rediss://:secret@127.0.0.1:{port}?ssl_ca_certs={certificate}"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """(key, certificate) for 127.0.0.1, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "tls.key", folder / "tls.pem"
    paths[0].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return paths


@dataclass
class ObjectStore:
    """SeaweedFS with its S3 gateway, which checks signatures."""

    endpoint: str
    bucket: str

    def url(self, prefix: str = "") -> str:
        """Storage below a prefix of its own, as a setting."""
        return f"s3://{self.bucket}/{prefix or secrets.token_hex(8)}"


@contextmanager
def seaweedfs(folder: Path) -> Iterator[ObjectStore]:
    """SeaweedFS, served, with a bucket; its keys are in the environment while it is."""
    weed = require("weed")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    config = folder / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    command = [weed, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    command += [f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}"]
    command += [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
    command += [f"-s3.port={ports['s3']}", "-volume.max=50", "-master.volumeSizeLimitMB=256", "-s3.iam=false"]
    # These listen on ports of their own choice, which another run of the tests may hold.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    environment = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
    # It takes its time to end, for data that nobody needs.
    with running(command, folder / "weed.log", patience_seconds=0) as process, environment_of(environment):
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        wait_for(endpoint, process)
        _wait_until(lambda: _make_bucket(endpoint), process)
        yield ObjectStore(endpoint, "entrepot")


def _make_bucket(endpoint: str) -> bool:
    store = S3Store("entrepot", endpoint=endpoint, client_options={"allow_http": True})
    url = obstore.sign(store, "PUT", "", timedelta(seconds=60))
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=20).close()
        obstore.put(store, "probe", b"x")
    except urllib.error.HTTPError as error:
        return error.code == 409
    except (OSError, BaseError):
        return False
    return True


@contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Have these variables in this process's environment meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _wait_until(is_ready: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.popen.poll() is None:
        if is_ready():
            return
        time.sleep(0.1)
    pytest.fail(f"a server did not start:\n{process.log.read_text(errors='replace')[-3000:]}")
