"""What deliveries must do, to a real receiver: signed, at least once, by one worker at a time, and never for ever."""

import asyncio
import contextlib
import socket
import time
from datetime import datetime, timedelta

import pytest
import standardwebhooks
from aiohttp import web
from prometheus_client import REGISTRY

from entrepot.access.destinations import Destinations
from entrepot.accounts.audit import AuditLog
from entrepot.accounts.deliveries import WAITS, deliver_regularly
from entrepot.accounts.records import AuditFilter
from entrepot.errors import EventUnknown, WebhookDisabled, WebhookUnknown
from entrepot.storage import tables
from tests.contract.accounts.conftest import HERE, HOOK, House, open_house
from tests.support.hostile import send_pieces
from tests.support.receiver import Receiver, receiving
from tests.support.served import TESTER
from tests.support.waiting import eventually

LEASE = timedelta(seconds=61)


async def test_what_happens_arrives_signed_and_once(house: House, receiver: Receiver) -> None:
    secret = await house.hook(receiver, path="/hooks?tenant=a%2Fb")
    issued = await house.issue("ada")
    await house.deliver()
    await house.deliver()

    created, credential = sorted(receiver.received, key=lambda one: one.document["type"])
    for one in (created, credential):
        assert one.path == "/hooks?tenant=a%2Fb"
        assert one.headers["content-type"] == "application/json"
        assert one.headers["user-agent"].startswith("entrepot/")
        assert standardwebhooks.Webhook(secret).verify(one.body, one.headers) == one.document
    listed = await house.list_events()
    assert {(event.id, event.type, event.at) for event in listed} == {
        (one.event_id, one.document["type"], datetime.fromisoformat(one.document["timestamp"]))
        for one in receiver.received
    }
    assert created.document["data"]["account"] == issued.username
    assert (await house.webhooks.list_deliveries(HOOK, "delivered", None, 10))[0].attempts == 1
    assert issued.secret.reveal() not in str(receiver.received)


async def test_a_webhook_gets_what_it_wants_from_its_beginning_on(house: House, receiver: Receiver) -> None:
    await house.issue("before")
    await house.list_events()
    await house.hook(receiver, types=["credential.issued"])
    await house.hook(receiver, "other", "/other")
    await house.issue("ada")
    await house.deliver()
    got = sorted((one.path, one.document["type"]) for one in receiver.received)
    assert got == [("/hook", "credential.issued"), ("/other", "account.created"), ("/other", "credential.issued")]


async def test_a_failure_is_tried_again_when_it_is_due_until_it_succeeds(house: House, receiver: Receiver) -> None:
    secret = await house.hook(receiver)
    (event,) = await house.happen()
    receiver.statuses(500, 429, 200)
    await house.deliver()
    for attempt, problem in ((1, "answered 500"), (2, "answered 429")):
        delivery = await house.only_delivery()
        assert (delivery.status, delivery.attempts, delivery.problem) == ("waiting", attempt, problem)
        assert delivery.next_at is not None
        wait = delivery.next_at - house.now()
        assert WAITS[attempt - 1] - timedelta(seconds=5) <= wait <= WAITS[attempt - 1] * 1.2
        assert (await house.webhooks.get(HOOK)).failing_since is not None
        await house.deliver()
        assert len(receiver.received) == attempt  # it is not due
        house.ahead += WAITS[attempt - 1] * 1.2
        await house.deliver()
    delivery = await house.only_delivery()
    assert (delivery.status, delivery.attempts, delivery.problem, delivery.next_at) == ("delivered", 3, None, None)
    assert (await house.webhooks.get(HOOK)).failing_since is None
    # The same message each time, signed for the time of its attempt.
    assert {one.event_id for one in receiver.received} == {event}
    assert len({one.body for one in receiver.received}) == 1
    first, last = (int(receiver.received[place].headers["webhook-timestamp"]) for place in (0, -1))
    assert last - first >= 305
    with pytest.raises(standardwebhooks.WebhookVerificationError, match="too new"):
        standardwebhooks.Webhook(secret).verify(receiver.received[-1].body, receiver.received[-1].headers)


