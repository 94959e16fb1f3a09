"""Write the parts of the documentation that are generated from the program; `make docs`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from entrepot.cli import app
from entrepot.settings import setting_fields

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

SETTINGS = """\
# Settings

The first that speaks wins: command line, environment, configuration file, default. In the environment a setting is
`ENTREPOT_` and its name, nested with `__`. In the file (TOML, `--config FILE` or `ENTREPOT_CONFIG`) it is the name in
lower case, nested in tables: `ENTREPOT_LOG__LEVEL` is `level` in `[log]`. An unknown name is an error. A secret may
come from a file: `ENTREPOT_SECRET_KEY_FILE` names one.

| setting | default | what it is |
|---|---|---|
"""

COMMANDS = """\
# Commands

Exit code 0: done. 1: failed, with one line that says why. 2: used wrongly. `--json` prints JSON for programs.

"""


def render_settings() -> str:
    """The page of settings."""
    rows = []
    for name, field in setting_fields():
        default = field.get_default(call_default_factory=True)
        shown = getattr(default, "value", default)
        if isinstance(shown, bool):
            shown = str(shown).lower()
        is_told = hasattr(default, "get_secret_value") or shown == ""  # the description says it
        rows.append(f"| `{name}` | {'' if is_told else f'`{shown}`'} | {field.description} |\n")
    return SETTINGS + "".join(rows)


def render_commands() -> str:
    """The page of commands."""
    root = typer.main.get_command(app)
    parts = [_render_parameters(root), *(_render_command(path, one) for path, one in _walk(root, ""))]
    return COMMANDS + "Before the command's name:\n\n" + "".join(parts)


def _walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{prefix} {name}".strip()
        if hasattr(command, "commands"):
            yield from _walk(command, path)
        else:
            yield path, command


def _render_command(path: str, command: Any) -> str:
    arguments = " ".join(one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument")
    example = (command.epilog or "").removeprefix("Example: ")
    text = f"\n## entrepot {path} {arguments}".rstrip() + f"\n\n{command.help}\n\n```sh\n{example}\n```\n"
    parameters = _render_parameters(command)
    return text + (f"\n{parameters}" if parameters else "")


def _render_parameters(command: Any) -> str:
    rows = []
    for one in command.params:
        if one.param_type_name == "option" and one.name != "help":
            names = " / ".join([*one.opts, *one.secondary_opts])
            metavar = "" if one.is_flag else f" {one.metavar or one.name.upper()}"
            needed = " (needed)" if one.required else ""
            rows.append(f"- `{names}{metavar}`: {one.help or ''}{needed}\n")
    return "".join(rows)


PAGES = {"settings.md": render_settings, "commands.md": render_commands}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (REFERENCE / page).write_text(render(), encoding="utf-8")
