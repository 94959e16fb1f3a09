"""Refresh tokens live and die with the credential that they stand for, and are worth nothing elsewhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from entrepot.access.plans import parse_plans
from entrepot.access.refresh_tokens import RefreshToken
from entrepot.access.secrets import Secret
from tests.support.served import PLANS, TESTER, RegistryClient, Served, rows_of, serve

API = "repository:smm/api:pull"


async def log_in(served: Served, client: RegistryClient) -> str:
    answer = await served.http.get("/token?offline_token=true", headers=client.basic)
    assert answer.status_code == 200
    return str(answer.json()["refresh_token"])


async def refresh(served: Served, token: str, **fields: str) -> tuple[int, str]:
    """(status, message or access token)."""
    form = {"grant_type": "refresh_token", "refresh_token": token, "scope": API, **fields}
    answer = await served.http.post("/token", data=form)
    document = answer.json()
    return answer.status_code, document.get("access_token") or document["errors"][0]["message"]


async def rotate(served: Served, client: RegistryClient, grace: timedelta) -> None:
    await served.parts.accounts.issue_credential(client.credential.username, grace, TESTER)


async def revoke(served: Served, client: RegistryClient) -> None:
    await served.parts.accounts.revoke_credential(client.credential.username, client.credential.id, TESTER)


async def suspend(served: Served, client: RegistryClient) -> None:
    await served.parts.accounts.suspend(client.credential.username, TESTER)


async def delete(served: Served, client: RegistryClient) -> None:
    await served.parts.accounts.delete(client.credential.username, TESTER)


async def rotate_at_once(served: Served, client: RegistryClient) -> None:
    await rotate(served, client, timedelta(0))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        pytest.param(revoke, "this credential was revoked", id="revoked"),
        pytest.param(rotate_at_once, "this credential was revoked", id="rotated without a grace"),
        pytest.param(suspend, "the account is suspended", id="suspended"),
        pytest.param(delete, "log in again", id="deleted"),
    ],
)
async def test_ends_at_once_with_its_credential(
    served: Served, customer: RegistryClient, end: Callable[[Served, RegistryClient], Awaitable[None]], message: str
) -> None:
    token = await log_in(served, customer)
    status, access = await refresh(served, token)
    assert status == 200
    await end(served, customer)
    status, said = await refresh(served, token)
    assert status == 401
    assert message in said
    # So does what it was used for.
    answer = await served.http.get("/v2/", headers={"Authorization": f"Bearer {access}"})
    assert answer.status_code == 401


async def test_lives_through_the_grace_of_a_rotation_and_no_longer(served: Served, customer: RegistryClient) -> None:
    token = await log_in(served, customer)
    await rotate(served, customer, timedelta(hours=1))
    assert (await refresh(served, token))[0] == 200
    await rotate(served, customer, timedelta(0))
    assert (await refresh(served, token))[0] == 401


async def test_expires_with_its_credential(tmp_path: Path) -> None:
    async with serve(tmp_path / "data") as served:
        account, issued = await served.parts.accounts.create(
            "short", "free", {}, None, TESTER, lifetime=timedelta(seconds=2)
        )
        assert issued is not None
        client = RegistryClient(served.http, issued)
        token = await log_in(served, client)
        await served.parts.accounts.set_expiry(account.name, None, TESTER)
        deadline = time.monotonic() + 20
        answer = await refresh(served, token)
        while answer[0] == 200 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            answer = await refresh(served, token)
        assert answer[0] == 401
        assert "this credential expired" in answer[1]


async def test_follows_the_plan(served: Served, customer: RegistryClient) -> None:
    token = await log_in(served, customer)
    narrow: dict[str, Any] = {"plans": {"free": {"grants": [{"repositories": ["other"], "actions": ["pull"]}]}}}
    await served.parts.plans.apply(parse_plans(narrow), TESTER)
    form = {"grant_type": "refresh_token", "refresh_token": token, "scope": API}
    assert (await served.http.post("/token", data=form)).json()["scope"] == ""
    await served.parts.plans.apply(parse_plans(PLANS), TESTER)
    assert (await served.http.post("/token", data=form)).json()["scope"] == API


async def test_no_kind_of_token_passes_for_another(served: Served, customer: RegistryClient) -> None:
    token = await log_in(served, customer)
    _, access = await refresh(served, token)
    secret, name = customer.credential.secret.reveal(), customer.credential.username
    for wrong in (access, secret):
        assert (await refresh(served, wrong))[0] == 401
    assert (await served.http.get("/v2/", headers={"Authorization": f"Bearer {token}"})).status_code == 401
    for path in ("/v2/", "/token"):
        assert (await served.http.get(path, auth=(name, token))).status_code == 401
        assert (await served.http.get(path, auth=(name, access))).status_code == 401


async def test_is_worth_nothing_at_another_service(tmp_path: Path) -> None:
    async with serve(tmp_path / "data") as here:
        token = await log_in(here, await here.client("free"))
        assert (await refresh(here, token, service="registry.example.com"))[0] == 400
    async with serve(tmp_path / "data", public_url="https://registry.example.com") as elsewhere:
        assert (await refresh(elsewhere, token))[0] == 401


async def test_is_worth_nothing_changed(served: Served, customer: RegistryClient, publisher: RegistryClient) -> None:
    token, other = await log_in(served, customer), await log_in(served, publisher)
    for at in range(0, len(token), 7):
        assert (await refresh(served, token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]))[0] == 401
    for wrong in ("", "entr_", token[:-1], token + "A", "entr_" + "A" * 300, "ü" * 60):
        assert (await refresh(served, wrong))[0] == 401
    # As every form that holds one: it is no form of ours.
    assert (await refresh(served, "\x00" * 60))[0] == 400
    own, foreign = RefreshToken.parse(Secret(token)), RefreshToken.parse(Secret(other))
    assert own is not None
    assert foreign is not None
    for mixed in (
        RefreshToken(own.account, own.credential_id, foreign.proof),
        RefreshToken(own.account, foreign.credential_id, foreign.proof),
        RefreshToken(foreign.account, own.credential_id, own.proof),
        RefreshToken("ft-nobody", own.credential_id, own.proof),
        RefreshToken("ft-\x00", own.credential_id, own.proof),
    ):
        assert (await refresh(served, mixed.write().reveal()))[0] == 401


async def test_guesses_are_slowed_down_and_owners_are_not(tmp_path: Path) -> None:
    async with serve(tmp_path / "data", throttle={"failures_per_site": 3}) as served:
        customer = await served.client("free")
        token = await log_in(served, customer)
        for wrong in ("entr_" + "A" * 90, token[:-1], "", (await customer.token(API))):
            statuses = [(await refresh(served, wrong))[0] for _ in range(4)]
            assert statuses[-1] == 429
        assert (await refresh(served, token))[0] == 200


async def test_needs_no_row(served: Served, customer: RegistryClient) -> None:
    """What is used most must not write; a login is counted like any other, a moment later."""
    await served.parts.usage.flush()
    before = rows_of(served)
    token = await log_in(served, customer)
    for _ in range(3):
        assert (await refresh(served, token))[0] == 200
    after = rows_of(served)
    counted = {"account_steps", "credentials"}
    assert {name: rows for name, rows in after.items() if name not in counted} == {
        name: rows for name, rows in before.items() if name not in counted
    }
    # The same credential has the same one, so nothing piles up anywhere.
    assert await log_in(served, customer) == token


async def test_says_nothing_in_the_log(
    served: Served, customer: RegistryClient, capsys: pytest.CaptureFixture[str]
) -> None:
    token = await log_in(served, customer)
    await refresh(served, token)
    await refresh(served, token[:-1])
    assert token[:40] not in "".join(capsys.readouterr())
