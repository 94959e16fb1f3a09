"""How many tokens are issued, and how soon each is there when half as many are asked for."""

from pathlib import Path

from rich.console import Console

from bench.load import Result, run_wrk
from bench.results import Row, Section
from bench.servers import entrepot

CONNECTIONS = 32
# Requests of a connection are this far apart on average, so that they do not come in step.
_SCRIPT = "function delay() return math.random(0, %d) end\n"


def measure(console: Console, folder: Path, *, workers: int, seconds: int) -> list[Section]:
    """The rate at full load, and the latency at half of it."""
    with entrepot(folder, workers) as server:
        basic = server.paths["token_basic"]
        script = folder / "half.lua"

        def run(pause_seconds: float) -> Result:
            script.write_text(_SCRIPT % round(pause_seconds * 2000))
            console.print("tokens ...")
            path = server.paths["token"]
            options = {"script": script} if pause_seconds else {}
            return run_wrk(server, path, connections=CONNECTIONS, seconds=seconds, authorization=basic, **options)

        full = run(0)
        half = run(CONNECTIONS / (full.requests_per_second / 2) - CONNECTIONS / full.requests_per_second)
    return [
        Section(
            "Tokens",
            [
                Row(f"tokens issued, {CONNECTIONS} connections", {"Entrepot": _describe(full)}, target=">= 3,000/s"),
                Row("at about half that rate", {"Entrepot": _describe(half)}, target="p99 <= 25 ms"),
            ],
        )
    ]


def _describe(result: Result) -> str:
    wrong = f", {result.errors} refused" if result.errors else ""
    p50, p99 = result.p50_seconds * 1000, result.p99_seconds * 1000
    return f"{result.requests_per_second:,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms{wrong}"
