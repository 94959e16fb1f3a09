"""The command line: `entrepot <command>`."""

import os
import sys

import typer

from entrepot import __version__
from entrepot.cli import account, api_key, demo, gc, plan, replicate, serve
from entrepot.cli.parts import Options
from entrepot.errors import EntrepotError

app = typer.Typer(
    name="entrepot",
    help="Distribute private OCI artifacts under credentials of their own for every customer.",
    epilog="Begin with: entrepot demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(api_key.app, name="api-key")
app.add_typer(plan.app, name="plan")
app.add_typer(account.app, name="account")
app.add_typer(replicate.app, name="replicate")
serve.register(app)
app.command(epilog="Example: entrepot gc --dry-run")(gc.gc)
app.command(epilog="Example: entrepot demo --once")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Options.Config = None,
    data: Options.Data = None,
    _version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Distribute private OCI artifacts under credentials of their own for every customer."""
    # What this program writes holds secrets, or customers' names: it is for its own user alone.
    os.umask(0o077)
    context.obj = Options(config=config, data=data)


def main() -> None:
    """Run one command: exit 0 when it is done, 1 with one clear line when it failed, 2 when it was used wrongly."""
    try:
        app()
    except EntrepotError as error:
        print(f"entrepot: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output went away, as `| head` does.
        sys.stderr.close()
        sys.exit(1)
