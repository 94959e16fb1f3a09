"""What every command shares: the options before its name, and the parts it works with."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    # At run time they are imported when a command needs them, so that --help is quick.
    from entrepot.bootstrap import Parts
    from entrepot.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The options that stand before the command's name."""

    Config = Annotated[
        Path | None, typer.Option("--config", help="Settings file (TOML).", envvar="ENTREPOT_CONFIG", metavar="FILE")
    ]
    Data = Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder that holds everything.",
            show_default="$ENTREPOT_DATA or ./entrepot-data",
            metavar="DIR",
        ),
    ]

    config: Path | None = None
    data: Path | None = None

    def load(self, **overrides: Any) -> "Settings":
        """The settings, with what the command line says. Raises SettingsInvalid."""
        from entrepot.settings import load_settings

        return load_settings(
            self.config, **{"data": self.data, **{k: v for k, v in overrides.items() if v is not None}}
        )


class CommandParts:
    """The parts of one command, and a loop to run their coroutines on."""

    def __init__(self, parts: "Parts", runner: asyncio.Runner) -> None:
        self.settings = parts.settings
        self.public_url = parts.find_public_url()
        self.plans = parts.plans
        self.accounts = parts.accounts
        self.api_keys = parts.api_keys
        self.reports = parts.reports
        self.explanations = parts.explanations
        self.registry = parts.registry
        self.rulebook = parts.rulebook
        self.runs = parts.runs
        self.replications = parts.replications
        self.garbage = parts.garbage
        self._runner = runner

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What `coroutine` answers."""
        return self._runner.run(coroutine)


@contextmanager
def open_parts(context: typer.Context) -> Iterator[CommandParts]:
    """The parts, on the data that the options name; closed at the end."""
    from entrepot.bootstrap import configure_logging, opened_parts

    options: Options = context.obj
    settings = options.load()
    configure_logging(settings, is_command=True)
    with opened_parts(settings) as parts, asyncio.Runner() as runner:
        yield CommandParts(parts, runner)
