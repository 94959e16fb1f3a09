"""`entrepot api-key`: what guards the platform API."""

from typing import Annotated

import typer

from entrepot.cli.output import Json, actor, moment, print_done, print_json, print_table
from entrepot.cli.parts import open_parts

app = typer.Typer(help="API keys: what a program may do over the platform API.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command(epilog="Example: entrepot api-key create platform --scope accounts:write --plan free")
def create(
    context: typer.Context,
    name: Name,
    scope: Annotated[list[str], typer.Option(help="What it may do; repeat for more. See docs/reference/api.md.")],
    plan: Annotated[list[str] | None, typer.Option(help="Limit it to accounts on this plan; repeat for more.")] = None,
    json: Json = False,
) -> None:
    """Make an API key; the secret is shown this once."""
    from entrepot.access.api_scopes import parse_api_scopes
    from entrepot.web.api.models import ApiKeyBody, CreatedApiKey

    scopes = parse_api_scopes(scope)
    with open_parts(context) as parts:
        key, secret = parts.run(parts.api_keys.create(name, scopes, frozenset(plan) if plan else None, actor()))
    if json:
        print_json(CreatedApiKey(api_key=ApiKeyBody.of(key), secret=secret.reveal()))
    else:
        print(f"API key {key.name}\nsecret  {secret.reveal()}   (shown this once)")
        print("send it as  Authorization: Bearer <secret>")


@app.command("list", epilog="Example: entrepot api-key list")
def list_keys(context: typer.Context, json: Json = False) -> None:
    """Show every API key."""
    from entrepot.web.api.models import ApiKeyBody

    with open_parts(context) as parts:
        keys = parts.run(parts.api_keys.list_keys())
    if json:
        print_json({"api_keys": [ApiKeyBody.of(key).model_dump(mode="json") for key in keys]})
    else:
        print_table(
            ("API KEY", "SCOPES", "PLANS", "CREATED", "REVOKED"),
            (
                (
                    key.name,
                    " ".join(sorted(key.scopes)),
                    "any" if key.plans is None else " ".join(sorted(key.plans)),
                    moment(key.created_at),
                    key.revoked_at and f"{key.revoked_at:%Y-%m-%d %H:%M}",
                )
                for key in keys
            ),
        )


@app.command(epilog="Example: entrepot api-key revoke platform")
def revoke(context: typer.Context, name: Name, json: Json = False) -> None:
    """Let an API key be refused from now on."""
    with open_parts(context) as parts:
        parts.run(parts.api_keys.revoke(name, actor()))
    print_done(json, f"{name} is revoked", api_key=name, status="revoked")
