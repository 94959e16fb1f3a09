"""A TCP proxy that can be told to misbehave, between a program and what it depends on."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["pass", "slow", "hang", "refuse", "fail", "cut"]

_PIECE_BYTES = 64 * 1024
_SLOW_PIECE_SECONDS = 0.1
# In the middle of an answer of some megabytes, and of a request of as many.
_CUT_BYTES = 300_000
_FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Proxy:
    """Passes bytes on both ways, in one of these modes.

    `slow`: 640 KB/s; `hang`: takes everything and answers nothing; `refuse`: closes at once; `fail`: answers every
    request with HTTP 500; `cut`: ends each connection after 300 KB in one direction.
    """

    target: int
    port: int = 0
    _mode: Mode = "pass"
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def become(self, mode: Mode) -> None:
        """Behave like this from now on; what is open stays so only while it `hang`s or is `slow`."""
        asyncio.run_coroutine_threadsafe(self._become(mode), self._loop).result(10)

    async def _become(self, mode: Mode) -> None:
        was, self._mode = self._mode, mode
        if mode == "hang":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode not in {"hang", "slow"} or was == "hang":
            for writer in list(self._open):
                writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._mode == "fail":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(_FAILURE)
                await writer.drain()
            elif self._mode != "refuse":
                await self._pass_on(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort() if self._mode != "fail" else writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, onward = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            ways = [asyncio.create_task(self._pump(reader, onward)), asyncio.create_task(self._pump(upstream, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            onward.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while piece := await reader.read(_PIECE_BYTES):
            await self._flowing.wait()
            if self._mode == "slow":
                await asyncio.sleep(_SLOW_PIECE_SECONDS)
            passed += len(piece)
            if self._mode == "cut" and passed > _CUT_BYTES:
                return
            writer.write(piece)
            await writer.drain()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", self.port))
        self._flowing.set()
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    @contextmanager
    def serving(self) -> Iterator["Proxy"]:
        """On a free port, on a thread of its own."""
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=[started], daemon=True)
        thread.start()
        started.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(10)
