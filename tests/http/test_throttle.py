"""Who guesses credentials is slowed down; who has one is not, wherever they come from."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrepot.access.api_scopes import ApiScope
from entrepot.access.plans import parse_plans
from entrepot.access.secrets import API_KEY_PREFIX, CREDENTIAL_PREFIX, Secret
from entrepot.accounts import throttle as throttle_module
from tests.support.served import PLANS, TESTER, RegistryClient, Served, serve

BUDGET = {"failures_per_site": 4, "failures_per_account": 8}
PROXIES = "127.0.0.0/8"
NOON = datetime(2026, 11, 23, 12, 30, 20, tzinfo=UTC).timestamp()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path / "data", throttle=BUDGET, trusted_proxies=PROXIES) as served:
        served.parts.throttle._clock = lambda: NOON
        yield served


def basic(username: str, secret: Secret | None = None) -> dict[str, str]:
    """Basic authorization; with a secret that has the right form and is nobody's, unless one is given."""
    secret = secret or Secret.generate(CREDENTIAL_PREFIX)
    return {"Authorization": f"Basic {base64.b64encode(f'{username}:{secret.reveal()}'.encode()).decode()}"}


async def log_in(
    served: Served, headers: dict[str, str], *, site: str = "192.0.2.1", path: str = "/token"
) -> httpx.Response:
    return await served.http.get(path, headers=headers | {"X-Forwarded-For": site})


async def statuses(served: Served, count: int, *, site: str = "192.0.2.1", username: str = "") -> list[int]:
    """What so many guesses are answered; each of another name, unless one is given."""
    headers = [basic(username or f"ft-{number}-{time.monotonic_ns()}") for number in range(count)]
    return [(await log_in(served, one, site=site)).status_code for one in headers]


async def test_guesses_beyond_the_budget_are_put_off(served: Served, customer: RegistryClient) -> None:
    assert await statuses(served, 6) == [401] * 4 + [429] * 2
    name = customer.credential.username
    form = {"grant_type": "password", "username": name, "password": Secret.generate(CREDENTIAL_PREFIX).reveal()}
    for answer in (
        await log_in(served, basic(name)),
        await log_in(served, basic(name), path="/v2/"),
        await log_in(served, basic(name), path="/v2/smm/api/manifests/v1"),
        await log_in(served, basic("x", Secret("no secret at all"))),
        await served.http.post("/token", data=form, headers={"X-Forwarded-For": "192.0.2.1"}),
    ):
        assert answer.status_code == 429
        error = answer.json()["errors"][0]
        assert error["code"] == "TOOMANYREQUESTS"
        assert "try again in 40 seconds" in error["message"]
        assert answer.headers["retry-after"] == "40"
        assert "www-authenticate" not in answer.headers
    served.parts.throttle._clock = lambda: NOON + 40
    assert await statuses(served, 1) == [401]


async def test_whoever_has_a_secret_gets_in_meanwhile(
    served: Served, customer: RegistryClient, publisher: RegistryClient
) -> None:
    """From the attacked account and the attacker's own address; known here, forgotten since, or new."""
    await publisher.push_image("smm/api", "v1")
    token = await customer.token("repository:smm/api:pull")
    name = customer.credential.username
    assert set(await statuses(served, 20, username=name)) == {401, 429}
    assert (await log_in(served, customer.basic)).status_code == 200
    assert (await log_in(served, customer.basic, path="/v2/smm/api/manifests/v1")).status_code == 200
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await log_in(served, bearer, path="/v2/smm/api/manifests/v1")).status_code == 200
    await served.parts.plans.apply(
        parse_plans(PLANS | {"plans": PLANS["plans"] | {"new": PLANS["plans"]["free"]}}), TESTER
    )
    assert (await log_in(served, customer.basic)).status_code == 200
    newcomer = await served.client("free", "newcomer")
    assert (await log_in(served, newcomer.basic)).status_code == 200


async def test_clients_that_have_not_logged_in_yet_are_still_told_how(served: Served, customer: RegistryClient) -> None:
    await statuses(served, 6)
    answer = await log_in(served, {}, path="/v2/")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert (await log_in(served, {"Authorization": "Bearer x.y.z"}, path="/v2/")).status_code == 401


