"""Requests that are sent again with the same Idempotency-Key."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from entrepot.storage.tables import idempotent_answers
from tests.support.api import ACCOUNTS, ADA, API_KEYS, Api, assert_problem, key
from tests.support.served import Served, rows_of


def once(text: str = "8e03978e-40d5-43dd-bc93-6894a57f9324") -> dict[str, str]:
    return {"Idempotency-Key": text}


async def count_credentials(admin: Api, name: str) -> int:
    return len((await admin.call("GET", f"{ACCOUNTS}/{name}/credentials")).json()["credentials"])


def assert_again(first: httpx.Response, again: httpx.Response) -> None:
    """The same status and body, but for what is shown once."""
    expected = first.json()
    expected.pop("login", None)
    expected.pop("secret", None)
    expected.get("credential", {}).pop("secret", None)
    assert (again.status_code, again.json()) == (first.status_code, expected)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_repeated_sign_up_is_answered_alike_but_for_the_secret(served: Served, platform: Api) -> None:
    first = await platform.call("POST", ACCOUNTS, json=ADA, headers=once())
    assert first.status_code == 201
    rows = rows_of(served)
    for _ in range(2):
        assert_again(first, await platform.call("POST", ACCOUNTS, json=ADA, headers=once()))
    assert rows_of(served) == rows
    # Without the key it is another request, which finds the account there.
    plain = await platform.call("POST", ACCOUNTS, json=ADA)
    assert (plain.status_code, plain.json()) == (200, {"account": first.json()["account"]})
    # That answer is kept, too.
    found = await platform.call("POST", ACCOUNTS, json=ADA, headers=once("another"))
    assert_again(found, await platform.call("POST", ACCOUNTS, json=ADA, headers=once("another")))


async def test_a_repeated_rotation_issues_one_credential(admin: Api, platform: Api) -> None:
    name = (await platform.sign_up("ada"))["account"]["name"]
    path = f"{ACCOUNTS}/{name}/credentials"
    first = await platform.call("POST", path, headers=once())
    # What is left out and what is written out are the same.
    for body in (None, {}, {"grace_seconds": 86400}):
        assert_again(first, await platform.call("POST", path, json=body, headers=once()))
    assert await count_credentials(admin, name) == 2
    assert_problem(await platform.call("POST", path, json={"grace_seconds": 5}, headers=once()), 422, "another request")
    assert await count_credentials(admin, name) == 2


async def test_a_repeated_api_key_is_made_once(admin: Api) -> None:
    body = {"name": "platform", "scopes": ["accounts:write"]}
    first = await admin.call("POST", API_KEYS, json=body, headers=once())
    assert_again(first, await admin.call("POST", API_KEYS, json=body, headers=once()))


async def test_the_key_is_of_its_request_and_of_its_api_key(served: Served, admin: Api, platform: Api) -> None:
    first = await platform.call("POST", ACCOUNTS, json=ADA, headers=once())
    other = await platform.call("POST", ACCOUNTS, json=ADA | {"external_id": "bob"}, headers=once())
    assert_problem(other, 422, "Idempotency-Key came with another request")
    name = first.json()["account"]["name"]
    assert_problem(await platform.call("POST", f"{ACCOUNTS}/{name}/credentials", headers=once()), 422)
    # Another API key's choice of the same text is a coincidence.
    assert (await admin.call("POST", ACCOUNTS, json=ADA, headers=once())).status_code == 200
    assert (await platform.call("GET", ACCOUNTS)).json()["accounts"] == [first.json()["account"]]


async def test_quotes_are_no_part_of_the_key(platform: Api) -> None:
    first = await platform.call("POST", ACCOUNTS, json=ADA, headers=once("abc"))
    assert_again(first, await platform.call("POST", ACCOUNTS, json=ADA, headers=once('"abc"')))


@pytest.mark.parametrize("text", ["", '""', '"', '"a', "a b", "a,b", "x" * 256, "é", "\x7f", '"a\\"b"', "a;b=1"])
async def test_a_key_that_is_none_is_refused(served: Served, platform: Api, text: str) -> None:
    headers = [("Idempotency-Key", text.encode())]
    rows = rows_of(served)
    request = served.http.build_request("POST", ACCOUNTS, json=ADA, headers=headers)  # type: ignore[arg-type]
    request.headers["Authorization"] = f"Bearer {platform.secret}"
    assert_problem(await served.http.send(request), 400, "Idempotency-Key")
    assert rows_of(served) == rows


async def test_two_keys_are_refused(served: Served, platform: Api) -> None:
    headers = [("Authorization", f"Bearer {platform.secret}"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert_problem(await served.http.post(ACCOUNTS, json=ADA, headers=headers), 400, "send one")


async def test_many_at_once_are_carried_out_once(admin: Api, platform: Api) -> None:
    name = (await platform.sign_up("ada"))["account"]["name"]
    path = f"{ACCOUNTS}/{name}/credentials"
    answers = await asyncio.gather(*(platform.call("POST", path, headers=once()) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["credential"]["id"] for answer in answers}) == 1
    assert ["secret" in answer.json()["credential"] for answer in answers].count(True) == 1
    assert await count_credentials(admin, name) == 2


async def test_a_refusal_is_not_kept(admin: Api, platform: Api) -> None:
    body = ADA | {"plan": "gold"}
    assert_problem(await admin.call("POST", ACCOUNTS, json=body, headers=once()), 422, "no plan")
    await admin.call("PUT", "/api/v1/plans/gold", json={"grants": [{"repositories": ["x"], "actions": ["pull"]}]})
    assert (await admin.call("POST", ACCOUNTS, json=body, headers=once())).status_code == 201


async def test_what_is_kept_holds_no_secret(served: Served, platform: Api, admin: Api) -> None:
    created = (await platform.call("POST", ACCOUNTS, json=ADA, headers=once("1"))).json()
    path = f"{ACCOUNTS}/{created['account']['name']}/credentials"
    second = (await platform.call("POST", path, headers=once("2"))).json()
    made = (await admin.call("POST", API_KEYS, json={"name": "x", "scopes": ["admin"]}, headers=once("3"))).json()
    kept = str(rows_of(served)["idempotent_answers"])
    assert len(rows_of(served)["idempotent_answers"]) == 3
    for secret in (created["credential"]["secret"], second["credential"]["secret"], made["secret"]):
        assert secret not in kept
        assert secret[5:] not in kept


async def test_erasing_an_account_erases_what_was_answered(served: Served, platform: Api) -> None:
    created = (await platform.call("POST", ACCOUNTS, json=ADA, headers=once())).json()
    assert "ada@example.com" in str(rows_of(served)["idempotent_answers"])
    await platform.call("DELETE", f"{ACCOUNTS}/{created['account']['name']}")
    assert "ada@example.com" not in str(rows_of(served))
    assert_problem(await platform.call("POST", ACCOUNTS, json=ADA, headers=once()), 404, "deleted since")
    # A late repetition brings nobody back; a new sign-up does.
    assert (await platform.call("GET", ACCOUNTS)).json()["accounts"] == []
    assert (await platform.call("POST", ACCOUNTS, json=ADA, headers=once("new"))).status_code == 201


async def test_after_a_day_the_key_is_free_again(served: Served, platform: Api) -> None:
    await platform.call("POST", ACCOUNTS, json=ADA, headers=once())

    def grow_old(hours: float) -> None:
        at = datetime.now(UTC) - timedelta(hours=hours)
        served.parts.database.write_now(
            lambda connection: connection.execute(sa.update(idempotent_answers).values(at=at))
        )

    other: dict[str, Any] = ADA | {"external_id": "bob"}
    grow_old(23.9)
    assert_problem(await platform.call("POST", ACCOUNTS, json=other, headers=once()), 422)
    grow_old(24.1)
    first = await platform.call("POST", ACCOUNTS, json=other, headers=once())
    assert first.status_code == 201
    assert_again(first, await platform.call("POST", ACCOUNTS, json=other, headers=once()))
    # A clock that was put back takes nothing from it.
    grow_old(-5)
    assert_again(first, await platform.call("POST", ACCOUNTS, json=other, headers=once()))


async def test_a_platform_without_a_plan_of_its_own_sees_no_more_of_the_answer(served: Served, admin: Api) -> None:
    other = await key(served, "other", "accounts:write", plans=["free"])
    await admin.sign_up("ada", plan="publisher")
    assert_problem(await other.call("POST", ACCOUNTS, json=ADA, headers=once()), 409, "may not see")
    assert rows_of(served)["idempotent_answers"] == []
