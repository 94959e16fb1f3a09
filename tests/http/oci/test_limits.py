"""What a plan's limits let through on `/v2/`, over every process, and what is told of them."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from entrepot.access.plans import parse_plans
from entrepot.accounts.limits import UNCHECKED
from entrepot.errors import DatabaseUnavailable
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.storage import counters
from entrepot.storage.tables import events
from tests.support.content import Image, index_of
from tests.support.served import PLANS, TESTER, RegistryClient, Served, serve
from tests.support.servers import Redis

GRANTS = PLANS["plans"]["free"]["grants"]
PULL = "repository:smm/api:pull"
# In the middle of an hour and of a day, so that no window ends during a test.
NOON = datetime(2026, 11, 23, 12, 30, tzinfo=UTC).timestamp()
LIMIT_HEADERS = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "docker-ratelimit-source")


class Clock:
    """The time for everything that counts, in unix seconds."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now

    def set(self, served: Served) -> None:
        for part in (served.parts.usage, served.parts.limiter):
            part._clock = self  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges take their time on a busy machine; given up, they let pulls through."""
    monkeypatch.setattr(counters, "_ANSWER_SECONDS", 30.0)
    monkeypatch.setattr(counters, "_PATIENCE_SECONDS", 60.0)


@pytest.fixture
def clock(served: Served) -> Clock:
    clock = Clock()
    clock.set(served)
    return clock


@pytest.fixture
async def images(publisher: RegistryClient) -> list[Image]:
    return await push_images(publisher)


async def push_images(publisher: RegistryClient, count: int = 6) -> list[Image]:
    return [await publisher.push_image("smm/api", f"v{n}", Image(layer=f"layer {n}".encode())) for n in range(count)]


async def limit(served: Served, plan: str = "free", **limits: Any) -> None:
    """Put a plan with these limits in force."""
    document: dict[str, Any] = {"grants": GRANTS}
    if limits:
        document["limits"] = limits
    await served.parts.plans.apply(parse_plans({"plans": {plan: document}}), TESTER)


async def pull(client: RegistryClient, reference: object, method: str = "GET", **headers: str) -> httpx.Response:
    return await client.call(method, f"/v2/smm/api/manifests/{reference}", headers=headers)


async def pull_with(served: Served, token: str, reference: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return await served.http.get(f"/v2/smm/api/manifests/{reference}", headers=headers)


async def count_pulls(served: Served, client: RegistryClient) -> int:
    await served.parts.usage.flush()
    account = await served.parts.accounts.get(client.credential.username)
    return sum(part.pulls for part in (await served.parts.reports.usage_of(account.id)).repositories)


def told(answer: httpx.Response) -> tuple[str, ...]:
    """The headers that speak of limits."""
    return tuple(answer.headers.get(name, "") for name in LIMIT_HEADERS)


async def test_pulls_beyond_the_limit_are_refused_until_the_hour_ends(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, pulls_per_hour=3)
    name = customer.credential.username
    for number in range(3):
        answer = await pull(customer, f"v{number}")
        assert answer.status_code == 200
        assert told(answer) == ("3;w=3600", f"{2 - number};w=3600", "1800", name)
    answer = await pull(customer, "v3")
    assert answer.status_code == 429
    error = answer.json()["errors"][0]
    assert error["code"] == "TOOMANYREQUESTS"
    assert "plan 'free' allows 3 pulls per hour" in error["message"]
    assert "2026-11-23 13:00 UTC" in error["message"]
    assert answer.headers["retry-after"] == "1800"
    assert told(answer) == ("3;w=3600", "0;w=3600", "1800", name)
    assert await count_pulls(served, customer) == 3
    clock.now += 1800
    answer = await pull(customer, "v3")
    assert (answer.status_code, answer.headers["ratelimit-remaining"]) == (200, "2;w=3600")


async def test_what_is_no_pull_costs_nothing_and_is_never_refused(
    served: Served, publisher: RegistryClient, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await publisher.push_manifest("smm/api", "index", index_of(images[0]), media_types.OCI_INDEX)
    await limit(served, pulls_per_hour=1)
    for _ in range(2):
        answer = await pull(customer, "v1", "HEAD")
        assert (answer.status_code, answer.headers["ratelimit-remaining"]) == (200, "1;w=3600")
    assert (await pull(customer, "index")).status_code == 200
    unlimited = [
        await pull(customer, "index"),  # again, a moment later
        await pull(customer, "index", "HEAD"),
        await pull(customer, "v1", "HEAD"),
        await pull(customer, images[0].digest),  # a child
    ]
    for answer in unlimited:
        assert (answer.status_code, answer.headers["ratelimit-remaining"]) == (200, "0;w=3600")
    answer = await pull(customer, "v1", **{"If-None-Match": f'"{images[1].digest}"'})
    assert (answer.status_code, answer.headers["ratelimit-remaining"]) == (304, "0;w=3600")
    for path in (f"blobs/{Digest.of(images[0].layer)}", "tags/list", f"referrers/{images[0].digest}"):
        answer = await customer.call("GET", f"/v2/smm/api/{path}")
        assert answer.status_code == 200
        assert told(answer) == ("",) * 4
    assert (await pull(customer, "v1")).status_code == 429
    clock.now += 61  # no re-check any more
    assert (await pull(customer, "index")).status_code == 429
    assert await count_pulls(served, customer) == 1


async def test_answers_that_are_remembered_are_limited_too(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, pulls_per_hour=2)
    token = await customer.token(PULL)
    assert (await pull_with(served, token, "v1")).status_code == 200
    again = await pull_with(served, token, "v1")
    assert (again.status_code, told(again)[1]) == (200, "1;w=3600")
    clock.now += 61
    assert (await pull_with(served, token, "v1")).headers["ratelimit-remaining"] == "0;w=3600"
    clock.now += 61
    refused = await pull_with(served, token, "v1")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1678")
    assert refused.json()["errors"][0]["code"] == "TOOMANYREQUESTS"
    await served.parts.usage.flush()
    account = await served.parts.accounts.get(customer.credential.username)
    (row,) = await served.parts.reports.refusals_of(account.id)
    assert (row.reason, row.repository, row.times) == ("pulls_per_hour", "smm/api", 1)


async def test_accounts_without_limits_are_told_of_none(
    served: Served, images: list[Image], customer: RegistryClient
) -> None:
    for _ in range(2):
        for method in ("GET", "HEAD"):
            assert told(await pull(customer, "v1", method)) == ("",) * 4
    await limit(served, bytes_per_month="1TB")
    assert told(await pull(customer, "v2")) == ("",) * 4  # no limit of pulls


async def test_another_plan_and_another_limit_hold_at_once_with_the_same_token(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, pulls_per_hour=1)
    await limit(served, "larger", pulls_per_hour=3, pulls_per_day=1000)
    token = await customer.token(PULL)
    assert (await pull_with(served, token, "v1")).status_code == 200
    assert (await pull_with(served, token, "v2")).status_code == 429
    await limit(served, pulls_per_hour=2)
    assert (await pull_with(served, token, "v2")).status_code == 200
    assert (await pull_with(served, token, "v3")).status_code == 429
    await served.parts.accounts.change_plan(customer.credential.username, "larger", TESTER)
    answer = await pull_with(served, token, "v3")
    assert told(answer)[:2] == ("3;w=3600", "0;w=3600")  # what was pulled on the other plan counts
    assert (await pull_with(served, token, "v4")).status_code == 429
    await served.parts.accounts.change_plan(customer.credential.username, "publisher", TESTER)
    assert told(await pull_with(served, token, "v4")) == ("",) * 4


async def test_what_was_pulled_before_there_was_a_limit_counts(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    for number in range(3):
        await pull(customer, f"v{number}")
    await served.parts.usage.flush()
    await limit(served, pulls_per_hour=4, pulls_per_day=100)
    assert (await pull(customer, "v3", "HEAD")).headers["ratelimit-remaining"] == "1;w=3600"
    assert (await pull(customer, "v3")).status_code == 200
    assert (await pull(customer, "v4")).status_code == 429


async def test_days_are_counted_over_hours(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, pulls_per_hour=2, pulls_per_day=3)
    assert told(await pull(customer, "v0"))[0] == "2;w=3600"
    await pull(customer, "v1")
    assert "per hour" in (await pull(customer, "v2")).text
    clock.now += 3600
    answer = await pull(customer, "v2")
    assert told(answer)[:2] == ("3;w=86400", "0;w=86400")
    refused = await pull(customer, "v3")
    assert "per day" in refused.text
    assert int(refused.headers["retry-after"]) == 86400 - 13 * 3600 - 1800
    clock.now += 86400
    assert (await pull(customer, "v3")).status_code == 200


async def test_when_the_months_bytes_are_used_up_a_pull_under_way_goes_on(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, bytes_per_month=len(images[0].manifest) + 1)
    assert (await pull(customer, "v0")).status_code == 200
    assert (await pull(customer, "v1")).status_code == 200  # one byte is left, and nobody knows how many it takes
    refused = await pull(customer, "v2")
    assert refused.status_code == 429
    assert "per month" in refused.text
    assert int(refused.headers["retry-after"]) == int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() - NOON)
    assert told(refused) == ("",) * 4
    blob = await customer.call("GET", f"/v2/smm/api/blobs/{Digest.of(images[1].layer)}")
    assert blob.content == images[1].layer
    clock.now = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert (await pull(customer, "v2")).status_code == 200


async def test_blobs_use_up_the_months_bytes(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, bytes_per_month=5 * len(images[0].layer))
    for _ in range(5):
        await customer.call("GET", f"/v2/smm/api/blobs/{Digest.of(images[0].layer)}")
    assert (await pull(customer, "v0")).status_code == 429


async def test_only_so_many_networks_pull_within_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(tmp_path / "data", trusted_proxies="127.0.0.0/8") as served:
        clock = Clock()
        clock.set(served)
        await push_images(await served.client("publisher"))
        customer = await served.client("free")
        await limit(served, networks_per_hour=2)

        async def status(address: str, reference: str) -> int:
            return (await pull(customer, reference, **{"X-Forwarded-For": address})).status_code

        assert await status("192.0.2.1", "v0") == 200
        assert await status("192.0.2.200", "v1") == 200  # the same /24
        assert await status("2001:db8::1", "v0") == 200
        refused = await pull(customer, "v0", **{"X-Forwarded-For": "198.51.100.1"})
        assert refused.status_code == 429
        assert "pulls from 2 networks per hour, and no other ones until" in refused.text
        assert refused.headers["retry-after"] == "1800"
        assert await status("192.0.2.1", "v2") == 200  # those that are known go on
        assert await status("2001:db8:0:ffff::1", "v3") == 200
        clock.now += 3600
        assert await status("198.51.100.1", "v0") == 200


async def test_the_same_pull_many_times_at_once_is_one(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    await limit(served, pulls_per_hour=1)
    answers = await asyncio.gather(*(pull(customer, "v1") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert (await pull(customer, "v2")).status_code == 429
    assert await count_pulls(served, customer) == 1


async def test_no_more_begin_at_once_than_there_is_room_for(
    served: Served, publisher: RegistryClient, customer: RegistryClient, clock: Clock
) -> None:
    await push_images(publisher, 30)
    await limit(served, pulls_per_hour=20)
    answers = await asyncio.gather(*(pull(customer, f"v{number}") for number in range(30)))
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 10
    assert await count_pulls(served, customer) == 20


class TestProcesses:
    """Several processes are as one: on SQLite, and with Redis."""

    @pytest.fixture(params=["database", "redis"])
    def settings(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        if request.param == "database":
            return {}
        server: Redis = request.getfixturevalue("redis_server")
        return {"redis_url": server.url}

    async def test_a_limit_holds_over_all(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        async with serve(tmp_path / "data", **settings) as here, serve(tmp_path / "data", **settings) as there:
            await push_images(await here.client("publisher"), 31)
            customer = await here.client("free")
            await limit(here, pulls_per_hour=20)
            clock = Clock()
            clock.set(here)
            clock.set(there)
            token = await customer.token(PULL)
            answers = await asyncio.gather(
                *(pull_with((here, there)[number % 2], token, f"v{number}") for number in range(30))
            )
            assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 10
            for served in (here, there):
                assert (await pull_with(served, token, "v30")).status_code == 429
                assert await count_pulls(served, customer) in range(21)
            assert await count_pulls(here, customer) == 20

    async def test_a_pull_that_others_left_no_room_for_is_not_counted(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        async with serve(tmp_path / "data", **settings) as here, serve(tmp_path / "data", **settings) as there:
            await push_images(await here.client("publisher"), 9)
            customer = await here.client("free")
            elsewhere = RegistryClient(there.http, customer.credential)
            await limit(here, pulls_per_hour=5)
            clock = Clock()
            clock.set(here)
            clock.set(there)
            await pull(customer, "v0", "HEAD")  # and knows of none
            for number in range(5):
                assert (await pull(elsewhere, f"v{number}")).status_code == 200
            assert (await pull(customer, "v5")).status_code == 429
            await limit(here, pulls_per_hour=7)
            assert (await pull(customer, "v5", "HEAD")).headers["ratelimit-remaining"] == "2;w=3600"
            assert [(await pull(customer, f"v{number}")).status_code for number in (5, 6, 7)] == [200, 200, 429]

    async def test_what_one_counted_the_others_tell_within_seconds(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        async with serve(tmp_path / "data", **settings) as here, serve(tmp_path / "data", **settings) as there:
            await push_images(await here.client("publisher"))
            await limit(here, pulls_per_hour=1000, bytes_per_month="1TB", networks_per_hour=2)
            customer = await here.client("free")
            elsewhere = RegistryClient(there.http, customer.credential)
            clock = Clock()
            clock.set(here)
            clock.set(there)
            for number in range(3):
                assert (await pull(customer, f"v{number}")).status_code == 200

            async def remaining(client: RegistryClient) -> str:
                clock.now += 1  # whoever looks asks once a second
                return (await pull(client, "v0", "HEAD")).headers["ratelimit-remaining"]

            await until(lambda: remaining(elsewhere), "997;w=3600")
            await pull(elsewhere, "v3")
            await until(lambda: remaining(customer), "996;w=3600")

    async def test_one_that_starts_knows_what_was_pulled_before(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        clock = Clock()
        async with serve(tmp_path / "data", **settings) as before:
            clock.set(before)
            await push_images(await before.client("publisher"))
            await limit(before, pulls_per_hour=3)
            credential = (await before.client("free")).credential
            for number in range(3):
                assert (await pull(RegistryClient(before.http, credential), f"v{number}")).status_code == 200
        async with serve(tmp_path / "data", **settings) as after:
            clock.set(after)
            await limit(after, pulls_per_hour=3)
            customer = RegistryClient(after.http, credential)
            clock.now += 61
            assert (await pull(customer, "v3")).status_code == 429
            assert (await pull(customer, "v0", "HEAD")).headers["ratelimit-remaining"] == "0;w=3600"


async def until(ask: Callable[[], Any], expected: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while (found := await ask()) != expected:
        assert time.monotonic() < deadline, f"{found} instead of {expected}"
        await asyncio.sleep(0.05)


async def test_an_explanation_says_what_is_used_up(
    served: Served, images: list[Image], customer: RegistryClient
) -> None:
    await limit(served, pulls_per_day=2, networks_per_hour=1)
    name = customer.credential.username

    async def explain() -> tuple[bool, list[str]]:
        await served.parts.usage.flush()
        explanation, _ = await served.parts.explanations.explain(name, RepositoryName("smm/api"), Tag("v0"))
        return explanation.is_allowed, explanation.steps

    await pull(customer, "v0")
    is_allowed, steps = await explain()
    assert is_allowed
    assert steps[2:4] == ["limit of 2 pulls per day: 1 used", "limit of pulls from 1 network per hour: 1 used"]
    await pull(customer, "v1")
    is_allowed, steps = await explain()
    assert not is_allowed
    assert steps[-1].startswith("refused: plan 'free' allows 2 pulls per day, and nothing is left of that until")


async def test_where_counting_fails_pulls_go_through(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limit(served, pulls_per_hour=2)
    await pull(customer, "v0", "HEAD")

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("away")

    unchecked = UNCHECKED._value.get()
    with monkeypatch.context() as away:
        away.setattr(served.parts.limiter._counters._stores[0].store, "exchange", fail)
        assert (await pull(customer, "v0")).status_code == 200
        assert (await pull(customer, "v1")).status_code == 200
        assert UNCHECKED._value.get() > unchecked
        # What this process knows, it still knows.
        assert (await pull(customer, "v2")).status_code == 429


async def test_events_tell_once_when_a_quota_is_nearly_and_wholly_used(
    served: Served, images: list[Image], customer: RegistryClient, clock: Clock
) -> None:
    async def told_events() -> list[tuple[str, dict[str, Any]]]:
        await served.parts.usage.flush()

        def work(connection: sa.Connection) -> list[tuple[str, dict[str, Any]]]:
            query = sa.select(events.c.type, events.c.data).where(events.c.type.like("quota.%")).order_by(events.c.id)
            return [(row.type, row.data) for row in connection.execute(query)]

        return served.parts.database.read_now(work)

    await limit(served, pulls_per_hour=5, networks_per_hour=1)
    for number in range(3):
        await pull(customer, f"v{number}")
    assert await told_events() == []
    await pull(customer, "v3")
    ((kind, data),) = await told_events()
    assert kind == "quota.80"
    assert data == {
        "account": customer.credential.username,
        "limit": "pulls_per_hour",
        "allowed": 5,
        "used": 4,
        "resets_at": "2026-11-23T13:00:00+00:00",
    }
    await pull(customer, "v4")
    for _ in range(2):
        assert (await pull(customer, "v5")).status_code == 429
        assert [kind for kind, _ in await told_events()] == ["quota.80", "quota.100"]
    clock.now += 3600
    for number in range(5):
        await pull(customer, f"v{number}")
    assert [kind for kind, _ in await told_events()] == ["quota.80", "quota.100"] * 2
