"""A worker that is killed in the middle of a delivery, and what takes it up after."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from entrepot.access.destinations import Destinations
from entrepot.accounts.deliveries import Deliveries
from entrepot.bootstrap import build_parts, close_parts
from entrepot.settings import load_settings
from entrepot.storage.clock import utc_now
from tests.support.programs import Entrepot, Process, running
from tests.support.receiver import Receiver, receiving
from tests.support.served import TESTER

PLANS = {"free": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}}
HOOK = "platform"


async def eventually(is_true: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, process.log.read_text()
        await asyncio.sleep(0.05)


@pytest.fixture
def entrepot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entrepot:
    monkeypatch.setenv("ENTREPOT_WEBHOOKS__NETWORKS", "127.0.0.0/8")
    entrepot = Entrepot(tmp_path / "data")
    entrepot.apply_plans(PLANS)
    return entrepot


async def set_up(entrepot: Entrepot, receiver: Receiver) -> None:
    parts = build_parts(load_settings(data=entrepot.data))
    try:
        await parts.webhooks.put(HOOK, f"{receiver.url}/hook", ["account.created"], TESTER)
    finally:
        close_parts(parts)


async def take_up_later(entrepot: Entrepot, later: timedelta) -> None:
    """What another worker would do some time later."""
    parts = build_parts(load_settings(data=entrepot.data))
    try:
        networks = Destinations(parts.settings.webhooks.networks)
        other = Deliveries(parts.database, parts.webhooks, lambda: utc_now() + later, networks)
        async with other.open_sender() as sender:
            for name in await other.find_due():
                await other.deliver_due(name, sender)
    finally:
        close_parts(parts)


async def test_what_a_killed_worker_was_delivering_is_delivered_by_another(entrepot: Entrepot) -> None:
    log = entrepot.data.parent / "worker.log"
    async with receiving() as receiver:
        await set_up(entrepot, receiver)
        with running(entrepot.command("worker"), log) as worker:
            await asyncio.to_thread(entrepot.issue, "ada", "free")
            await eventually(lambda: len(receiver.received) == 1, worker)
            released = receiver.hang()
            await asyncio.to_thread(entrepot.issue, "eve", "free")
            await eventually(lambda: len(receiver.received) == 2, worker)
            worker.kill()
        released.set()
        receiver.behave = None
        await take_up_later(entrepot, timedelta(0))
        assert len(receiver.received) == 2  # the dead one may still be alive, for all that anybody knows
        await take_up_later(entrepot, timedelta(seconds=61))
        first, killed, again = receiver.received
        assert first.event_id != killed.event_id
        assert (killed.event_id, killed.body) == (again.event_id, again.body)
        await take_up_later(entrepot, timedelta(days=1))
        assert len(receiver.received) == 3


async def test_a_server_delivers_by_itself(entrepot: Entrepot) -> None:
    async with receiving() as receiver:
        await set_up(entrepot, receiver)

        def serve() -> None:
            line = 'entrepot_webhook_attempts_total{outcome="delivered",webhook="platform"} 1.0'
            with entrepot.serving() as process:
                entrepot.issue("ada", "free")
                deadline = time.monotonic() + 60
                while line not in httpx.get(f"{entrepot.url}/metrics").text:
                    assert time.monotonic() < deadline, process.log.read_text()
                    time.sleep(0.1)

        await asyncio.to_thread(serve)
        assert [one.document["type"] for one in receiver.received] == ["account.created"]
