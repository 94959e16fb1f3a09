"""What upkeep must do: warn once, tell of the dormant once, and drop what was kept for long enough, in small steps."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from entrepot.accounts import upkeep_records
from entrepot.accounts.events import Event, EventType, emit
from entrepot.accounts.records import find_account
from entrepot.accounts.upkeep import Retention, Upkeep, keep_up
from entrepot.accounts.webhook_records import put_deliveries
from entrepot.storage import tables
from entrepot.storage.tables import account_fetches, usage, usage_networks, usage_periods
from tests.contract.accounts.conftest import HOOK, House
from tests.support.receiver import Receiver
from tests.support.served import TESTER
from tests.support.waiting import eventually

DAY = timedelta(days=1)
KEPT = Retention(
    hourly_usage=90 * DAY,
    daily_usage=730 * DAY,
    networks=30 * DAY,
    refusals=90 * DAY,
    audit=400 * DAY,
    events=500 * DAY,
)


def upkeep(house: House, kept: Retention = KEPT) -> Upkeep:
    return Upkeep(house.database, house.now, kept)


async def insert(house: House, table: sa.Table, *rows: Mapping[str, Any]) -> None:
    await house.database.write(lambda connection: connection.execute(table.insert(), list(rows)))


async def account_id(house: House, name: str) -> int:
    row = await house.database.read(lambda connection: find_account(connection, name))
    assert row is not None
    return int(row["id"])


class TestWarnings:
    async def warned(self, house: House) -> list[Event]:
        return await house.list_events("credential.expiring")

    async def test_come_14_days_and_a_day_before_the_end_and_once_each(self, house: House) -> None:
        issued = await house.issue("ada", "trial")
        assert issued.expires_at is not None
        for day, count in ((75, 0), (77, 1), (80, 1), (88, 1), (89.5, 2), (89.9, 2), (91, 2)):
            house.ahead = day * DAY
            await upkeep(house).run()
            assert "warnings" not in await upkeep(house).run()
            assert len(await self.warned(house)) == count, day
        for event in await self.warned(house):
            assert event.data == {
                "account": issued.username,
                "plan": "trial",
                "credential": issued.id,
                "expires_at": issued.expires_at.isoformat(),
                "last_used_at": None,
            }

    async def test_come_once_though_several_workers_look(self, house: House) -> None:
        for number in range(20):
            await house.issue(f"user-{number}", "trial")
        house.ahead = 77 * DAY
        await asyncio.gather(*(upkeep(house).run() for _ in range(4)))
        assert len({event.data["credential"] for event in await self.warned(house)}) == 20
        assert len(await self.warned(house)) == 20

    async def test_a_short_life_has_one(self, house: House) -> None:
        await house.issue("ada", "trial", lifetime=timedelta(hours=4))
        house.ahead = timedelta(hours=2.9)
        await upkeep(house).run()
        assert await self.warned(house) == []
        house.ahead = timedelta(hours=3.1)
        await upkeep(house).run()
        assert len(await self.warned(house)) == 1

    async def test_are_late_rather_than_double_after_a_pause(self, house: House) -> None:
        await house.issue("ada", "trial")
        house.ahead = 89.5 * DAY
        await upkeep(house).run()
        assert len(await self.warned(house)) == 1

    async def test_there_are_none_of_what_was_replaced_revoked_over_or_endless(self, house: House) -> None:
        replaced = await house.issue("replaced", "trial")
        revoked = await house.issue("revoked", "trial")
        await house.issue("endless", "free")
        await house.issue("over", "trial", lifetime=DAY)
        await house.accounts.issue_credential(replaced.username, 30 * DAY, TESTER, lifetime=300 * DAY)
        await house.accounts.revoke_credential(revoked.username, revoked.id, TESTER)
        house.ahead = 77 * DAY
        await upkeep(house).run()
        warned = {event.data["credential"] for event in await self.warned(house)}
        assert replaced.id not in warned
        assert revoked.id not in warned
        assert len(warned) == 1  # the one that replaced another has the plan's lifetime, too

    async def test_credentials_from_before_are_looked_at_once_and_warned_of_in_time(self, house: House) -> None:
        await house.issue("ada", "trial")
        # As migration 0003 leaves them.
        as_before = tables.credentials.update().values(warn_at=tables.credentials.c.created_at)
        await house.database.write(lambda connection: connection.execute(as_before))
        await upkeep(house).run()
        assert await self.warned(house) == []
        house.ahead = 77 * DAY
        await upkeep(house).run()
        assert len(await self.warned(house)) == 1


class TestDormancy:
    async def pulls(self, house: House, account: int, at: datetime, pulls: int = 1) -> None:
        row = {
            "account_id": account,
            "period": "d",
            "start": at.replace(hour=0, minute=0, second=0, microsecond=0),
            "repository": "smm/api",
            "tag": "v1",
            "pulls": pulls,
            "bytes_served": 9,
        }
        await insert(house, usage_periods, row)

    async def dormant(self, house: House) -> list[str]:
        await upkeep(house).run()
        return [event.data["account"] for event in await house.list_events("account.dormant")]

    async def test_is_told_after_30_quiet_days_and_again_only_after_new_pulls(self, house: House) -> None:
        name = (await house.issue("ada")).username
        account = await account_id(house, name)
        begun = house.now()
        assert await self.dormant(house) == []
        await self.pulls(house, account, begun)
        row = {"account_id": account, "repository": "smm/api", "pulls": 1, "bytes_served": 9, "last_pull_at": begun}
        await insert(house, usage, row)
        house.ahead = 30 * DAY
        assert await self.dormant(house) == []
        for days in (31, 32, 60):
            house.ahead = days * DAY
            assert await self.dormant(house) == [name]
        (event,) = await house.list_events("account.dormant")
        assert event.data == {"account": name, "plan": "free", "last_pull_at": begun.isoformat()}
        await self.pulls(house, account, house.now())
        house.ahead = 90 * DAY
        assert await self.dormant(house) == [name]
        house.ahead = 91 * DAY
        assert await self.dormant(house) == [name, name]

    async def test_is_not_told_of_who_pulls_on_or_never_did_or_is_gone(self, house: House) -> None:
        names = {word: (await house.issue(word)).username for word in ("pulls on", "bytes", "suspended", "deleted")}
        ids = {word: await account_id(house, name) for word, name in names.items()}
        assert await self.dormant(house) == []
        begun = house.now()
        for word, account in ids.items():
            await self.pulls(house, account, begun, pulls=0 if word == "bytes" else 1)
        await self.pulls(house, ids["pulls on"], begun + 30 * DAY)
        await house.accounts.suspend(names["suspended"], TESTER)
        await house.accounts.delete(names["deleted"], TESTER)
        house.ahead = 40 * DAY
        assert await self.dormant(house) == []

    async def test_is_told_once_of_many_by_several_workers(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upkeep_records, "BATCH", 7)
        begun = house.now()
        assert await self.dormant(house) == []
        names = [(await house.issue(f"user-{number}")).username for number in range(30)]
        for name in names:
            await self.pulls(house, await account_id(house, name), begun)
        house.ahead = 31 * DAY
        await asyncio.gather(*(upkeep(house).run() for _ in range(4)))
        assert sorted(await self.dormant(house)) == sorted(names)


class TestRetention:
    async def test_each_thing_is_kept_as_long_as_it_is_said(self, house: House) -> None:
        account = await account_id(house, (await house.issue("ada")).username)
        now = house.now()
        for age in (25 * DAY, 35 * DAY, 95 * DAY, 410 * DAY, 740 * DAY):
            at = (now - age).replace(minute=0, second=0, microsecond=0)
            seen = {"account_id": account, "pulls": 1, "first_at": at, "last_at": at}
            place = {"repository": "smm/api", "tag": "v1", "bytes_served": 1}
            await insert(house, usage_networks, seen | {"network": f"10.0.{age.days % 256}.0/24"})
            for period in "hd":
                row = {"account_id": account, "period": period, "start": at, "pulls": 1, **place}
                await insert(house, usage_periods, row)
            await insert(house, account_fetches, {"account_id": account, "digest": f"sha256:{age.days}", "at": at})
            refusal = {"account_id": account, "day": at, "reason": "plan", "repository": "", "message": "", "times": 1}
            await insert(house, tables.refusals, refusal | {"first_at": at, "last_at": at})
            audit = {"at": at, "actor": "x", "action": "old", "target": "x", "detail": {}}
            await insert(house, tables.audit, audit)
            await house.database.write(lambda one, at=at: emit(one, EventType.QUOTA_80, at))
            answer = {"api_key": "k", "key": str(age), "fingerprint": b"", "status": 201, "body": {}, "at": at}
            await insert(house, tables.idempotent_answers, answer)
        answer |= {"key": "new", "at": now}
        await insert(house, tables.idempotent_answers, answer)
        done = await upkeep(house).run()

        def ages(rows: list[Any], column: str) -> list[int]:
            return sorted((now - getattr(row, column)).days for row in rows)

        periods = house.rows(usage_periods)
        assert ages(house.rows(usage_networks), "last_at") == [25]
        assert ages([row for row in periods if row.period == "h"], "start") == [25, 35]
        assert ages([row for row in periods if row.period == "d"], "start") == [25, 35, 95, 410]
        assert ages(house.rows(account_fetches), "at") == [25]
        assert ages(house.rows(tables.refusals), "day") == [25, 35]
        assert ages([row for row in house.rows(tables.audit) if row.action == "old"], "at") == [25, 35, 95]
        assert ages([row for row in house.rows(tables.events) if row.type == "quota.80"], "at") == [25, 35, 95, 410]
        assert [row.key for row in house.rows(tables.idempotent_answers)] == ["new"]
        assert done["audit"] == 2
        assert "dormancy" in done

    async def test_deliveries_go_with_their_events(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        await house.happen()
        (event,) = house.rows(tables.events)
        await house.database.write(lambda connection: put_deliveries(connection, HOOK, [event.id], house.now()))
        house.ahead = 501 * DAY
        await upkeep(house).run()
        assert house.rows(tables.events) == []
        assert house.rows(tables.webhook_deliveries) == []
        # Who was not given them before they went is not held up by their absence.
        await house.happen()
        await house.deliver()
        assert len(receiver.received) == 1

    async def test_much_is_dropped_in_small_batches_by_several_workers(self, house: House) -> None:
        old = {"at": house.now() - 401 * DAY, "actor": "x", "action": "old", "target": "x", "detail": {}}
        await insert(house, tables.audit, *(old for _ in range(1800)))
        done = await asyncio.gather(*(upkeep(house).run() for _ in range(3)))
        assert sum(one.get("audit", 0) for one in done) >= 1800
        assert not [row for row in house.rows(tables.audit) if row.action == "old"]

    async def test_nothing_to_do_writes_nothing(self, house: House) -> None:
        await upkeep(house).run()
        before = {table.name: house.rows(table) for table in tables.metadata.sorted_tables}
        assert await upkeep(house).run() == {}
        assert {table.name: house.rows(table) for table in tables.metadata.sorted_tables} == before


async def test_the_job_goes_on_after_a_database_that_was_away_and_stops_when_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.accounts.upkeep.PAUSE_SECONDS", 0.01)
    await house.issue("ada", "trial")
    house.ahead = 77 * DAY
    stop = asyncio.Event()
    write = house.database.write
    fails = iter([True])

    async def write_or_fail(work: Any) -> Any:
        from entrepot.errors import DatabaseUnavailable

        if next(fails, False):
            raise DatabaseUnavailable("away")
        return await write(work)

    monkeypatch.setattr(house.database, "write", write_or_fail)
    job = asyncio.create_task(keep_up(upkeep(house), stop))

    async def is_told() -> bool:
        return bool(await house.list_events("credential.expiring"))

    await eventually(is_told)
    stop.set()
    await job


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_no_step_reads_a_whole_table(house: House, receiver: Receiver) -> None:
    """SQLite's planner shows it on small tables; PostgreSQL's would read those whole, and has the same indexes."""
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        seen[statement] = parameters[0] if is_many else parameters

    await TestRetention().test_each_thing_is_kept_as_long_as_it_is_said(house)
    await house.hook(receiver)
    await house.issue("eve", "trial")
    house.ahead = 2000 * DAY
    sa.event.listen(house.database._dialect.engine, "before_cursor_execute", note)
    await house.happen()
    await house.deliver()
    await upkeep(house).run()
    await house.list_events("quota.80")
    await house.webhooks.list_deliveries(HOOK, "waiting", None, 10)
    sa.event.remove(house.database._dialect.engine, "before_cursor_execute", note)
    explained = 0
    for statement, parameters in seen.items():
        if not statement.startswith(("SELECT", "UPDATE", "DELETE")):
            continue

        def explain(connection: sa.Connection, statement: str = statement, parameters: Any = parameters) -> list[str]:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [row.detail for row in plan]

        plan = house.database.read_now(explain)
        # There are few webhooks, and all of them are looked at.
        assert [step for step in plan if step.startswith("SCAN") and "webhooks" not in step] == [], statement
        explained += any(step.startswith("SEARCH") for step in plan)
    assert explained > 25
