"""`make bench`: Entrepot and its peers, side by side in one run on this machine."""

import argparse
import os
import tempfile
from pathlib import Path

from rich.console import Console

from bench import memory, registry, scale
from bench.load import run_wrk
from bench.results import Row, Section, show, write_page
from bench.servers import entrepot

PARTS = ("registry", "tokens", "memory", "scale")


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, epilog='Example: make bench BENCH_ARGS="--only registry --seconds 10"'
    )
    parser.add_argument("--seconds", type=int, default=5, help="length of each measurement (default 5)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="Entrepot's server processes (default: one per core)"
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this part alone; repeat for more")
    parser.add_argument("--write", type=Path, help="write the tables and pictures into this folder, too")
    arguments = parser.parse_args()
    parts = arguments.only or PARTS
    console = Console(width=200)
    sections: list[Section] = []
    for part in PARTS:
        if part not in parts:
            continue
        with tempfile.TemporaryDirectory(prefix="entrepot-bench-") as name:
            folder = Path(name)
            if part == "registry":
                found = registry.measure(console, folder, workers=arguments.workers, seconds=arguments.seconds)
            elif part == "tokens":
                found = measure_tokens(folder, workers=arguments.workers, seconds=arguments.seconds)
            elif part == "memory":
                found = memory.measure(console, folder, workers=arguments.workers)
            else:
                found = scale.measure(console, folder)
        for section in found:
            show(console, section)
        sections += found
    if arguments.write:
        options = "".join(f" --only {part}" for part in arguments.only or [])
        command = f'make bench BENCH_ARGS="--seconds {arguments.seconds}{options}"'
        write_page(arguments.write, sections, command)


def measure_tokens(folder: Path, *, workers: int, seconds: int) -> list[Section]:
    """How many tokens are issued."""
    with entrepot(folder, workers) as server:
        basic = server.paths["token_basic"]
        result = run_wrk(server, server.paths["token"], connections=32, seconds=seconds, authorization=basic)
    cells = {"Entrepot": f"{result.requests_per_second:,.0f}/s, p99 {result.p99_seconds * 1000:.1f} ms"}
    return [Section("Tokens", [Row("tokens issued, 32 connections", cells, target=">= 3,000/s")])]


if __name__ == "__main__":
    main()
