"""An HTTP proxy, as companies have between themselves and the world."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE_BYTES = 64 * 1024


@dataclass
class ForwardProxy:
    """Connects to what it is asked for (CONNECT), and passes on requests for whole URLs; refuses what it is told to."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    refuses: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, rest = head.split(b" ", 2)
            self.asked.append(target.decode())
            if self.refuses:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            elif method == b"CONNECT":
                host, _, port = target.decode().rpartition(":")
                await self._pass_on(reader, writer, host, int(port), b"")
            else:
                url = urlsplit(target.decode())
                path = f"{url.path}?{url.query}" if url.query else url.path
                # One request per connection: each must be looked at.
                begin = method + b" " + path.encode() + b" " + rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                await self._pass_on(reader, writer, url.hostname or "", url.port or 80, begin)
        writer.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, begin: bytes
    ) -> None:
        upstream, onward = await asyncio.open_connection(host, port)
        if begin:
            onward.write(begin)
        else:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = [asyncio.create_task(_pump(reader, onward)), asyncio.create_task(_pump(upstream, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            onward.close()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()


@contextmanager
def forward_proxy() -> Iterator[ForwardProxy]:
    """A proxy on a free port, on a thread of its own."""
    proxy = ForwardProxy()
    started = threading.Event()
    thread = threading.Thread(target=proxy._run, args=[started], daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join(10)
