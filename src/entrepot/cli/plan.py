"""`entrepot plan`: what a tier may pull."""

from pathlib import Path
from typing import Annotated

import typer

from entrepot.cli.output import Json, actor, print_done, print_json, print_table
from entrepot.cli.parts import open_parts

app = typer.Typer(help="Plans: what a tier of customers may pull.", no_args_is_help=True)


@app.command(epilog="Example: entrepot plan apply plans.yaml")
def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A plans.yaml.", metavar="FILE")],
    json: Json = False,
) -> None:
    """Put the plans of a file in force, all or none; it holds for tokens already issued, too."""
    from entrepot.access.plans import parse_plans
    from entrepot.errors import FileInvalid, PlanInvalid
    from entrepot.storage.documents import line_of_path, read_yaml

    document = read_yaml(file)
    try:
        plans = parse_plans(document.value)
    except PlanInvalid as error:
        raise FileInvalid(str(file), line_of_path(document, str(error)), str(error)) from error
    with open_parts(context) as parts:
        parts.run(parts.plans.apply(plans, actor()))
    names = [plan.name for plan in plans]
    print_done(json, f"in force: {', '.join(names)}", plans=names)


@app.command("list", epilog="Example: entrepot plan list --json")
def list_plans(context: typer.Context, json: Json = False) -> None:
    """Show every plan."""
    with open_parts(context) as parts:
        plans = parts.run(parts.plans.list_plans())
    if json:
        print_json({"plans": {plan.name: plan.to_document() for plan in plans}})
    else:
        print_table(
            ("PLAN", "ACTIONS", "REPOSITORIES"),
            (
                (
                    plan.name,
                    ",".join(sorted({action for grant in plan.grants for action in grant.actions})),
                    " ".join(glob.text for grant in plan.grants for glob in grant.repositories),
                )
                for plan in plans
            ),
        )


@app.command(epilog="Example: entrepot plan show free")
def show(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")], json: Json = False) -> None:
    """Show one plan, as it would stand in plans.yaml."""
    import yaml

    with open_parts(context) as parts:
        plan = parts.run(parts.plans.get(name))
    document = {"plans": {plan.name: plan.to_document()}}
    if json:
        print_json(document)
    else:
        print(yaml.safe_dump(document, sort_keys=False), end="")
