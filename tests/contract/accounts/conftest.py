from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from entrepot.access.destinations import Destinations
from entrepot.access.keys import Keys
from entrepot.access.plans import parse_plans
from entrepot.accounts.deliveries import Deliveries
from entrepot.accounts.event_records import EventFilter
from entrepot.accounts.events import Event, Events, EventType, emit
from entrepot.accounts.plans import Plans
from entrepot.accounts.service import Accounts, IssuedCredential
from entrepot.accounts.webhook_answer import Deadlines
from entrepot.accounts.webhooks import Delivery, Webhooks
from entrepot.storage.clock import utc_now
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals
from tests.support.receiver import Receiver, receiving
from tests.support.served import TESTER
from tests.support.servers import PostgreSql

PLANS = {
    "plans": {
        "free": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]},
        "trial": {"grants": [{"repositories": ["**"], "actions": ["pull"]}], "credential_lifetime": "90d"},
    }
}
HERE = Destinations([ip_network("127.0.0.0/8")])
HOOK = "platform"


class House:
    """Accounts, events and webhooks of one process, on a clock that can be moved."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ahead = timedelta(0)
        self.database = Database(url)
        signals = Signals(self.database, self.now)
        keys = Keys.derive(b"0123456789abcdef" * 2)
        self.plans = Plans(self.database, signals, self.now)
        self.accounts = Accounts(self.database, signals, self.now, keys)
        self.events = Events(self.database)
        self.webhooks = Webhooks(self.database, self.now, keys, HERE)
        self.deliveries = self.worker()

    def now(self) -> datetime:
        return utc_now() + self.ahead

    def worker(self, destinations: Destinations = HERE, **deadlines: float) -> Deliveries:
        """What delivers, as another process would have it."""
        limits = Deadlines(**({"connect_seconds": 10, "total_seconds": 10} | deadlines))
        return Deliveries(self.database, self.webhooks, self.now, destinations, deadlines=limits)

    async def issue(self, external_id: str, plan: str = "free", **options: Any) -> IssuedCredential:
        _, issued = await self.accounts.create(external_id, plan, {}, None, TESTER, **options)
        assert issued is not None
        return issued

    async def list_events(self, *types: str) -> list[Event]:
        wanted = EventFilter(frozenset(types) or None)
        return (await self.events.list_events(wanted, 0, 500)).events

    async def happen(self, count: int = 1) -> list[str]:
        """Let as many events happen as another engineer's code would; answers their ids."""

        def work(connection: sa.Connection) -> list[str]:
            ids = [emit(connection, EventType.QUOTA_80, self.now(), account="ft-x", n=n) for n in range(count)]
            return [str(one) for one in ids]

        return await self.database.write(work)

    async def hook(self, receiver: Receiver, name: str = HOOK, path: str = "/hook", **options: Any) -> str:
        """Set up a webhook; answers its secret."""
        _, secret = await self.webhooks.put(name, receiver.url + path, options.pop("types", None), TESTER, **options)
        assert secret is not None
        return secret.reveal()

    async def deliver(self, worker: Deliveries | None = None) -> None:
        """Try everything that is due, until nothing is."""
        worker = worker or self.deliveries
        async with worker.open_sender() as sender:
            while due := await worker.find_due():
                for name in due:
                    await worker.deliver_due(name, sender)

    async def only_delivery(self, name: str = HOOK) -> Delivery:
        (delivery,) = await self.webhooks.list_deliveries(name, None, None, 10)
        return delivery

    def rows(self, table: sa.Table) -> list[sa.Row[Any]]:
        return self.database.read_now(lambda connection: list(connection.execute(sa.select(table))))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database of each kind, with this version's schema."""
    if request.param == "postgresql":
        server: PostgreSql = request.getfixturevalue("postgresql_server")
        return server.create_migrated()
    url = f"sqlite:///{tmp_path}/entrepot.db"
    database = Database(url)
    database.migrate()
    database.close()
    return url


@asynccontextmanager
async def open_house(url: str) -> AsyncIterator[House]:
    house = House(url)
    try:
        yield house
    finally:
        house.database.close()


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    async with open_house(url) as house:
        await house.plans.apply(parse_plans(PLANS), TESTER)
        yield house


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver
