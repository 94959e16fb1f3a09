"""What signals must do, through the database alone and with Redis beside it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from entrepot.errors import DatabaseUnavailable, SettingsInvalid
from entrepot.storage import signals as signals_module
from entrepot.storage.clock import utc_now
from entrepot.storage.database import Database
from entrepot.storage.redis_wire import RedisWire
from entrepot.storage.signals import CURRENT_SECONDS, POLL_SECONDS, POLL_SECONDS_BESIDE_WIRE, Signals, publish
from entrepot.storage.tables import signals as table
from tests.support.servers import Redis, redis_with_tls
from tests.support.servers import redis as serve_redis

OpenSignals = Callable[..., Signals]
# What a busy machine may take.
PATIENCE_SECONDS = 30


@pytest.fixture(params=["database", "redis"])
def open_signals(request: pytest.FixtureRequest, url: str, database: Database) -> Iterator[OpenSignals]:
    """Makes the ear of one more process; with Redis or without."""
    opened: list[tuple[Signals, Database]] = []

    def make(**options: float) -> Signals:
        other = Database(url)
        wire = None
        if request.param == "redis":
            server: Redis = request.getfixturevalue("redis_server")
            wire = RedisWire(server.url)
        signals = Signals(other, utc_now, wire=wire, **options)
        opened.append((signals, other))
        return signals

    yield make
    for signals, other in opened:
        signals.stop()
        other.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


class Slow:
    """A transaction that publishes a notice, and commits only when it is told to."""

    def __init__(self, database: Database, pool: ThreadPoolExecutor, key: str) -> None:
        self._key = key
        self._published, self._released = threading.Event(), threading.Event()
        self._done = pool.submit(database.write_now, self._work)
        assert self._published.wait(PATIENCE_SECONDS)

    def _work(self, connection: sa.Connection) -> None:
        publish(connection, "plan", self._key, utc_now())
        self._published.set()
        self._released.wait(PATIENCE_SECONDS)

    def commit(self) -> None:
        self._released.set()
        self._done.result()


async def test_every_process_hears_of_a_committed_change(open_signals: OpenSignals) -> None:
    here, there = open_signals(), open_signals()
    heard: list[tuple[str, str]] = []
    here.listen("plan", lambda key: heard.append(("here", key)))
    there.listen("plan", lambda key: heard.append(("there", key)))
    there.listen("other", lambda key: heard.append(("wrong", key)))
    here.start()
    there.start()
    await here.commit(lambda connection: publish(connection, "plan", "free", utc_now()))
    committed_at = time.monotonic()
    assert ("here", "free") in heard  # before `commit` returns

    def is_heard_or_known_to_lag() -> bool:
        is_late, is_current = time.monotonic() - committed_at > 1, there.is_current()
        is_heard = ("there", "free") in heard
        assert is_heard or not is_late or not is_current
        return is_heard

    await until(is_heard_or_known_to_lag)
    assert set(heard) == {("here", "free"), ("there", "free")}


async def test_a_change_that_is_rolled_back_is_not_heard_of(open_signals: OpenSignals) -> None:
    signals = open_signals()
    heard: list[str] = []
    signals.listen("plan", heard.append)
    signals.start()

    def fail(connection: sa.Connection) -> None:
        publish(connection, "plan", "free", utc_now())
        raise ValueError

    with pytest.raises(ValueError):
        await signals.commit(fail)
    await signals.commit(lambda connection: publish(connection, "plan", "other", utc_now()))
    await asyncio.sleep(POLL_SECONDS_BESIDE_WIRE * 2)
    assert set(heard) == {"other"}


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite's only writer commits ids in their order
async def test_a_change_that_commits_late_is_heard_of(database: Database, open_signals: OpenSignals) -> None:
    """Ids are taken when a row is written, not when it is committed: a later id may be seen first."""
    signals = open_signals()
    heard: list[str] = []
    signals.listen("plan", heard.append)
    signals.start()

    with ThreadPoolExecutor(1) as pool:
        slow = Slow(database, pool, "late")
        await asyncio.to_thread(database.write_now, lambda connection: publish(connection, "plan", "early", utc_now()))
        await until(lambda: heard == ["early"])
        await asyncio.to_thread(slow.commit)
    await until(lambda: heard == ["early", "late"])


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_change_that_was_under_way_at_the_start_is_heard_of(
    database: Database, open_signals: OpenSignals
) -> None:
    signals = open_signals()
    heard: list[str] = []
    signals.listen("plan", heard.append)
    for key in ("old", "slow"):
        database.write_now(lambda connection, key=key: publish(connection, "plan", key, utc_now()))

    with ThreadPoolExecutor(1) as pool:
        slow = Slow(database, pool, "late")
        await asyncio.to_thread(database.write_now, lambda connection: publish(connection, "plan", "new", utc_now()))
        signals.start()
        await asyncio.to_thread(slow.commit)
    await until(lambda: heard == ["late"])


class TestMeasure:
    async def test_each_notice_is_measured_once_in_each_process(self, open_signals: OpenSignals) -> None:
        here, there = open_signals(), open_signals()
        heard: list[str] = []
        lags: dict[str, list[float]] = {"here": [], "there": []}
        there.listen("plan", heard.append)
        for signals, name in ((here, "here"), (there, "there")):
            signals.measure("plan", lags[name].append)
            signals.start()
        for number in range(3):
            key = str(number)
            await here.commit(lambda connection, key=key: publish(connection, "plan", key, utc_now()))
            await here.commit(lambda connection: publish(connection, "other", "x", utc_now()))
        await until(lambda: len(lags["there"]) == 3 and len(lags["here"]) == 3)
        # Through Redis and the database both, which must not count twice.
        there.catch_up()
        here.catch_up()
        await asyncio.sleep(POLL_SECONDS_BESIDE_WIRE + 0.1)
        assert {name: len(found) for name, found in lags.items()} == {"here": 3, "there": 3}
        assert all(0 <= lag < 60 for found in lags.values() for lag in found)
        assert heard

    async def test_it_is_the_time_since_the_change(self, open_signals: OpenSignals) -> None:
        signals = open_signals()
        lags: list[float] = []
        signals.measure("plan", lags.append)
        signals.start()
        ago = timedelta(seconds=100)
        await signals.commit(lambda connection: publish(connection, "plan", "free", utc_now() - ago))
        await signals.commit(lambda connection: publish(connection, "plan", "free", utc_now() + ago))
        assert 100 <= lags[0] < 160
        assert lags[1] == 0  # another machine's clock is ahead


class TestOutage:
    async def test_caches_go_on_while_the_database_is_away_but_not_for_ever(
        self, open_signals: OpenSignals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        signals = open_signals(outage_seconds=4)
        signals.start()
        await until(signals.is_current)

        def fail(*_: object) -> None:
            raise DatabaseUnavailable("away")

        with monkeypatch.context() as away:
            away.setattr(signals_module, "_read_after", fail)
            begun_at = time.monotonic()
            await asyncio.sleep(CURRENT_SECONDS + 0.3)
            assert signals.is_current()
            await until(lambda: not signals.is_current())
            assert time.monotonic() - begun_at > 2
        await until(signals.is_current)

    async def test_a_process_that_falls_behind_knows_it(
        self, open_signals: OpenSignals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The database answers others, so what this process has not heard may have happened."""
        signals = open_signals()
        signals.start()
        real = signals_module._read_after

        def slow(*arguments: object) -> object:
            time.sleep(1.5)
            return real(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as lagging:
            lagging.setattr(signals_module, "_read_after", slow)
            await until(lambda: not signals.is_current())
        await until(signals.is_current)


def test_old_notices_are_dropped_but_ids_go_on(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        for number in range(5):
            publish(connection, "plan", str(number), utc_now())
        signals_module._prune(connection, utc_now())

    def keys(connection: sa.Connection) -> list[str]:
        return [notice.key for notice in signals_module._read_after(connection, 0, [])]

    database.write_now(work)
    (before,) = database.read_now(signals_module._read_latest_ids)
    database.write_now(lambda connection: publish(connection, "plan", "new", utc_now()))
    assert database.read_now(keys) == ["4", "new"]
    assert database.read_now(signals_module._read_latest_ids) == [before + 1, before]


class TestRedis:
    async def test_it_is_sooner_than_the_database(
        self, redis_server: Redis, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals_module, "POLL_SECONDS_BESIDE_WIRE", 600)
        here = Signals(database, utc_now, wire=RedisWire(redis_server.url))
        there = Signals(database, utc_now, wire=RedisWire(redis_server.url))
        heard: list[str] = []
        there.listen("plan", heard.append)
        here.start()
        there.start()
        await until(lambda: there._pause() == 600 and here._pause() == 600)
        await asyncio.sleep(0.2)  # a poll may be under way
        await here.commit(lambda connection: publish(connection, "plan", "free", utc_now()))
        await until(lambda: heard == ["free"])
        monkeypatch.setattr(signals_module, "POLL_SECONDS_BESIDE_WIRE", 0.1)
        here._stopping.set()
        there._stopping.set()
        here.stop()
        there.stop()

    async def test_killing_it_loses_nothing_and_delays_nobody(
        self, tmp_path: Path, url: str, database: Database
    ) -> None:
        with serve_redis(tmp_path) as server:
            here = Signals(database, utc_now, wire=RedisWire(server.url))
            other = Database(url)
            there = Signals(other, utc_now, wire=RedisWire(server.url))
            heard: list[str] = []
            there.listen("plan", heard.append)
            here.start()
            there.start()
            await until(lambda: there._pause() == POLL_SECONDS_BESIDE_WIRE)
            slowest = 0.0
            for number in range(60):
                if number == 20:
                    server.process.kill()
                if number == 40:
                    server.restart()
                begun = time.perf_counter()
                key = str(number)
                await here.commit(lambda connection, key=key: publish(connection, "plan", key, utc_now()))
                slowest = max(slowest, time.perf_counter() - begun)
                await asyncio.sleep(0.05)
            await until(lambda: set(heard) == {str(number) for number in range(60)})
            assert slowest < 2  # for which Redis would be waited for
            await until(lambda: there._pause() == POLL_SECONDS_BESIDE_WIRE)  # it is back
            here.stop()
            there.stop()
            other.close()

    async def test_nonsense_from_it_is_passed_over(self, redis_server: Redis, database: Database) -> None:
        signals = Signals(database, utc_now, wire=RedisWire(redis_server.url))
        heard: list[str] = []
        signals.listen("plan", heard.append)
        signals.start()
        client = redis.Redis.from_url(redis_server.url)
        await until(lambda: signals._pause() == POLL_SECONDS_BESIDE_WIRE)
        for message in (
            b"\xff",
            b"[]",
            b"{}",
            b'{"from": 1, "notices": 5}',
            b'{"from": 1, "notices": [["plan"]]}',
            b'{"from": 1, "notices": [["plan", "x"]], "times": []}',
            b'{"from": 1, "notices": [["plan", "x"]], "times": [[1e999, "y"]]}',
        ):
            client.publish("entrepot:signals", message)
        client.publish("entrepot:signals", json.dumps({"from": "x", "notices": [["unheard", "k"], ["plan", "free"]]}))
        await until(lambda: heard == ["free"])
        signals.stop()

    def test_a_wrong_password_is_told_without_it(
        self, redis_server: Redis, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        wire = RedisWire(redis_server.url.replace("secret", "hidden-password"))
        assert not wire.ping()
        signals = Signals(database, utc_now, wire=wire)
        signals.start()
        time.sleep(0.5)
        assert signals._pause() == POLL_SECONDS
        signals.stop()
        assert "hidden-password" not in caplog.text

    @pytest.mark.parametrize("address", ["http://x", "redis", "redis://host:port"])
    def test_an_address_that_cannot_be_right_is_refused(self, address: str) -> None:
        with pytest.raises(SettingsInvalid, match="ENTREPOT_REDIS_URL"):
            RedisWire(address)

    async def test_tls(self, tmp_path: Path, database: Database) -> None:
        with redis_with_tls(tmp_path) as address:
            here, there = (Signals(database, utc_now, wire=RedisWire(address)) for _ in range(2))
            here.start()
            there.start()
            await until(lambda: there._pause() == POLL_SECONDS_BESIDE_WIRE)
            here.stop()
            there.stop()


def test_the_table_has_what_was_published(database: Database) -> None:
    database.write_now(lambda connection: publish(connection, "topic", "k" * 400, utc_now()))
    assert database.read_now(lambda connection: connection.scalar(sa.select(table.c.key))) == "k" * 400
