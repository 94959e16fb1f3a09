"""Accounts, their credentials and their usage."""

from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from entrepot.accounts.answers import KeptAnswer
from entrepot.accounts.records import AccountFilter
from entrepot.accounts.service import Account, IssuedCredential
from entrepot.web.api import models
from entrepot.web.api.cursors import read_cursor, write_cursor
from entrepot.web.api.guard import Caller, ReadsAccounts, WritesAccounts
from entrepot.web.api.idempotency import IdempotencyKey, answer_again
from entrepot.web.api.login import login_lines

router = APIRouter(tags=["accounts"])


@router.post(
    "/accounts",
    status_code=201,
    response_model=models.CreatedAccount,
    response_model_exclude_unset=True,
    responses={200: {"model": models.CreatedAccount, "description": "It exists already."}},
)
async def create_account(
    body: models.AccountRequest, caller: WritesAccounts, again: IdempotencyKey, response: Response
) -> models.CreatedAccount | Response:
    """Create the account of a sign-up, with its first credential; 200 and no credential when it exists already."""
    caller.key.verify_plan(body.plan)
    once = caller.once(again, body, _keep_account)
    change = partial(
        caller.services.accounts.create,
        body.external_id,
        body.plan,
        body.identity,
        body.expires_at,
        caller.actor,
        labels=body.labels,
        lifetime=_duration(body.lifetime_seconds),
        reach=caller.reach,
        once=once,
    )
    done = await caller.services.answers.once(once, change)
    if isinstance(done, KeptAnswer):
        return answer_again(done)
    account, issued = done
    if issued is None:
        response.status_code = 200
        return models.CreatedAccount(account=models.AccountBody.of(account))
    return models.CreatedAccount(
        account=models.AccountBody.of(account),
        credential=models.CredentialBody.of(issued),
        login=_login(caller, issued),
    )


@router.get("/accounts")
async def list_accounts(
    caller: ReadsAccounts,
    external_id: str | None = None,
    plan: str | None = None,
    status: Literal["active", "suspended", "deleted"] | None = None,
    q: Annotated[str | None, Query(max_length=255, description="Part of the name, external id or identity.")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> models.Accounts:
    """Accounts that fit, oldest first; deleted ones only when asked for."""
    wanted = AccountFilter(external_id, plan, status, q, caller.reach)
    found = await caller.services.accounts.list_accounts(wanted, read_cursor(cursor) or 0, limit + 1)
    page = found[:limit]
    return models.Accounts(
        accounts=[models.AccountBody.of(account) for account in page],
        next_cursor=write_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/accounts/{name}")
async def get_account(name: str, caller: ReadsAccounts) -> models.AccountBody:
    """One account."""
    return models.AccountBody.of(await caller.get_account(name))


@router.patch("/accounts/{name}")
async def change_account(name: str, body: models.AccountChange, caller: WritesAccounts) -> models.AccountBody:
    """Suspend or resume an account, put it on another plan, label it or let it end; it holds for issued tokens, too."""
    account = await caller.get_account(name)
    accounts = caller.services.accounts
    if body.plan is not None:
        caller.key.verify_plan(body.plan)
        account = await accounts.change_plan(name, body.plan, caller.actor)
    if body.labels is not None:
        account = await accounts.relabel(name, body.labels, caller.actor)
    if "expires_at" in body.model_fields_set:
        account = await accounts.set_expiry(name, body.expires_at, caller.actor)
    if body.status == "suspended":
        account = await accounts.suspend(name, caller.actor)
    elif body.status == "active":
        account = await accounts.resume(name, caller.actor)
    return models.AccountBody.of(account)


@router.delete("/accounts/{name}", status_code=204)
async def delete_account(name: str, caller: WritesAccounts) -> None:
    """Erase who the account was and revoke its credentials; its counts stay."""
    await caller.get_account(name)
    await caller.services.accounts.delete(name, caller.actor)


@router.post("/accounts/{name}/credentials", status_code=201, response_model=models.CreatedCredential)
async def issue_credential(
    name: str, caller: WritesAccounts, again: IdempotencyKey, body: models.CredentialRequest | None = None
) -> models.CreatedCredential | Response:
    """Issue a new credential; those that the account has die after the grace."""
    await caller.get_account(name)
    body = body or models.CredentialRequest.model_validate({})
    once = caller.once(again, body, _keep_credential)
    change = partial(
        caller.services.accounts.issue_credential,
        name,
        timedelta(seconds=body.grace_seconds),
        caller.actor,
        lifetime=_duration(body.lifetime_seconds),
        once=once,
    )
    done = await caller.services.answers.once(once, change)
    if isinstance(done, KeptAnswer):
        return answer_again(done)
    return models.CreatedCredential(credential=models.CredentialBody.of(done), login=_login(caller, done))


@router.get("/accounts/{name}/credentials")
async def list_credentials(name: str, caller: ReadsAccounts) -> models.Credentials:
    """The newest credentials of an account, without their secrets."""
    await caller.get_account(name)
    states = await caller.services.accounts.list_credentials(name)
    return models.Credentials(credentials=[models.CredentialStateBody.of(state) for state in states])


@router.delete("/accounts/{name}/credentials/{credential_id}", status_code=204)
async def revoke_credential(name: str, credential_id: str, caller: WritesAccounts) -> None:
    """Revoke a credential, and with it every token that was issued for it, now."""
    await caller.get_account(name)
    await caller.services.accounts.revoke_credential(name, credential_id, caller.actor)


def _keep_account(made: tuple[Account, IssuedCredential | None]) -> KeptAnswer:
    account, issued = made
    body = {"account": models.AccountBody.of(account).model_dump(mode="json")}
    if issued is None:
        return KeptAnswer(200, body, account.name)
    return KeptAnswer(201, body | {"credential": _without_secret(issued)}, account.name)


def _keep_credential(issued: IssuedCredential) -> KeptAnswer:
    return KeptAnswer(201, {"credential": _without_secret(issued)}, issued.username)


def _without_secret(issued: IssuedCredential) -> dict[str, Any]:
    return models.CredentialBody.of(issued).model_dump(mode="json", exclude={"secret"})


def _login(caller: Caller, issued: IssuedCredential) -> dict[str, str]:
    return login_lines(caller.services.public_url, issued)


def _duration(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
