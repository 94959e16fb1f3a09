"""What is kept, and how: behind the sentences of docs/security.md that no other test stands behind."""

import base64
import re
from typing import Any

import pytest

from entrepot.accounts.records import AuditFilter
from tests.support.api import ACCOUNTS, ADA, Api, key
from tests.support.served import RegistryClient, Served, rows_of

_SECRET = re.compile(rb"(?:ent[kp]_[0-9A-Za-z]{36}|entr_[0-9A-Za-z_-]{50,}|whsec_[0-9A-Za-z+/=]{20,})")


def everything(served: Served) -> bytes:
    """Every value of every row, in one text."""
    parts: list[bytes] = []

    def add(value: Any) -> None:
        if isinstance(value, bytes | memoryview):
            parts.append(bytes(value))
        else:
            parts.append(repr(value).encode())

    for rows in rows_of(served).values():
        for row in rows:
            for value in row:
                add(value)
    return b"\n".join(parts)


@pytest.fixture
async def admin(served: Served) -> Api:
    return await key(served, "root", "admin")


async def test_no_secret_is_anywhere_in_the_database(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1")
    await customer.call("GET", "/v2/smm/api/manifests/v1")
    refreshing = await served.http.get("/token?offline_token=true", headers=customer.basic)
    once = {"Idempotency-Key": "first"}
    created = (await admin.call("POST", ACCOUNTS, json=ADA, headers=once)).json()
    rotated = await admin.call("POST", f"{ACCOUNTS}/{created['account']['name']}/credentials")
    hook = {"url": "https://platform.example.com/hook"}
    webhook = await admin.call("PUT", "/api/v1/webhooks/platform", json=hook)
    made = await admin.call("POST", "/api/v1/api-keys", json={"name": "another", "scopes": ["accounts:read"]})
    shown = [
        customer.credential.secret.reveal(),
        created["credential"]["secret"],
        rotated.json()["credential"]["secret"],
        made.json()["secret"],
        webhook.json()["secret"],
        refreshing.json()["refresh_token"],
        admin.secret,
    ]
    await served.parts.usage.flush()
    kept = everything(served)
    for secret in shown:
        assert _SECRET.fullmatch(secret.encode()), secret[:5]
        assert secret.encode() not in kept
        if secret.startswith("whsec_"):
            assert base64.b64decode(secret.removeprefix("whsec_")) not in kept
    assert _SECRET.search(kept) is None


async def test_a_deleted_account_leaves_nothing_of_who_it_was(served: Served, admin: Api) -> None:
    who = {
        "external_id": "user-of-long-standing",
        "plan": "free",
        "identity": {"email": "grace@example.com", "company": "Compilers Ltd"},
        "labels": {"cohort": "navy"},
    }
    created = (await admin.call("POST", ACCOUNTS, json=who, headers={"Idempotency-Key": "x"})).json()
    name = created["account"]["name"]
    await admin.call("PATCH", f"{ACCOUNTS}/{name}", json={"labels": {"cohort": "admirals"}})
    await admin.call("PATCH", f"{ACCOUNTS}/{name}", json={"status": "suspended"})
    await admin.call("DELETE", f"{ACCOUNTS}/{name}")
    kept = everything(served)
    for word in ("user-of-long-standing", "grace", "Compilers", "navy", "admirals"):
        assert word.encode() not in kept, word


async def test_customers_addresses_are_kept_truncated(
    served: Served, admin: Api, publisher: RegistryClient, customer: RegistryClient
) -> None:
    await publisher.push_image("smm/api", "v1")
    await customer.call("GET", "/v2/smm/api/manifests/v1")
    await customer.call("GET", "/v2/internal/api/manifests/v1")
    await served.http.get("/token", auth=(customer.credential.username, "entp_wrong"))
    await served.parts.usage.flush()
    assert b"127.0.0.0/24" in everything(served)
    assert b"127.0.0.1'" not in everything(served)
    # Who made a change, and whence, is another matter.
    await admin.call("POST", ACCOUNTS, json=ADA)
    assert {row.address for row in await served.parts.audit.list_rows(AuditFilter(), None, 1)} == {"127.0.0.1"}
