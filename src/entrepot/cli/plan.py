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
            ("PLAN", "ACTIONS", "REPOSITORIES", "LIMITS"),
            (
                (
                    plan.name,
                    ",".join(sorted({action for grant in plan.grants for action in grant.actions})),
                    " ".join(glob.text for grant in plan.grants for glob in grant.repositories),
                    "-" if plan.limits is None else str(plan.limits),
                )
                for plan in plans
            ),
        )


@app.command(epilog="Example: entrepot plan show --explain ft-k3v5... smm/api:1.4.2")
def show(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The plan to show.")] = None,
    explain: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="ACCOUNT REF", help="Say instead why the account may pull REF, or may not."),
    ] = None,
    json: Json = False,
) -> None:
    """Show one plan, as it would stand in plans.yaml; or say what a pull would be judged by."""
    import yaml

    if explain is not None:
        _explain(context, *explain, json=json)
        return
    if name is None:
        raise typer.BadParameter("name a plan, or give --explain ACCOUNT REF")
    with open_parts(context) as parts:
        plan = parts.run(parts.plans.get(name))
    document = {"plans": {plan.name: plan.to_document()}}
    if json:
        print_json(document)
    else:
        print(yaml.safe_dump(document, sort_keys=False), end="")


def _explain(context: typer.Context, account: str, text: str, *, json: bool) -> None:
    from entrepot.access.scopes import Action
    from entrepot.oci.reference import parse_image

    with open_parts(context) as parts:
        name, reference = parse_image(text)
        explanation, plan = parts.run(parts.explanations.explain(account, name, reference))
        steps, is_allowed = list(explanation.steps), explanation.is_allowed
        limits = plan.tag_limits(name, Action.PULL)
        if explanation.depends_on is not None and limits is not None:
            is_allowed = parts.run(parts.registry.reach.is_reached(name, explanation.depends_on, limits))
            verdict = "allowed: one of them leads" if is_allowed else "refused: none of them leads"
            steps.append(f"{verdict} to {explanation.depends_on}")
    if json:
        print_json({"allowed": is_allowed, "steps": steps})
    else:
        print("\n".join(steps))