async def test_the_receiver_s_wait_is_honoured(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()
    receiver.statuses(503, Retry_After="3600")
    await house.deliver()
    delivery = await house.only_delivery()
    assert delivery.next_at is not None
    assert timedelta(minutes=59) < delivery.next_at - house.now() <= timedelta(hours=1)


async def test_it_is_given_up_after_ten_attempts_and_disabled_after_days_of_failures(
    house: House, receiver: Receiver
) -> None:
    await house.hook(receiver)
    receiver.statuses(500)
    await house.happen()
    for _ in range(10):
        await house.deliver()
        house.ahead += timedelta(hours=30)
    await house.deliver()
    delivery = await house.only_delivery()
    assert (delivery.status, delivery.attempts, delivery.next_at) == ("given_up", 10, None)
    assert len(receiver.received) == 10
    webhook = await house.webhooks.get(HOOK)
    assert webhook.disabled_at is not None
    assert "every attempt failed since" in str(webhook.disabled_reason)
    rows = await AuditLog(house.database, house.now).list_rows(AuditFilter(action="webhook.disabled"), None, 10)
    assert [(row.actor, row.target) for row in rows] == [("jobs", HOOK)]
    # What happens meanwhile waits, and arrives when it is enabled again.
    (event,) = await house.happen()
    await house.deliver()
    assert len(receiver.received) == 10
    receiver.behave = None
    await house.webhooks.put(HOOK, webhook.url, None, TESTER)
    assert (await house.webhooks.get(HOOK)).disabled_at is None
    await house.deliver()
    assert [one.event_id for one in receiver.received[10:]] == [event]


async def test_giving_up_alone_disables_nothing(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()
    receiver.statuses(500)
    await house.deliver()
    for wait in WAITS:
        house.ahead += wait * 1.2
        await house.deliver()
    assert (await house.only_delivery()).status == "given_up"
    assert (await house.webhooks.get(HOOK)).disabled_at is None


async def test_who_answers_410_gets_no_more(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    receiver.statuses(410)
    await house.happen(20)
    await house.deliver()
    assert 1 <= len(receiver.received) <= 4  # those under way at the time
    webhook = await house.webhooks.get(HOOK)
    assert "410" in str(webhook.disabled_reason)
    house.ahead += timedelta(days=2)
    await house.deliver()
    assert len(receiver.received) <= 4
    for replay in (
        house.webhooks.replay_since(HOOK, house.now(), TESTER),
        house.webhooks.test(HOOK, TESTER),
    ):
        with pytest.raises(WebhookDisabled, match="410"):
            await replay


async def test_a_redirect_is_not_followed(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()
    receiver.statuses(302, Location=f"{receiver.url}/elsewhere")
    await house.deliver()
    assert [one.path for one in receiver.received] == ["/hook"]
    assert (await house.only_delivery()).problem == "answered 302, and redirects are not followed"


async def test_an_answer_that_does_not_come_is_not_waited_for(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()
    released = receiver.hang()
    await house.deliver(house.worker(total_seconds=0.3))
    released.set()
    assert (await house.only_delivery()).problem == "no answer came within 0.3 seconds"


async def test_an_answer_without_end_is_not_read(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()

    async def flood(request: web.Request) -> web.StreamResponse:
        with contextlib.suppress(ConnectionError):
            return await send_pieces(request, [b"x" * 65536] * 100_000)
        return web.Response()

    receiver.behave = flood
    begun = time.monotonic()
    await house.deliver()
    assert time.monotonic() - begun < 8
    assert (await house.only_delivery()).status == "delivered"


async def test_an_answer_that_breaks_off_counts_by_its_status(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()

    async def stall(request: web.Request) -> web.StreamResponse:
        return await send_pieces(request, [b"x"], length=10)

    receiver.behave = stall
    await house.deliver()
    assert (await house.only_delivery()).status == "delivered"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"", "the host broke off the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the host does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "the host does not answer in HTTP"),
    ],
    ids=["nothing", "another protocol", "endless header"],
)
async def test_a_receiver_that_speaks_no_http_is_told_of(house: House, said: bytes, problem: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await house.hook(Receiver(f"http://127.0.0.1:{port}"))
        await house.happen()
        await house.deliver()
        assert (await house.only_delivery()).problem == problem


async def test_a_host_that_is_not_there_is_told_of(house: House) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        await house.hook(Receiver(f"http://127.0.0.1:{unused.getsockname()[1]}"))
        await house.hook(Receiver("https://nowhere.invalid"), "nowhere")
        await house.happen()
        await house.deliver()
    assert (await house.only_delivery()).problem == "the host refuses the connection, or cannot be reached"
    assert (await house.only_delivery("nowhere")).problem == "the host's name has no address"


async def test_an_address_is_judged_when_it_is_connected_to(house: House, receiver: Receiver) -> None:
    """A name that was public when the webhook was set up, and is not now, as DNS rebinding has it."""
    port = receiver.url.rpartition(":")[2]
    await house.hook(Receiver(f"http://localhost:{port}"))
    await house.hook(Receiver(f"http://127.0.0.1:{port}"), "literal")
    await house.happen()
    await house.deliver(house.worker(Destinations()))
    assert receiver.received == []
    for name in (HOOK, "literal"):
        problem = (await house.only_delivery(name)).problem
        assert problem is not None
        assert "not public" in problem
        assert "127.0.0.1" not in problem
    house.ahead += timedelta(minutes=1)
    await house.deliver(house.worker(HERE))
    assert len(receiver.received) == 2


async def test_a_certificate_that_nobody_vouches_for_is_refused(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()
    await house.webhooks.put(HOOK, receiver.url.replace("http:", "https:"), None, TESTER)
    await house.deliver()
    assert receiver.received == []
    assert (await house.only_delivery()).status == "waiting"


class TestReplay:
    async def test_one_event(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        first, _ = await house.happen(2)
        await house.deliver()
        await house.webhooks.replay_event(HOOK, first, TESTER)
        await house.deliver()
        assert [one.event_id for one in receiver.received].count(first) == 2
        assert len(receiver.received) == 3
        with pytest.raises(EventUnknown):
            await house.webhooks.replay_event(HOOK, "evt_none", TESTER)
        with pytest.raises(WebhookUnknown):
            await house.webhooks.replay_event("none", first, TESTER)

    async def test_all_since_an_instant_from_before_the_webhook_on(self, house: House, receiver: Receiver) -> None:
        await house.happen(2)
        house.ahead += timedelta(hours=1)
        since = house.now()
        house.ahead += timedelta(minutes=1)
        wanted = await house.happen(3)
        await house.list_events()
        await house.hook(receiver)
        await house.deliver()
        assert receiver.received == []
        assert await house.webhooks.replay_since(HOOK, since, TESTER) == 3
        await house.deliver()
        assert sorted(one.event_id for one in receiver.received) == sorted(wanted)
        assert await house.webhooks.replay_since(HOOK, since, TESTER) == 3
        await house.deliver()
        assert len(receiver.received) == 6
        assert await house.webhooks.replay_since(HOOK, house.now(), TESTER) == 0

    async def test_what_was_given_up_begins_anew(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        (event,) = await house.happen()
        receiver.statuses(500)
        await house.deliver()
        for wait in WAITS:
            house.ahead += wait * 1.2
            await house.deliver()
        receiver.behave = None
        await house.webhooks.replay_event(HOOK, event, TESTER)
        await house.deliver()
        delivery = await house.only_delivery()
        assert (delivery.status, delivery.attempts) == ("delivered", 1)

    async def test_an_attempt_under_way_does_not_end_what_began_anew(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        (event,) = await house.happen()
        released = receiver.hang()
        slow = asyncio.create_task(house.deliver())
        await eventually(lambda: _has(receiver, 1))
        await house.webhooks.replay_event(HOOK, event, TESTER)
        receiver.statuses(500)
        async with open_house(house.url) as other:
            await other.deliver()
            begun_anew = await other.only_delivery()
            assert (begun_anew.status, begun_anew.attempts) == ("waiting", 1)
            released.set()
            await slow
            assert await other.only_delivery() == begun_anew


async def _has(receiver: Receiver, count: int) -> bool:
    return len(receiver.received) >= count


async def test_a_test_goes_to_the_webhook_that_is_tested_alone(house: House, receiver: Receiver) -> None:
    await house.hook(receiver, types=["pull.first"])
    await house.hook(receiver, "other", "/other")
    event = await house.webhooks.test(HOOK, TESTER)
    await house.deliver()
    (one,) = receiver.received
    assert (one.path, one.event_id, one.document["type"]) == ("/hook", event, "webhook.test")
    assert one.document["data"] == {"webhook": HOOK}


async def test_the_old_secret_signs_until_its_grace_is_over(house: House, receiver: Receiver) -> None:
    old = await house.hook(receiver)
    new = (await house.webhooks.rotate_secret(HOOK, timedelta(minutes=1), TESTER)).reveal()

    async def verified_by(secret: str) -> bool:
        one = receiver.received[-1]
        # The library's clock cannot be moved, so the time is put back before the signature is compared.
        return any(
            signature in one.headers["webhook-signature"].split()
            for signature in [
                standardwebhooks.Webhook(secret).sign(
                    one.event_id,
                    datetime.fromtimestamp(int(one.headers["webhook-timestamp"]), tz=house.now().tzinfo),
                    one.body.decode(),
                )
            ]
        )

    await house.happen()
    await house.deliver()
    assert await verified_by(old)
    assert await verified_by(new)
    house.ahead += timedelta(minutes=2)
    await house.happen()
    await house.deliver()
    assert not await verified_by(old)
    assert await verified_by(new)
    newest = (await house.webhooks.rotate_secret(HOOK, timedelta(0), TESTER)).reveal()
    await house.happen()
    await house.deliver()
    assert not await verified_by(new)
    assert await verified_by(newest)
    stored = str(house.rows(tables.webhooks))
    assert not any(secret in stored for secret in (old, new, newest))


async def test_a_secret_that_cannot_be_read_is_told_of(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen()
    spoil = tables.webhooks.update().values(secret=b"x" * 60)
    await house.database.write(lambda connection: connection.execute(spoil))
    await house.deliver()
    assert receiver.received == []
    assert "cannot be read" in str((await house.only_delivery()).problem)


class TestWorkers:
    async def test_several_at_once_send_each_event_once(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        events = await house.happen(60)

        async def take_a_while(_request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0.02)
            return web.Response()

        receiver.behave = take_a_while
        async with contextlib.AsyncExitStack() as stack:
            others = [await stack.enter_async_context(open_house(house.url)) for _ in range(3)]
            await asyncio.gather(*(one.deliver() for one in (house, *others)))
        assert sorted(one.event_id for one in receiver.received) == sorted(events)
        assert receiver.most_at_once > 1

    async def test_what_a_killed_one_had_is_taken_up_when_it_must_be_dead(
        self, house: House, receiver: Receiver
    ) -> None:
        await house.hook(receiver)
        (event,) = await house.happen()
        receiver.hang()
        killed = asyncio.create_task(house.deliver())
        await eventually(lambda: _has(receiver, 1))
        killed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killed
        receiver.behave = None
        async with open_house(house.url) as other:
            await other.deliver()
            assert len(receiver.received) == 1
            other.ahead = LEASE
            await other.deliver()
            assert [one.event_id for one in receiver.received] == [event, event]
            delivery = await other.only_delivery()
            assert (delivery.status, delivery.attempts) == ("delivered", 2)

    async def test_one_that_was_taken_for_dead_changes_nothing_any_more(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        await house.happen()
        released = receiver.hang()
        slow = asyncio.create_task(house.deliver())
        await eventually(lambda: _has(receiver, 1))
        receiver.statuses(500)
        async with open_house(house.url) as other:
            other.ahead = LEASE
            await other.deliver()
            before = await other.only_delivery()
            released.set()
            await slow
            assert await other.only_delivery() == before
            assert before.status == "waiting"

    async def test_a_slow_webhook_holds_up_no_other(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver, "quick")
        async with receiving() as slow:
            released = slow.hang()
            await house.hook(slow, "slow")
            stop = asyncio.Event()
            job = asyncio.create_task(deliver_regularly(house.worker(), stop))
            await house.happen(20)
            await eventually(lambda: _has(receiver, 20))
            await house.happen(5)
            await eventually(lambda: _has(receiver, 25))
            assert 1 <= slow.most_at_once <= 4
            released.set()
            await eventually(lambda: _has(slow, 25))
            stop.set()
            await job

    async def test_a_job_that_stops_ends_what_is_under_way(self, house: House, receiver: Receiver) -> None:
        await house.hook(receiver)
        await house.happen()
        released = receiver.hang()
        stop = asyncio.Event()
        job = asyncio.create_task(deliver_regularly(house.worker(), stop))
        await eventually(lambda: _has(receiver, 1))
        stop.set()
        released.set()
        await job
        assert (await house.only_delivery()).status == "delivered"


async def test_what_is_deleted_gets_nothing_more(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    await house.happen(3)
    await house.deliveries.find_due()
    await house.webhooks.delete(HOOK, TESTER)
    await house.deliver()
    assert receiver.received == []
    assert house.rows(tables.webhook_deliveries) == []


async def test_what_is_disabled_by_request_waits(house: House, receiver: Receiver) -> None:
    await house.hook(receiver)
    url = (await house.webhooks.get(HOOK)).url
    await house.happen()
    assert await house.deliveries.find_due() == [HOOK]
    await house.webhooks.put(HOOK, url, None, TESTER, is_enabled=False)
    async with house.deliveries.open_sender() as sender:
        assert await house.deliveries.deliver_due(HOOK, sender) == 0
    await house.happen()
    await house.deliver()
    assert receiver.received == []
    await house.webhooks.put(HOOK, url, None, TESTER)
    await house.deliver()
    assert len(receiver.received) == 2


async def test_attempts_are_counted_by_how_they_ended(house: House, receiver: Receiver) -> None:
    name = f"counted-{house.database.url.get_backend_name()}"
    await house.hook(receiver, name)
    receiver.statuses(500, 200, 410)
    await house.happen()
    await house.deliver()
    house.ahead += timedelta(minutes=1)
    await house.deliver()
    await house.happen()
    await house.deliver()
    counts = {
        outcome: REGISTRY.get_sample_value("entrepot_webhook_attempts_total", {"webhook": name, "outcome": outcome})
        for outcome in ("delivered", "failed", "given_up")
    }
    assert counts == {"delivered": 1, "failed": 1, "given_up": 1}
