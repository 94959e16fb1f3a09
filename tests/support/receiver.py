"""A receiver of webhooks, which answers as it was told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Behave = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        """The event that it brought."""
        return self.headers["webhook-id"]

    @property
    def document(self) -> dict[str, Any]:
        """What it said."""
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass
class Receiver:
    """Keeps what it receives, and answers 204 unless told otherwise."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    behave: Behave | None = None
    at_once: int = 0
    most_at_once: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path_qs, headers, body))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return web.Response(status=204) if self.behave is None else await self.behave(request)
        finally:
            self.at_once -= 1

    def statuses(self, *statuses: int, **headers: str) -> None:
        """Answer with these statuses in turn, the last one again and again."""
        rest = list(statuses)

        async def behave(_request: web.Request) -> web.StreamResponse:
            status = rest.pop(0) if len(rest) > 1 else rest[0]
            return web.Response(status=status, headers={name.replace("_", "-"): one for name, one in headers.items()})

        self.behave = behave

    def hang(self) -> asyncio.Event:
        """Answer nothing before the event is set."""
        released = asyncio.Event()

        async def behave(_request: web.Request) -> web.StreamResponse:
            await released.wait()
            return web.Response(status=204)

        self.behave = behave
        return released


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port of this machine."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
