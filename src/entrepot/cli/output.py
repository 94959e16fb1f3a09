"""What commands print: tables for people, JSON for programs."""

import getpass
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from entrepot.accounts.audit import Actor

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def actor() -> "Actor":
    """Who the audit log says made a change on this machine."""
    from entrepot.accounts.audit import Actor

    try:
        return Actor(f"cli:{getpass.getuser()}")
    except (KeyError, OSError):  # a user id without a name, as in containers
        return Actor("cli")


def print_json(document: object) -> None:
    """Print JSON; a model prints as the platform API would send it."""
    if isinstance(document, BaseModel):
        print(document.model_dump_json(indent=2, exclude_unset=True))
    else:
        print(json.dumps(document, indent=2, default=str))


def print_done(json: bool, sentence: str, **document: object) -> None:
    """Say what a command did: in a sentence for people, or as JSON."""
    if json:
        print_json(document)
    else:
        print(sentence)


def moment(at: datetime | None) -> str:
    """An instant as people read it; nothing for none."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows; nothing is cut when the output is no terminal."""
    console = Console()
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    if not console.is_terminal:
        console.width = 10_000
    console.print(table, markup=False, highlight=False)
