"""`entrepot api-key`: what guards the platform API."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.output import Json, actor, moment, print_done, print_json, print_table
from entrepot.cli.parts import open_parts
from entrepot.errors import RequestInvalid

if TYPE_CHECKING:
    from entrepot.accounts.api_keys import ApiKey

app = typer.Typer(help="API keys: what a program may do over the platform API.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]
_AFTER = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@app.command(epilog="Example: entrepot api-key create platform --scope accounts:write --plan free --own-accounts-only")
def create(
    context: typer.Context,
    name: Name,
    scope: Annotated[list[str], typer.Option(help="What it may do; repeat for more. See docs/reference/api.md.")],
    plan: Annotated[list[str] | None, typer.Option(help="Limit it to accounts on this plan; repeat for more.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Where it may be used from, such as 10.0.0.0/8; repeat for more.", metavar="CIDR"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends by itself: after 12h or 90d, or on 2027-01-31.", metavar="WHEN")
    ] = None,
    rate: Annotated[int | None, typer.Option(help="Requests per minute that it may make.", min=1)] = None,
    own_accounts_only: Annotated[
        bool, typer.Option("--own-accounts-only", help="Limit it to accounts that it created itself.")
    ] = False,
    json: Json = False,
) -> None:
    """Make an API key; the secret is shown this once."""
    from entrepot.access.api_scopes import parse_api_scopes
    from entrepot.web.api.key_models import CreatedApiKey

    scopes = parse_api_scopes(scope)
    expires_at = None if expires is None else _parse_end(expires)
    with open_parts(context) as parts:
        key, secret = parts.run(
            parts.api_keys.create(
                name,
                scopes,
                frozenset(plan) if plan else None,
                actor(),
                networks=network or None,
                expires_at=expires_at,
                requests_per_minute=rate,
                own_accounts_only=own_accounts_only,
            )
        )
    if json:
        print_json(CreatedApiKey.of(key, secret))
    else:
        print(f"API key {key.name}\nsecret  {secret.reveal()}   (shown this once)")
        print("send it as  Authorization: Bearer <secret>")


@app.command("list", epilog="Example: entrepot api-key list")
def list_keys(context: typer.Context, json: Json = False) -> None:
    """Show every API key."""
    from entrepot.web.api.key_models import ApiKeyBody

    with open_parts(context) as parts:
        keys = parts.run(parts.api_keys.list_keys())
    if json:
        print_json({"api_keys": [ApiKeyBody.of(key).model_dump(mode="json") for key in keys]})
    else:
        headings = ("API KEY", "SCOPES", "PLANS", "LIMITS", "CREATED", "LAST USED", "EXPIRES", "REVOKED")
        print_table(headings, (_describe(key) for key in keys))


@app.command(epilog="Example: entrepot api-key rotate platform --overlap-seconds 86400")
def rotate(
    context: typer.Context,
    name: Name,
    overlap_seconds: Annotated[int, typer.Option(help="How long the secret that it has still holds.", min=0)] = 86400,
    json: Json = False,
) -> None:
    """Give an API key a new secret, shown this once; the one that it has holds for the overlap."""
    from entrepot.web.api.key_models import CreatedApiKey

    with open_parts(context) as parts:
        overlap = timedelta(seconds=min(overlap_seconds, 10**9))
        key, secret = parts.run(parts.api_keys.rotate(name, overlap, actor()))
    if json:
        print_json(CreatedApiKey.of(key, secret))
    else:
        print(f"API key {key.name}\nsecret  {secret.reveal()}   (shown this once)")
        print(
            f"the secret before holds until {moment(key.previous_until)}"
            if key.previous_until
            else "the one before is void"
        )


@app.command(epilog="Example: entrepot api-key revoke platform")
def revoke(context: typer.Context, name: Name, json: Json = False) -> None:
    """Let an API key be refused from now on."""
    with open_parts(context) as parts:
        parts.run(parts.api_keys.revoke(name, actor()))
    print_done(json, f"{name} is revoked", api_key=name, status="revoked")


def _parse_end(text: str) -> datetime:
    """The instant that `90d` (from now) or a date (its beginning, UTC) means. Raises RequestInvalid."""
    match = _AFTER.fullmatch(text)
    try:
        if match is not None:
            return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])})
        end = datetime.fromisoformat(text)
        return (end if end.tzinfo else end.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RequestInvalid(
            f"--expires {text[:40]!r}: use a number with s, m, h or d, such as 90d, or a date"
        ) from error


def _describe(key: "ApiKey") -> Sequence[object]:
    limits = [str(network) for network in key.networks or ()]
    if key.requests_per_minute is not None:
        limits.append(f"{key.requests_per_minute}/min")
    if key.own_accounts_only:
        limits.append("own accounts")
    return (
        key.name,
        " ".join(sorted(key.scopes)),
        "any" if key.plans is None else " ".join(sorted(key.plans)),
        ", ".join(limits),
        *(at and f"{at:%Y-%m-%d %H:%M}" for at in (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)),
    )
