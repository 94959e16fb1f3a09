"""A face that is made when it is first asked."""

import asyncio
from collections.abc import Callable

from entrepot.web.asgi import App, Receive, Scope, Send


class Later:
    """Makes an application on a thread when the first request for it comes, so that nothing else waits for it.

    Whoever asks meanwhile waits, too; where making it failed, the next request tries again.
    """

    def __init__(self, make: Callable[[], App]) -> None:
        self._make = make
        self._made: App | None = None
        self._making: asyncio.Task[App] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._made is None:
            self._made = await self._wait()
        await self._made(scope, receive, send)

    async def _wait(self) -> App:
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.create_task(asyncio.to_thread(self._make))
        # A client that goes away must not take the others' work along.
        return await asyncio.shield(self._making)
