"""`entrepot account`: customers and their credentials."""

import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.output import Json, actor, moment, print_done, print_json, print_table
from entrepot.cli.parts import open_parts

if TYPE_CHECKING:
    from entrepot.accounts.service import Account

app = typer.Typer(help="Accounts: customers and their credentials.", no_args_is_help=True)

_SHOWN_REFUSALS = 5

Name = Annotated[str, typer.Argument(help="The account's name, such as ft-...", metavar="NAME")]


@app.command(epilog="Example: entrepot account create user-4711 --plan free --email ada@example.com")
def create(
    context: typer.Context,
    external_id: Annotated[str, typer.Argument(help="Your own id of the customer.", metavar="EXTERNAL_ID")],
    plan: Annotated[str, typer.Option(help="The plan that the account is on.")],
    email: Annotated[str | None, typer.Option(help="Kept with the account.")] = None,
    json: Json = False,
) -> None:
    """Create an account with its first credential; the secret is shown this once."""
    from entrepot.web.api.login import login_lines
    from entrepot.web.api.models import AccountBody, CreatedAccount, CredentialBody

    identity = {} if email is None else {"email": email}
    with open_parts(context) as parts:
        account, issued = parts.run(parts.accounts.create(external_id, plan, identity, None, actor()))
        login = None
        if issued is not None:
            login = login_lines(parts.public_url, issued)
    if json:
        body = CreatedAccount(account=AccountBody.of(account))
        if issued is not None:
            body = CreatedAccount(account=body.account, credential=CredentialBody.of(issued), login=login)
        print_json(body)
        return
    if issued is None or login is None:
        print(
            f"{account.name} exists already, on plan {account.plan}; "
            f"a new secret: entrepot account rotate {account.name}"
        )
        return
    print(f"account   {account.name} on plan {account.plan}")
    print(f"username  {issued.username}\nsecret    {issued.secret.reveal()}   (shown this once)")
    for tool in ("docker", "podman", "helm", "kubernetes"):
        print(f"{tool}:")
        print(textwrap.indent(login[tool], "    "))
    print("for containerd, a kubelet and a Secret as YAML: the same with --json")


@app.command("list", epilog="Example: entrepot account list --plan free --json")
def list_accounts(
    context: typer.Context,
    plan: Annotated[str | None, typer.Option(help="Only accounts on this plan.")] = None,
    json: Json = False,
) -> None:
    """Show the accounts, oldest first."""
    from entrepot.accounts.records import AccountFilter
    from entrepot.web.api.models import AccountBody

    with open_parts(context) as parts:
        found, last = [], 0
        while page := parts.run(parts.accounts.list_accounts(AccountFilter(plan=plan), last, 500)):
            found += page
            last = page[-1].id
    if json:
        print_json({"accounts": [AccountBody.of(account).model_dump(mode="json") for account in found]})
    else:
        print_table(
            ("ACCOUNT", "EXTERNAL ID", "PLAN", "STATUS", "CREATED"),
            ((one.name, one.external_id, one.plan, one.status, moment(one.created_at)) for one in found),
        )


@app.command(epilog="Example: entrepot account show ft-k3v5...")
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show an account, its credentials and what it pulled."""
    from entrepot.web.api.models import AccountBody, CredentialStateBody
    from entrepot.web.api.usage_models import Refusals, Usage

    with open_parts(context) as parts:
        account = parts.run(parts.accounts.get(name))
        states = parts.run(parts.accounts.list_credentials(name))
        usage = Usage.of(name, parts.run(parts.reports.usage_of(account.id)))
        refusals = Refusals.of(name, parts.run(parts.reports.refusals_of(account.id)))
    if json:
        print_json(
            {
                "account": AccountBody.of(account).model_dump(mode="json"),
                "credentials": [CredentialStateBody.of(state).model_dump(mode="json") for state in states],
                "usage": usage.model_dump(mode="json"),
                "refusals": refusals.model_dump(mode="json")["refusals"],
            }
        )
        return
    print(f"{account.name}  plan {account.plan}  {account.status}  external id {account.external_id}")
    print(f"  {account.description}")
    print(f"pulled {usage.pulls} times, {usage.bytes_served} bytes, last {moment(usage.last_pull_at) or 'never'}")
    if usage.clients:
        clients = ", ".join(seen.name for seen in usage.clients)
        print(f"  {usage.version_count} versions, by {clients}, from {usage.network_count} networks")
    print_table(
        ("CREDENTIAL", "STATUS", "CREATED", "EXPIRES", "REVOKED", "LAST USED"),
        (
            (
                state.id,
                state.status,
                *map(moment, (state.created_at, state.expires_at, state.revoked_at, state.last_used_at)),
            )
            for state in states
        ),
    )
    for state in states:
        if state.warning:
            print(f"WARNING: credential {state.id} is {state.warning}")
    for refusal in refusals.refusals[:_SHOWN_REFUSALS]:
        print(f"refused {refusal.times}x, last {moment(refusal.last_at)}, {refusal.reason}: {refusal.message}")


@app.command(epilog="Example: entrepot account rotate ft-k3v5... --grace-seconds 86400")
def rotate(
    context: typer.Context,
    name: Name,
    grace_seconds: Annotated[int, typer.Option(help="How long the old secret still works.", min=0)] = 86400,
    lifetime_seconds: Annotated[
        int | None, typer.Option(help="How long the new one lives; at most what the plan allows.", min=1)
    ] = None,
    json: Json = False,
) -> None:
    """Issue a new secret; the old one dies after the grace."""
    from entrepot.web.api.login import login_lines
    from entrepot.web.api.models import CreatedCredential, CredentialBody

    with open_parts(context) as parts:
        grace = timedelta(seconds=min(grace_seconds, 10**9))
        lifetime = None if lifetime_seconds is None else timedelta(seconds=min(lifetime_seconds, 10**9))
        issued = parts.run(parts.accounts.issue_credential(name, grace, actor(), lifetime=lifetime))
        login = login_lines(parts.public_url, issued)
    if json:
        print_json(CreatedCredential(credential=CredentialBody.of(issued), login=login))
    else:
        print(f"username  {issued.username}\nsecret    {issued.secret.reveal()}   (shown this once)")


@app.command(epilog="Example: entrepot account suspend ft-k3v5...")
def suspend(context: typer.Context, name: Name, json: Json = False) -> None:
    """Stop an account's pulls now, keeping its credentials."""
    with open_parts(context) as parts:
        account = parts.run(parts.accounts.suspend(name, actor()))
    _print_state(account, json=json)


@app.command(epilog="Example: entrepot account resume ft-k3v5...")
def resume(context: typer.Context, name: Name, json: Json = False) -> None:
    """Let a suspended account go on with the credentials it had."""
    with open_parts(context) as parts:
        account = parts.run(parts.accounts.resume(name, actor()))
    _print_state(account, json=json)


@app.command(epilog="Example: entrepot account delete ft-k3v5...")
def delete(context: typer.Context, name: Name, json: Json = False) -> None:
    """Erase who an account was, and revoke its credentials now; its counts stay."""
    with open_parts(context) as parts:
        parts.run(parts.accounts.delete(name, actor()))
    print_done(json, f"{name} is deleted", account=name, status="deleted")


def _print_state(account: "Account", *, json: bool) -> None:
    from entrepot.web.api.models import AccountBody

    if json:
        print_json(AccountBody.of(account))
    else:
        print(f"{account.name} is {account.status}")
