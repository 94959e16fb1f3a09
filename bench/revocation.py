"""How soon a revoked credential is refused, by every worker of a loaded server, with Redis and without.

Each round: a credential that pulls on many connections, so that every worker knows it; it is revoked; and each
connection asks on until it is refused. The lag is from the answer to the revocation to the last pull, on any of them,
that was begun after it and still went well; none: 0.
"""

import base64
import http.client
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from bench.load import load_command
from bench.registry import fill_small
from bench.results import Row, Section
from bench.servers import REPOSITORY, Server, entrepot, run_entrepot
from tests.support.servers import postgresql, redis

ROUNDS = 20
_LOAD_CONNECTIONS = 32
_CONNECTIONS = 8
_WARM_SECONDS = 0.2
_GIVE_UP_SECONDS = 10
_GOOD, _REFUSED = 200, 401


def measure(console: Console, folder: Path, *, workers: int) -> list[Section]:
    """The lag of a revocation in each way to run Entrepot."""
    cells: dict[str, str] = {}
    for kind in ("SQLite", "PostgreSQL", "PostgreSQL and Redis"):
        console.print(f"{kind}: {ROUNDS} revocations under load ...")
        own = folder / kind.replace(" ", "-")
        own.mkdir()
        with _settings(kind, own) as variables, entrepot(own, workers, variables) as server:
            fill_small(own, server)
            with _loaded(server):
                lags = _Rounds(server, own, variables).run()
        p50, p99 = statistics.median(lags), statistics.quantiles(lags, n=100, method="inclusive")[98]
        cells[kind] = f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, most {max(lags) * 1000:.0f} ms"
    notes = (
        f"{workers} workers, {_LOAD_CONNECTIONS} connections that ask for manifests as fast as they can, {ROUNDS} "
        f"revocations of a credential that asks on {_CONNECTIONS} connections; tokens that were issued before included."
    )
    return [Section("Revocation", [Row("revoked to refused, everywhere", cells, target="p99 <= 1,000 ms")], notes)]


@contextmanager
def _settings(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    if kind == "SQLite":
        yield {}
        return
    with postgresql() as database:
        variables = {"ENTREPOT_DATABASE_URL": database.create()}
        if not kind.endswith("Redis"):
            run_entrepot(folder, variables, "migrate")
            yield variables
            return
        with redis(folder) as server:
            variables["ENTREPOT_REDIS_URL"] = server.url
            run_entrepot(folder, variables, "migrate")
            yield variables


@contextmanager
def _loaded(server: Server) -> Iterator[None]:
    """Keep every worker busy."""
    command = load_command(server, server.paths["tag"], connections=_LOAD_CONNECTIONS, seconds=120)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


class _Rounds:
    """Revocations on one server, one after another."""

    def __init__(self, server: Server, folder: Path, variables: dict[str, str]) -> None:
        self._server = server
        self._address = urlsplit(server.url).netloc
        made = run_entrepot(folder, variables, "api-key", "create", "bench", "--scope", "admin", "--json")
        self._api = {"Authorization": f"Bearer {json.loads(made)['secret']}", "Content-Type": "application/json"}

    def run(self) -> list[float]:
        """The lag of each round, in seconds."""
        return [self._revoke_once(number) for number in range(ROUNDS)]

    def _revoke_once(self, number: int) -> float:
        api = http.client.HTTPConnection(self._address, timeout=30)
        body = json.dumps({"external_id": f"round-{number}", "plan": "publisher"})
        created = _call(api, "POST", "/api/v1/accounts", self._api, body)
        credential = created["credential"]
        pair = base64.b64encode(f"{credential['username']}:{credential['secret']}".encode()).decode()
        token = _call(api, "GET", f"/token?scope=repository:{REPOSITORY}:pull", {"Authorization": f"Basic {pair}"})
        customers = [_Customer(self._server, f"Bearer {token['token']}") for _ in range(_CONNECTIONS)]
        for customer in customers:
            customer.start()
        time.sleep(_WARM_SECONDS)
        path = f"/api/v1/accounts/{created['account']['name']}/credentials/{credential['id']}"
        _call(api, "DELETE", path, self._api)
        revoked_at = time.monotonic()
        for customer in customers:
            customer.join(_GIVE_UP_SECONDS)
        api.close()
        return max(0.0, *(customer.last_good - revoked_at for customer in customers))


class _Customer(threading.Thread):
    """Asks on one connection until it is refused; `last_good` is when it began the last request that went well."""

    def __init__(self, server: Server, authorization: str) -> None:
        super().__init__(daemon=True)
        self._address = urlsplit(server.url).netloc
        self._path = server.paths["tag"]
        self._headers = {"Authorization": authorization}
        self.last_good = 0.0

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        give_up_at = time.monotonic() + _GIVE_UP_SECONDS
        while time.monotonic() < give_up_at:
            begun = time.monotonic()
            connection.request("GET", self._path, headers=self._headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == _REFUSED:
                break
            if answer.status != _GOOD:
                raise SystemExit(f"a pull was answered {answer.status}")
            self.last_good = begun
            time.sleep(0.002)
        connection.close()


def _call(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: str = ""
) -> dict[str, dict[str, str]]:
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path} was answered {answer.status}: {content[:500]!r}")
    found: dict[str, dict[str, str]] = json.loads(content or b"{}")
    return found
