"""What was measured: kept as rows, shown as tables, drawn as pictures."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pygal
from pygal.style import CleanStyle
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One piece of work: what each server did, and how many times better the first did than another.

    `ratios` go by the other's name; `target` is what the first should reach, in words.
    """

    work: str
    cells: dict[str, str]
    ratios: dict[str, float] = field(default_factory=dict)
    target: str = ""


@dataclass(frozen=True)
class Section:
    """Rows that belong together; `notes` say how they came about."""

    title: str
    rows: list[Row]
    notes: str = ""


def show(console: Console, section: Section) -> None:
    """Print a section as a table."""
    columns = _columns(section.rows)
    table = Table("work", *columns, "ratio", "target", title=section.title, caption=section.notes or None)
    for row in section.rows:
        table.add_row(row.work, *(row.cells.get(name, "") for name in columns), _ratios(row), row.target)
    console.print(table)


def write_page(folder: Path, sections: Sequence[Section], command: str) -> None:
    """Write docs/performance: the tables in Markdown, the ratios as a picture, and the numbers for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    intro = (
        "# Performance\n\n"
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with `{command}`, which starts every server itself, on loopback, "
        "and prints these tables. The load comes from the same machine, so the servers share its cores with it.\n\n"
        f"The machine: {describe_machine()}.\n"
    )
    parts = [intro]
    for section in sections:
        name = section.title.lower().replace(" ", "-")
        if draw(section, folder / f"{name}.svg"):
            parts.append(f"\n## {section.title}\n\n![{section.title}]({name}.svg)\n")
        else:
            parts.append(f"\n## {section.title}\n")
        parts.append(f"\n{_markdown(section.rows)}")
        if section.notes:
            parts.append(f"\n{section.notes}\n")
    (folder / "README.md").write_text("".join(parts), encoding="utf-8")
    document = {"machine": describe_machine(), "command": command, "sections": [asdict(one) for one in sections]}
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def draw(section: Section, path: Path) -> bool:
    """Draw the ratios of a section as bars; False when it has none."""
    others = list(dict.fromkeys(name for row in section.rows for name in row.ratios))
    if not others:
        return False
    rows = [row for row in section.rows if row.ratios]
    chart: Any = pygal.HorizontalBar(
        title="Times as good as ...",
        x_labels=[row.work for row in rows],
        style=CleanStyle,
        height=60 + 44 * len(rows),
        width=900,
        js=[],
        show_y_guides=True,
        print_values=True,
        formatter=lambda value: f"{value:.2f}",
        disable_xml_declaration=True,
    )
    for other in others:
        chart.add(other, [row.ratios.get(other) for row in rows])
    path.write_text(chart.render(is_unicode=True) + "\n", encoding="utf-8")
    return True


def describe_machine() -> str:
    """The machine in words."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = Path("/proc/cpuinfo").read_text().count("\nprocessor") + 1
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return f"{cores} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.cells))


def _ratios(row: Row) -> str:
    return ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row.ratios.items())


def _markdown(rows: Sequence[Row]) -> str:
    columns = _columns(rows)
    lines = [f"| work | {' | '.join(columns)} | ratio | target |", "|---" * (len(columns) + 3) + "|"]
    for row in rows:
        cells = (row.cells.get(name, "") for name in columns)
        lines.append(f"| {row.work} | {' | '.join(cells)} | {_ratios(row)} | {row.target} |")
    return "\n".join(lines) + "\n"
