"""What counting costs: the same server with a counter that does nothing, in turns with the real one."""

import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.load import run_wrk
from bench.registry import fill_small
from bench.results import Row, Section
from bench.servers import entrepot

if TYPE_CHECKING:
    from entrepot.web.front import Front

_TURNS = 6
_CONNECTIONS = 32


def measure(console: Console, folder: Path, *, workers: int, seconds: int) -> list[Section]:
    """Manifests per second with counting and without."""
    rates: dict[str, list[float]] = {"counting": [], "not counting": []}
    with ExitStack() as stack:
        servers = {}
        for name in rates:
            own = folder / name.replace(" ", "-")
            own.mkdir()
            program = () if name == "counting" else (sys.executable, "-m", "bench.counting")
            servers[name] = stack.enter_context(entrepot(own, workers, program=program))
            fill_small(own, servers[name])
        # In pairs, so that what else the machine does meets both; the first warms up.
        for number in range(_TURNS + 1):
            for name in sorted(servers, reverse=bool(number % 2)):
                console.print(f"manifest GET, {name} ...")
                server = servers[name]
                result = run_wrk(server, server.paths["tag"], connections=_CONNECTIONS, seconds=seconds)
                if number:
                    rates[name].append(result.requests_per_second)
    ratio = statistics.median(mine / other for mine, other in zip(*rates.values(), strict=True))
    cells = {name: f"{statistics.median(found):,.0f}/s" for name, found in rates.items()}
    notes = f"{workers} workers, {_TURNS} turns of {seconds} s each; medians, the ratio's of the turns' own."
    work = f"manifest GET by tag, {_CONNECTIONS} connections"
    return [Section("Counting", [Row(work, cells, {"not counting": ratio}, ">= 0.98x")], notes)]


def create_uncounted_app() -> "Front":
    """The application of one server process, as `bootstrap.create_app` makes it, which counts nothing."""
    from entrepot import bootstrap
    from entrepot.access.visitors import Visitor
    from entrepot.accounts.rechecks import Rechecks
    from entrepot.accounts.usage import UsageCounter
    from entrepot.settings import load_settings
    from entrepot.web.visitors import Visitors

    class Uncounted(UsageCounter):
        def count_pull(self, *_: object) -> None:
            """Nothing."""

        def count_content(self, *_: object) -> None:
            """Nothing."""

    nobody = Visitor("", "")
    Visitors.of = lambda _self, _scope: nobody  # type: ignore[method-assign]
    bootstrap.die_with_parent()
    settings = load_settings()
    bootstrap.configure_logging(settings)
    parts = bootstrap.build_parts(settings)
    return bootstrap.build_app(replace(parts, usage=Uncounted(parts.database, Rechecks(), parts.limiter)))


def _serve() -> None:
    """`entrepot serve`, with the application from above."""
    import granian

    from entrepot.cli import main

    real = granian.Granian

    def serve_uncounted(_target: str, **options: Any) -> granian.Granian:
        return real("bench.counting:create_uncounted_app", **options)

    granian.Granian = serve_uncounted
    main()


if __name__ == "__main__":
    _serve()
