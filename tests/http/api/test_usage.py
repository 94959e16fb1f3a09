"""What the vendor can ask: who pulled what, who was refused and why, how far sign-ups got, who is stuck."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entrepot.accounts.steps import week_of
from entrepot.oci.digest import Digest
from tests.support.api import ACCOUNTS, ADA, Api, assert_problem, key
from tests.support.content import Image, index_of
from tests.support.served import TESTER, RegistryClient, Served

DOCKER = {"User-Agent": "docker/20.10.24 go/go1.19 kernel/6.1 os/linux arch/amd64"}
HELM = {"User-Agent": "Helm/3.17.0"}


@pytest.fixture
async def admin(served: Served) -> Api:
    return await key(served, "root", "admin")


@pytest.fixture
def clock(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The counter's clock, which only the test moves."""
    now = [time.time()]
    monkeypatch.setattr(served.parts.usage, "_clock", lambda: now[0])
    return now


async def get(served: Served, api: Api, path: str) -> Any:
    """What is answered once all that was counted is written down."""
    await served.parts.usage.flush()
    answer = await api.call("GET", f"/api/v1{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def numbers(document: dict[str, Any], key: str) -> dict[str, int]:
    return {entry["name"]: entry["pulls"] for entry in document[key]}


async def test_an_accounts_usage_says_what_by_whom_and_whence(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient, clock: list[float]
) -> None:
    images = [await publisher.push_image("smm/api", f"v{number}") for number in (1, 2)]
    chart = await publisher.push_image("charts/smm", "1.0.0")
    await customer.call("GET", "/v2/smm/api/manifests/v1", headers=DOCKER)
    await customer.call("GET", f"/v2/smm/api/manifests/{images[1].digest}", headers=DOCKER)
    await customer.call("GET", "/v2/charts/smm/manifests/1.0.0", headers=HELM)
    await customer.call("GET", f"/v2/charts/smm/blobs/{Digest.of(chart.layer)}", headers=HELM)
    name = customer.credential.username
    usage = await get(served, admin, f"/accounts/{name}/usage")
    sizes = [len(image.manifest) for image in (*images, chart)]
    assert (usage["pulls"], usage["bytes_served"]) == (3, sum(sizes) + len(chart.layer))
    assert numbers(usage, "versions") == {
        f"smm/api@{images[0].digest}": 1,
        f"smm/api@{images[1].digest}": 1,
        f"charts/smm@{chart.digest}": 1,
    }
    assert numbers(usage, "clients") == {"docker": 2, "helm": 1}
    assert numbers(usage, "networks") == {"127.0.0.0/24": 3}
    assert (usage["version_count"], usage["network_count"]) == (3, 1)
    days = {(day["repository"], day["tag"]): (day["pulls"], day["bytes_served"]) for day in usage["periods"]}
    assert days == {
        ("smm/api", "v1"): (1, sizes[0]),
        ("smm/api", None): (1, sizes[1]),
        ("charts/smm", "1.0.0"): (1, sizes[2]),
        ("charts/smm", None): (0, len(chart.layer)),
    }
    at = datetime.fromtimestamp(clock[0], UTC)
    assert {day["start"] for day in usage["periods"]} == {f"{at:%Y-%m-%d}T00:00:00Z"}
    hours = await get(served, admin, f"/accounts/{name}/usage?period=hour&since={at:%Y-%m-%d}T{at:%H}:00:00Z")
    assert {hour["start"] for hour in hours["periods"]} == {f"{at:%Y-%m-%dT%H}:00:00Z"}
    assert (await get(served, admin, f"/accounts/{name}/usage?until={at:%Y-%m-%d}T00:00:00Z"))["periods"] == []


async def test_totals_are_of_whom_the_key_may_see(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1")
    for client in (publisher, customer, await served.client("free", "another")):
        await client.call("GET", "/v2/smm/api/manifests/v1")

    async def pulls(api: Api, query: str = "") -> tuple[int, int]:
        totals = (await get(served, api, f"/usage{query}"))["totals"]
        return sum(total["pulls"] for total in totals), max((total["accounts"] for total in totals), default=0)

    assert await pulls(admin) == (3, 3)
    assert await pulls(admin, "?plan=free") == (2, 2)
    assert await pulls(admin, "?plan=none") == (0, 0)
    assert await pulls(await key(served, "reader", "usage:read", plans=["publisher"])) == (1, 1)
    assert_problem(await (await key(served, "platform", "accounts:write")).call("GET", "/api/v1/usage"), 403)


async def test_refusals_say_why_and_are_counted(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("internal/api", "v1")
    name = customer.credential.username
    for _ in range(3):
        await customer.call("GET", "/v2/internal/api/manifests/v1")
    await served.http.get("/token", auth=(name, "entp_wrong"))
    await served.http.get("/token", auth=(name, publisher.credential.secret.reveal()))
    await served.http.get("/token", auth=("ft-nobody", publisher.credential.secret.reveal()))
    await served.parts.accounts.suspend(name, TESTER)
    message = (await served.http.get("/token", auth=(name, customer.credential.secret.reveal()))).json()
    refusals = (await get(served, admin, f"/accounts/{name}/refusals"))["refusals"]
    assert {(one["reason"], one["repository"]): one["times"] for one in refusals} == {
        ("plan", "internal/api"): 3,
        ("wrong_secret", None): 1,
        ("suspended", None): 1,
    }
    suspended = next(one for one in refusals if one["reason"] == "suspended")
    assert suspended["message"] == message["errors"][0]["message"]
    assert_problem(await admin.call("GET", "/api/v1/accounts/ft-nobody/refusals"), 404)


async def test_the_funnel_shows_how_far_sign_ups_got(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient, clock: list[float]
) -> None:
    image = Image()
    await publisher.push_blob("smm/api", image.config)
    await publisher.push_image("smm/api", "amd64", image)
    await publisher.push_manifest("smm/api", "v1", index_of(image), "application/vnd.oci.image.index.v1+json")
    await publisher.push_image("smm/api", "v2")
    await served.client("free", "never came")

    async def steps(plan: str = "free") -> dict[str, tuple[int, str]]:
        found = (await get(served, admin, f"/funnel?plan={plan}"))["steps"]
        monday = week_of(datetime.now(UTC))
        assert {datetime.fromisoformat(one["week"]) for one in found} <= {monday, monday - timedelta(days=7)}
        return {
            one["step"]: (one["accounts"], ",".join(took for took, count in one["took"].items() if count))
            for one in found
        }

    begun = {"signed_up": (2, "1m"), "credential_issued": (2, "1m")}
    assert await steps() == begun
    clock[0] += 300
    await customer.token("repository:smm/api:pull")
    assert await steps() == begun | {"first_login": (1, "10m")}
    clock[0] += 2 * 3600
    await customer.call("GET", "/v2/smm/api/manifests/v1")
    await customer.call("GET", f"/v2/smm/api/manifests/{image.digest}")
    await customer.call("GET", f"/v2/smm/api/blobs/{Digest.of(image.config)}")
    assert (await steps()).keys() == {*begun, "first_login", "first_pull"}
    clock[0] += 1
    await customer.call("GET", f"/v2/smm/api/blobs/{Digest.of(image.layer)}")
    got = await steps()
    assert got["first_pull"] == (1, "1d")
    assert got["image_fetched"] == (1, "1m")
    clock[0] += 8 * 86400
    await customer.call("GET", "/v2/smm/api/manifests/v2")
    assert (await steps())["second_version"] == (1, "30d")
    assert (await steps())["active_after_7_days"][0] == 1
    assert "active_after_30_days" not in await steps()
    clock[0] += 30 * 86400
    await customer.call("GET", "/v2/smm/api/manifests/v2")
    assert (await steps())["active_after_30_days"] == (1, "30d")
    # Another plan's sign-ups are apart, and who is deleted stays counted.
    assert (await steps("publisher"))["signed_up"] == (1, "1m")
    await served.parts.accounts.delete(customer.credential.username, TESTER)
    assert (await steps())["active_after_30_days"][0] == 1


@pytest.mark.parametrize(
    "query",
    [
        "since=2026-02-01T00:00:00Z&until=2026-01-01T00:00:00Z",
        "since=2001-01-01T00:00:00Z&until=2026-01-01T00:00:00Z",
        "since=yesterday",
        "since=2026-01-01",
        "until=9999-12-31T23:59:59-23:59",
    ],
)
async def test_a_funnel_of_no_time_is_refused(admin: Api, query: str) -> None:
    answer = await admin.call("GET", f"/api/v1/funnel?{query}")
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_who_is_stuck_and_why(served: Served, admin: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    signed_up = datetime.now(UTC) - timedelta(hours=3)
    with monkeypatch.context() as patched:
        patched.setattr(served.parts.accounts, "_clock", lambda: signed_up)
        stuck = [await served.client("free", f"stuck-{number}") for number in range(3)]
        came = await served.client("free", "came")
    await served.client("free", "came just now")
    name = stuck[0].credential.username
    await served.http.get("/token", auth=(name, came.credential.secret.reveal()))
    await came.token("repository:smm/api:pull")
    page = await get(served, admin, "/funnel/stuck?limit=2")
    assert [one["external_id"] for one in page["stuck"]] == ["stuck-2", "stuck-1"]
    page = await get(served, admin, f"/funnel/stuck?limit=2&cursor={page['next_cursor']}")
    assert page["next_cursor"] is None
    (last,) = page["stuck"]
    assert (last["account"], last["reason"]) == (name, "wrong_secret")
    assert "do not belong together" in last["message"]
    pulled = await get(served, admin, "/funnel/stuck?step=first_pull")
    assert [one["external_id"] for one in pulled["stuck"]] == ["came", "stuck-2", "stuck-1", "stuck-0"]
    reader = await key(served, "reader", "usage:read", plans=["publisher"])
    assert (await get(served, reader, "/funnel/stuck"))["stuck"] == []
    assert_problem(await admin.call("GET", "/api/v1/funnel/stuck?step=none"), 422)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("ada@example", True),
        ("ADA@EXAMPLE", True),
        ("analytical", True),
        ("J%C3%B6rg", True),
        ("ada", True),
        ("nobody", False),
        ("%25", False),
        ("_", False),
        ("'%20OR%201=1%20--", False),
    ],
)
async def test_accounts_are_found_by_a_part_of_them(admin: Api, query: str, found: bool) -> None:
    identity = {"email": "ada@example.com", "company": "Analytical Engines", "name": "Jörg"}
    await admin.call("POST", ACCOUNTS, json=ADA | {"identity": identity})
    accounts = (await admin.call("GET", f"{ACCOUNTS}?q={query}")).json()["accounts"]
    assert len(accounts) == found


async def test_deleting_an_account_keeps_counts_and_drops_networks(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1")
    await customer.call("GET", "/v2/smm/api/manifests/v1")
    account = await served.parts.accounts.get(customer.credential.username)
    await served.parts.usage.flush()
    await served.parts.accounts.delete(account.name, TESTER)
    usage = await served.parts.reports.usage_of(account.id)
    assert [part.pulls for part in usage.repositories] == [1]
    assert (usage.networks, usage.network_count) == ([], 0)
    assert (await get(served, admin, "/usage"))["totals"][0]["pulls"] == 1
