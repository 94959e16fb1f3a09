"""`make bench`: Entrepot and its peers, side by side in one run on this machine."""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import counting, issue, memory, registry, replication, revocation, scale, tokens
from bench.results import Section, show, write_page

PARTS = ("registry", "tokens", "issue", "revocation", "counting", "memory", "replication", "scale")


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
            found = measure(part, console, folder, workers=arguments.workers, seconds=arguments.seconds)
        for section in found:
            show(console, section)
        sections += found
    if arguments.write:
        options = "".join(f" --only {part}" for part in arguments.only or [])
        command = f'make bench BENCH_ARGS="--seconds {arguments.seconds}{options}"'
        write_page(arguments.write, sections, command)


def measure(part: str, console: Console, folder: Path, *, workers: int, seconds: int) -> list[Section]:
    """Measure one part in an empty folder."""
    works: dict[str, Callable[[], list[Section]]] = {
        "registry": lambda: registry.measure(console, folder, workers=workers, seconds=seconds),
        "tokens": lambda: tokens.measure(console, folder, workers=workers, seconds=seconds),
        "issue": lambda: issue.measure(console, folder, workers=workers, seconds=seconds),
        "revocation": lambda: revocation.measure(console, folder, workers=workers),
        "counting": lambda: counting.measure(console, folder, workers=workers, seconds=seconds),
        "memory": lambda: memory.measure(console, folder, workers=workers),
        "replication": lambda: replication.measure(console, folder),
        "scale": lambda: scale.measure(console, folder),
    }
    return works[part]()


if __name__ == "__main__":
    main()
