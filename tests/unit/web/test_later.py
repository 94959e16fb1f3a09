import asyncio
import threading

import pytest

from entrepot.web.asgi import App, Receive, Scope, Send
from entrepot.web.later import Later


class Maker:
    """Makes an application that counts its requests, as often as it is told to fail first."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.made: list[threading.Thread] = []
        self.asked = 0

    def make(self) -> App:
        self.made.append(threading.current_thread())
        if len(self.made) <= self.failures:
            raise ImportError

        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            self.asked += 1

        return app


async def ask(later: Later) -> None:
    async def nothing(*_: object) -> dict[str, object]:
        return {}

    await later({}, nothing, nothing)  # type: ignore[arg-type]


async def test_it_is_made_once_when_it_is_asked_and_not_on_the_loop() -> None:
    maker = Maker()
    later = Later(maker.make)
    assert maker.made == []
    await asyncio.gather(*(ask(later) for _ in range(5)))
    await ask(later)
    assert (len(maker.made), maker.asked) == (1, 6)
    assert maker.made[0] is not threading.current_thread()


async def test_it_is_made_again_where_that_failed() -> None:
    maker = Maker(failures=1)
    later = Later(maker.make)
    with pytest.raises(ImportError):
        await ask(later)
    await ask(later)
    assert (len(maker.made), maker.asked) == (2, 1)


async def test_who_goes_away_leaves_it_to_the_others() -> None:
    maker = Maker()
    later = Later(maker.make)
    first, second = asyncio.create_task(ask(later)), asyncio.create_task(ask(later))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert (len(maker.made), maker.asked) == (1, 1)
