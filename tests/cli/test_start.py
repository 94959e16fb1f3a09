"""What starting a server takes: only what serving pulls needs is loaded, once for all its processes."""

import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.programs import Entrepot, Process, run_well

# Each takes long to load, and much memory; who needs it loads it then.
NOT_LOADED = {"aiohttp", "alembic", "fastapi", "psycopg", "redis"}
RESIDENT_BYTES = 200 * 1024**2


def test_a_server_loads_nothing_that_pulls_do_not_need(tmp_path: Path) -> None:
    entrepot = Entrepot(tmp_path / "data")
    entrepot.run("migrate")
    program = (
        "import sys\n"
        "from entrepot.bootstrap import create_app\n"
        "create_app()\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    loaded = run_well(sys.executable, "-c", program, environment={"ENTREPOT_DATA": str(entrepot.data)}).split()
    assert "sqlalchemy" in loaded
    assert NOT_LOADED & set(loaded) == set()


def processes_of(server: Process) -> list[int]:
    """The supervisor and all its processes."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listing.splitlines())}
    found = [server.popen.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def resident_bytes(pid: int) -> int:
    """Memory that a process has for itself, and its part of what it shares (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def test_two_workers_fit_into_little_memory(tmp_path: Path) -> None:
    entrepot = Entrepot(tmp_path / "data")
    with entrepot.serving("--workers", "2", "--no-jobs") as server, httpx.Client(base_url=entrepot.url) as http:
        for _ in range(50):
            assert http.get("/v2/").status_code == 401
        pids = processes_of(server)
        assert len(pids) == 3
        assert sum(resident_bytes(pid) for pid in pids) < RESIDENT_BYTES
