"""Runs of replication as people read them: in one line each, and live while they go on."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from entrepot.cli.output import moment

if TYPE_CHECKING:
    from entrepot.replication.runs import Run, Runs

_REFRESH_SECONDS = 0.5
_BAR = 24
_DIGEST_CHARACTERS = 19
_FOLLOWED = 100
# What is said of a run if there was any of it. Reports of earlier versions do not have all of these.
_MORE = (
    ("tags_deleted", "tags deleted"),
    ("referrers_copied", "referrers copied"),
    ("referrers_deleted", "referrers deleted"),
    ("signed", "signed"),
    ("left_out", "left out"),
    ("refused", "refused"),
)


def tell_seconds(run: "Run") -> str:
    """How long a run took, or takes so far."""
    if not run.report:
        return ""
    return f"{run.report['seconds']:.1f}" if "seconds" in run.report else ""


def tell_report(run: "Run") -> str:
    """What a run did."""
    report = run.report
    parts: list[str] = []
    if report:
        parts += [
            f"{report['tags_copied']} tags copied",
            f"{report['tags'].get('same', 0)} as here",
            f"{report['blobs_copied']} blobs ({megabytes(report['bytes'])}) copied, {report['blobs_mounted']} mounted",
        ]
    for name, words in _MORE:
        if report.get(name):
            parts.append(f"{report[name]} {words}")
    if run.status == "queued" and run.due_at is not None and run.due_at > run.queued_at:
        parts.append(f"begins {moment(run.due_at)}")
    if run.status == "waiting":
        parts.append(f"tried again {moment(run.due_at)}: {tell_problem(report)}")
    if run.status == "failed":
        parts.append(f"FAILED: {tell_problem(report)}")
    return ", ".join(parts)


def tell_problem(report: dict[str, Any]) -> str:
    """The one line that says why a run failed."""
    if "problem" in report:
        first: dict[str, Any] = report["problem"]
        return str(first["problem"])
    if not report.get("failures"):
        return "it was interrupted"
    first = report["failures"][0]
    others = report["failed"] - 1
    return f"{first['what']}: {first['problem']}" + (f" (and {others} more)" if others else "")


def megabytes(size: float) -> str:
    """An amount of bytes."""
    return f"{size / 1e6:.1f} MB"


async def watch(runs: "Runs", name: str | None) -> "list[Run]":
    """Show the unfinished runs, of a rule or of all, until each has ended; answers how they did."""
    from entrepot.replication.records import UNFINISHED, RunFilter

    console = Console(highlight=False)
    followed = [run.id for run in await runs.list_runs(RunFilter(name, UNFINISHED), _FOLLOWED)]
    shown: dict[str, tuple[object, ...]] = {}
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            found = [await runs.get_run(run_id) for run_id in followed]
            if console.is_terminal:
                live.update(show_runs(found), refresh=True)
            else:
                for run in found:
                    _print_change(run, shown)
            if not any(run.is_unfinished for run in found):
                return found
            await asyncio.sleep(_REFRESH_SECONDS)


def show_runs(found: "Sequence[Run]") -> Table:
    """A bar for each run, and below it one for each blob that is under way."""
    table = Table.grid(padding=(0, 1))
    for run in found:
        progress = run.report.get("progress", {})
        due, done = progress.get("tags_due", 0), progress.get("tags_done", 0)
        bar: RenderableType = ProgressBar(total=max(due, 1), completed=done, width=_BAR) if progress else ""
        what = f"{run.rule}: {run.status}"
        amount = f"{done} of {due} tags" if progress else tell_report(run)
        table.add_row(what, bar, amount, _rate(progress), _time_left(progress))
        for blob in progress.get("blobs", ()):
            table.add_row(
                f"  {blob['repository']} {blob['digest'][:_DIGEST_CHARACTERS]}",
                ProgressBar(total=max(blob["size"], 1), completed=blob["done"], width=_BAR),
                f"{megabytes(blob['done'])} of {megabytes(blob['size'])}",
            )
    return table


def _print_change(run: "Run", shown: dict[str, tuple[object, ...]]) -> None:
    progress = run.report.get("progress", {})
    now = (run.status, run.due_at, progress.get("tags_done"))
    if shown.get(run.id) != now:
        shown[run.id] = now
        parts = [f"{run.rule}: {run.status}"]
        if progress:
            parts += [f"{progress['tags_done']} of {progress['tags_due']} tags", _rate(progress), _time_left(progress)]
        else:
            parts.append(tell_report(run))
        print(", ".join(part for part in parts if part), flush=True)


def _rate(progress: dict[str, Any]) -> str:
    return f"{megabytes(progress['bytes_per_second'])}/s" if progress.get("bytes_per_second") else ""


def _time_left(progress: dict[str, Any]) -> str:
    seconds = progress.get("seconds_left")
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} left"
