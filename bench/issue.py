"""How many credentials are issued, with no accounts yet and with many, on SQLite and PostgreSQL.

Both databases sync every commit to the disk. The rows are generated.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from bench.load import Result, run_wrk
from bench.results import Row, Section
from bench.servers import entrepot, run_entrepot
from entrepot.storage import tables
from entrepot.storage.database import Database
from tests.support.servers import postgresql

ACCOUNTS = 100_000
CONNECTIONS = 16
_BATCH = 5_000
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
# Every request is another sign-up.
_SCRIPT = """
local threads = 0
function setup(thread) thread:set("number", threads); threads = threads + 1 end
function init(args) signed_up = 0 end
function request()
  signed_up = signed_up + 1
  local identity = '{"email":"ada@example.com","name":"Ada Lovelace","company":"Analytical Engines"}'
  local body = string.format('{"external_id":"%%s-%%d-%%d","plan":"publisher","identity":%%s}',
    "%s", number, signed_up, identity)
  return wrk.format("POST", "/api/v1/accounts", nil, body)
end
"""


def measure(console: Console, folder: Path, *, workers: int, seconds: int) -> list[Section]:
    """The rate of sign-ups by size and database, and that it is flat."""
    cells: dict[str, str] = {}
    ratios: dict[str, float] = {}
    for kind in ("SQLite", "PostgreSQL"):
        own = folder / kind
        own.mkdir()
        with _settings(kind, own) as (variables, url):
            rates = []
            for accounts in (0, ACCOUNTS):
                console.print(f"{kind}: sign-ups with {accounts:,} accounts ...")
                result = _measure_once(own, variables, url, accounts, workers=workers, seconds=seconds)
                rates.append(result.requests_per_second)
                wrong = f", {result.errors} refused" if result.errors else ""
                p99 = result.p99_seconds * 1000
                cells[f"{kind}, {accounts:,} accounts"] = f"{rates[-1]:,.0f}/s, p99 {p99:.0f} ms{wrong}"
        ratios[kind] = rates[1] / rates[0]
    notes = (
        f"{workers} workers, {CONNECTIONS} connections, {seconds} s each, by POST of /api/v1/accounts; every commit is "
        "synced to the disk. The ratio is the rate with many accounts to that with none: 1 is flat."
    )
    return [Section("Issue", [Row("credentials issued", cells, ratios, ">= 300/s, flat")], notes)]


@contextmanager
def _settings(kind: str, folder: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Settings of a server on a new database of this kind, and the database's address."""
    if kind == "SQLite":
        yield {}, f"sqlite:///{folder}/entrepot/entrepot.db"
        return
    with postgresql(survives_power_cut=True) as server:
        variables = {"ENTREPOT_DATABASE_URL": server.create()}
        run_entrepot(folder, variables, "migrate")
        yield variables, variables["ENTREPOT_DATABASE_URL"]


def _measure_once(
    folder: Path, variables: dict[str, str], url: str, accounts: int, *, workers: int, seconds: int
) -> Result:
    with entrepot(folder, workers, variables) as server:
        _grow(url, accounts)
        name = f"bench-{accounts}"
        key = json.loads(run_entrepot(folder, variables, "api-key", "create", name, "--scope", "admin", "--json"))
        script = folder / "sign-up.lua"
        script.write_text(_SCRIPT % name)
        return run_wrk(
            server,
            "/api/v1/accounts",
            connections=CONNECTIONS,
            seconds=seconds,
            authorization=f"Bearer {key['secret']}",
            headers={"Content-Type": "application/json"},
            script=script,
        )


def _grow(url: str, accounts: int) -> None:
    """Add accounts, each with a credential, its audit rows and its steps."""
    database = Database(url)
    for start in range(0, accounts, _BATCH):
        rows = [_rows(number) for number in range(start, start + _BATCH)]

        def work(connection: sa.Connection, rows: list[dict[sa.Table, list[dict[str, object]]]] = rows) -> None:
            for table in rows[0]:
                connection.execute(table.insert(), [row for one in rows for row in one[table]])

        database.write_now(work)
    database.close()


def _rows(number: int) -> dict[sa.Table, list[dict[str, object]]]:
    account_id, name = 1_000_000 + number, f"ft-generated-{number}"
    account = {
        "id": account_id,
        "name": name,
        "external_id": f"generated-{number}",
        "plan": "publisher",
        "status": "active",
        "identity": {"email": f"{number}@example.com"},
        "created_at": _LONG_AGO,
        "labels": {},
    }
    credential = {
        "id": f"generated-{number}",
        "account_id": account_id,
        "secret_hash": number.to_bytes(32),
        "created_at": _LONG_AGO,
    }
    note = {"at": _LONG_AGO, "actor": "bench", "target": name, "detail": {}}
    return {
        tables.accounts: [account],
        tables.credentials: [credential],
        tables.account_steps: [
            {"account_id": account_id, "at": _LONG_AGO, "week": _LONG_AGO, "plan": "publisher", "took": 0, "step": step}
            for step in ("signed_up", "credential_issued")
        ],
        tables.audit: [note | {"action": action} for action in ("account.created", "credential.issued")],
    }