async def test_names_that_nobody_knows_cost_no_question_beyond_the_budget(
    served: Served, customer: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log_in(served, customer.basic)
    await statuses(served, 5)
    monkeypatch.setattr(throttle_module, "_LOOK_UPS", 0.0)
    asked: list[str] = []
    directory = served.parts.authenticator._directory
    find = directory.find

    async def noting(name: str) -> object:
        asked.append(name)
        return await find(name)

    monkeypatch.setattr(directory, "find", noting)
    assert await statuses(served, 20) == [429] * 20
    assert asked == []
    # Who logged in before is looked up, even if all was forgotten in the meantime.
    directory._standings.clear()
    assert (await log_in(served, customer.basic)).status_code == 200
    assert await statuses(served, 1, site="192.0.2.2") == [401]
    assert len(asked) == 2


def test_few_look_ups_are_left_for_all_who_are_over_budget(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(throttle_module.time, "monotonic", lambda: now)
    throttle = served.parts.throttle
    assert sum(throttle._take_look_up() for _ in range(100)) == throttle_module._LOOK_UPS
    now += 0.5
    assert sum(throttle._take_look_up() for _ in range(100)) == throttle_module._LOOK_UPS / 2


async def test_a_site_is_an_address_or_64_bits_of_one(served: Served) -> None:
    assert (await statuses(served, 5, site="2001:db8:1:2::1"))[-1] == 429
    assert await statuses(served, 1, site="2001:db8:1:2:ffff:ffff:ffff:ffff") == [429]
    assert await statuses(served, 1, site="2001:db8:1:3::1") == [401]
    assert (await statuses(served, 5, site="192.0.2.1"))[-1] == 429
    assert await statuses(served, 1, site="::ffff:192.0.2.1") == [429]
    assert await statuses(served, 1, site="192.0.2.2") == [401]


@pytest.mark.parametrize("is_account", [True, False])
async def test_a_name_is_protected_from_many_sites_whether_or_not_it_is_an_account(
    served: Served, customer: RegistryClient, is_account: bool
) -> None:
    name = customer.credential.username if is_account else "ft-nobody"
    found = [(await statuses(served, 1, site=f"198.51.100.{number}", username=name))[0] for number in range(10)]
    assert found == [401] * 8 + [429] * 2
    assert await statuses(served, 1, site="203.0.113.1") == [401]


async def test_what_was_right_once_is_no_guess(served: Served, customer: RegistryClient) -> None:
    await served.parts.accounts.revoke_credential(customer.credential.username, customer.credential.id, TESTER)
    for _ in range(10):
        answer = await log_in(served, customer.basic)
        assert answer.status_code == 401
        assert "revoked" in answer.text
    assert await statuses(served, 1) == [401]


async def test_guesses_are_counted_over_all_processes(served: Served, customer: RegistryClient, tmp_path: Path) -> None:
    async with serve(tmp_path / "data", throttle=BUDGET, trusted_proxies=PROXIES) as other:
        other.parts.throttle._clock = lambda: NOON
        assert await statuses(served, 3) == [401] * 3
        assert await statuses(other, 2) == [401] * 2
        deadline = time.monotonic() + 20
        while await statuses(served, 1) != [429] or await statuses(other, 1) != [429]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert (await log_in(other, customer.basic)).status_code == 200


async def test_a_credential_is_good_everywhere_at_once(
    served: Served, customer: RegistryClient, tmp_path: Path
) -> None:
    async with serve(tmp_path / "data", throttle=BUDGET, trusted_proxies=PROXIES) as other:
        assert (await log_in(other, customer.basic)).status_code == 200
        for _ in range(3):
            new = await served.client("free")
            assert new.credential.username == customer.credential.username
            answer = await log_in(served, new.basic)
            bearer = {"Authorization": f"Bearer {answer.json()['token']}"}
            # Whichever comes first: the other process has not heard of it.
            assert (await log_in(other, bearer, path="/v2/")).status_code == 200
            newer = await served.client("free")
            assert (await log_in(other, newer.basic)).status_code == 200


async def test_guessing_a_secret_asks_the_database_no_faster(
    served: Served, customer: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle_module, "_LOOK_UPS", 0.0)
    name = customer.credential.username
    assert (await log_in(served, customer.basic)).status_code == 200
    asked = []
    directory = served.parts.authenticator._directory
    monkeypatch.setattr(directory, "find_anew", _noting(directory.find_anew, asked))
    assert await statuses(served, 12, username=name) == [401] * 4 + [429] * 8
    assert asked == [name] * 5


def _noting(find: Callable[[str], Awaitable[Any]], asked: list[str]) -> Callable[[str], Awaitable[Any]]:
    async def find_noting(name: str) -> Any:
        asked.append(name)
        return await find(name)

    return find_noting


async def test_api_keys_are_guessed_no_faster(served: Served) -> None:
    _, secret = await served.parts.api_keys.create("platform", frozenset({ApiScope.PLANS_READ}), None, TESTER)

    async def list_plans(key: Secret) -> httpx.Response:
        return await log_in(served, {"Authorization": f"Bearer {key.reveal()}"}, path="/api/v1/plans")

    found = [(await list_plans(Secret.generate(API_KEY_PREFIX))).status_code for _ in range(6)]
    assert found == [401] * 4 + [429] * 2
    answer = await list_plans(Secret("entk_x"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "40")
    assert answer.json()["title"] == "Too many requests"
    assert (await list_plans(secret)).status_code == 200
    assert await statuses(served, 1) == [429]  # one budget for all that a site guesses


async def test_without_a_budget_nobody_is_put_off(tmp_path: Path) -> None:
    settings = {"failures_per_site": 0, "failures_per_account": 0}
    async with serve(tmp_path / "data", throttle=settings, trusted_proxies=PROXIES) as served:
        assert await statuses(served, 100, username="ft-nobody") == [401] * 100
