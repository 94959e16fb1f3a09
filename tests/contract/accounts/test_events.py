"""What events must be: told once, with their change, and read on without missing any."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from entrepot.accounts import event_records
from entrepot.accounts.event_records import EventFilter
from entrepot.accounts.events import EventType, emit
from entrepot.accounts.reach import AccountReach
from entrepot.accounts.records import find_account
from entrepot.storage import tables
from tests.contract.accounts.conftest import House
from tests.support.reference import documented_events
from tests.support.served import TESTER

EVERYTHING = EventFilter()


async def test_each_change_of_an_account_is_told_with_what_it_changed(house: House) -> None:
    first = await house.issue("ada", "trial", lifetime=timedelta(days=10))
    name = first.username
    second = await house.accounts.issue_credential(name, timedelta(hours=1), TESTER)
    third = await house.accounts.issue_credential(name, timedelta(hours=1), TESTER)
    await house.accounts.revoke_credential(name, third.id, TESTER)
    await house.accounts.delete(name, TESTER)

    events = await house.list_events()
    assert [event.type for event in events] == [
        "account.created",
        "credential.issued",
        "credential.rotated",
        "credential.rotated",
        "credential.revoked",
        "credential.revoked",
    ]
    assert {event.data["account"] for event in events} == {name}
    assert {event.data["actor"] for event in events} == {"tester"}
    created, issued, rotated, again, revoked, deleted = (event.data for event in events)
    assert created == {"account": name, "plan": "trial", "expires_at": None, "actor": "tester"}
    assert first.expires_at is not None
    assert issued == {
        "account": name,
        "plan": "trial",
        "credential": first.id,
        "expires_at": first.expires_at.isoformat(),
        "actor": "tester",
    }
    (ending,) = rotated["replaced"]
    assert ending == {"credential": first.id, "ends_at": (second.created_at + timedelta(hours=1)).isoformat()}
    assert rotated["credential"] == second.id
    # The oldest of three ends at once, and what ends earlier anyway ends when it would.
    ends = {one["credential"]: one["ends_at"] for one in again["replaced"]}
    assert ends == {
        second.id: (third.created_at + timedelta(hours=1)).isoformat(),
        first.id: third.created_at.isoformat(),
    }
    assert (revoked["credential"], revoked["reason"]) == (third.id, "revoked")
    assert (deleted["credential"], deleted["reason"]) == (second.id, "account_deleted")
    assert "entp_" not in str(events)
    documented = documented_events()
    assert all(event.data.keys() <= documented[event.type] for event in events)


async def test_what_changes_nothing_is_not_told(house: House) -> None:
    issued = await house.issue("ada")
    await house.accounts.create("ada", "free", {}, None, TESTER)
    await house.accounts.revoke_credential(issued.username, issued.id, TESTER)
    told = len(await house.list_events())
    await house.accounts.revoke_credential(issued.username, issued.id, TESTER)
    await house.accounts.delete(issued.username, TESTER)
    assert len(await house.list_events()) == told == 3


async def test_two_sign_ups_at_once_are_told_as_one(house: House) -> None:
    await asyncio.gather(*(house.accounts.create("ada", "free", {}, None, TESTER) for _ in range(8)))
    assert [event.type for event in await house.list_events()] == ["account.created", "credential.issued"]


async def test_a_change_that_fails_tells_nothing(house: House) -> None:
    def work(connection: object) -> None:
        emit(connection, EventType.QUOTA_80, house.now())  # type: ignore[arg-type]
        raise ValueError

    with pytest.raises(ValueError):
        await house.database.write(work)
    assert await house.list_events() == []


async def test_what_happens_once_is_told_once(house: House) -> None:
    for _ in range(3):
        await house.database.write(lambda one: emit(one, EventType.QUOTA_100, house.now(), once="quota:7:2026-11"))
    assert len(await house.list_events()) == 1


# SQLite has one writer at a time, so that nothing is committed late.
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_an_event_that_is_committed_late_is_not_missed(house: House) -> None:
    with house.database._dialect.engine.connect() as slow:
        late = emit(slow, EventType.QUOTA_80, house.now())
        (quick,) = await house.happen()
        page = await house.events.list_events(EVERYTHING, 0, 10)
        assert [event.id for event in page.events] == [quick]
        slow.commit()
    page = await house.events.list_events(EVERYTHING, page.last_number, 10)
    assert [event.id for event in page.events] == [late]
    first, second = sorted(house.rows(tables.events), key=lambda row: row.id)
    assert (first.event_id, first.number, second.number) == (late, 2, 1)


def test_numbers_are_given_once_each_whoever_gives_them(house: House) -> None:
    def give(_: int) -> None:
        for _ in range(10):
            house.database.write_now(lambda connection: emit(connection, EventType.QUOTA_80, house.now()))
            house.database.write_now(lambda connection: event_records.give_numbers(connection, 7))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(give, range(6)))
    while house.database.write_now(lambda connection: event_records.give_numbers(connection, 100)):
        pass
    assert sorted(row.number for row in house.rows(tables.events)) == list(range(1, 61))


async def test_a_number_is_not_given_again_when_its_event_is_dropped(house: House) -> None:
    await house.happen(3)
    last = (await house.events.list_events(EVERYTHING, 0, 10)).last_number
    await house.database.write(lambda connection: connection.execute(tables.events.delete()))
    await house.happen()
    page = await house.events.list_events(EVERYTHING, last, 10)
    assert [event.number for event in page.events] == [last + 1]


async def test_pages_end_where_the_next_begins_and_pass_over_what_does_not_fit(house: House) -> None:
    for name in ("ada", "bob", "eve"):
        await house.issue(name)
    issued = EventFilter(frozenset({"credential.issued"}))
    page = await house.events.list_events(issued, 0, 2)
    assert ([event.number for event in page.events], page.last_number, page.has_more) == ([2, 4], 4, True)
    page = await house.events.list_events(issued, page.last_number, 2)
    assert ([event.number for event in page.events], page.last_number, page.has_more) == ([6], 6, False)
    page = await house.events.list_events(EventFilter(frozenset({"pull.first"})), 0, 2)
    assert (page.events, page.last_number, page.has_more) == ([], 6, False)
    page = await house.events.list_events(EVERYTHING, 10**6, 2)
    assert (page.events, page.last_number) == ([], 10**6)


async def test_filters(house: House) -> None:
    ada = await house.issue("ada")
    later = house.now()
    house.ahead = timedelta(minutes=5)
    await house.issue("eve", "trial")
    await house.happen()

    async def names(wanted: EventFilter) -> set[str]:
        return {event.data["account"] for event in (await house.events.list_events(wanted, 0, 100)).events}

    account = house.database.read_now(lambda connection: find_account(connection, ada.username))
    assert account is not None
    assert await names(EventFilter(account_id=account["id"])) == {ada.username}
    assert ada.username not in await names(EventFilter(since=later))
    assert await names(EventFilter(reach=AccountReach(plans=frozenset({"free"})))) == {ada.username}
    assert await names(EventFilter(reach=AccountReach(created_by="nobody"))) == set()
    assert "ft-x" in await names(EVERYTHING)
