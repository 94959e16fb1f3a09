"""Runs as server-sent events, for whoever wants to watch one.

Source: WHATWG HTML, "Server-sent events". The id of an event is that of the last artifact that was sent, so that a
client which comes back (`Last-Event-ID`) gets those that it has missed, and then how the run stands.
"""

import asyncio
import re
import time
import weakref
from collections.abc import AsyncIterator

from pydantic import BaseModel

from entrepot.errors import EntrepotError, StreamsExhausted
from entrepot.replication.runs import Run, Runs
from entrepot.web.api.replication_models import ArtifactBody, RunBody

MAX_STREAMS = 64
_LOOK_SECONDS = 1.0
# Proxies end what is silent for a minute, often less.
_COMMENT_SECONDS = 15.0
# A client comes back by itself; so a process that stops is not held up for ever.
_MAX_SECONDS = 600.0
_PAGE = 200
_ID = re.compile(r"\d{1,18}", re.ASCII)


class RunStreams:
    """The open streams of this process, of which there are only so many."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._open = 0

    async def open(self, run_id: str, last_event_id: str | None) -> AsyncIterator[bytes] | None:
        """The events of a run; None when it has ended and the client has seen it all.

        Raises RunUnknown or StreamsExhausted.
        """
        run = await self._runs.get_run(run_id)
        is_back = last_event_id is not None and _ID.fullmatch(last_event_id) is not None
        after = int(last_event_id) if is_back and last_event_id is not None else 0
        if is_back and not run.is_unfinished and not await self._runs.list_artifacts(run_id, after, 1):
            return None
        if self._open >= MAX_STREAMS:
            raise StreamsExhausted(f"{MAX_STREAMS} clients follow runs here already; ask for the run again in a while")
        events = self._follow(run, after)
        self._open += 1
        # Also when the client is gone before the first event.
        weakref.finalize(events, self._note_end)
        return events

    def _note_end(self) -> None:
        self._open -= 1

    async def _follow(self, run: Run, after: int) -> AsyncIterator[bytes]:
        ends_at = time.monotonic() + _MAX_SECONDS
        shown, sent_at = "", time.monotonic()
        try:
            while True:
                rows = await self._runs.list_artifacts(run.id, after, _PAGE)
                for row in rows:
                    after = row["id"]
                    yield _event("artifact", after, ArtifactBody.model_validate(row))
                if len(rows) == _PAGE:
                    continue
                body = RunBody.of(run)
                if (now_shown := body.model_dump_json()) != shown:
                    shown, sent_at = now_shown, time.monotonic()
                    yield _event("run", after, body)
                elif time.monotonic() - sent_at > _COMMENT_SECONDS:
                    sent_at = time.monotonic()
                    yield b": nothing new\n\n"
                if not run.is_unfinished or time.monotonic() > ends_at:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
                run = await self._runs.get_run(run.id)
        except EntrepotError:
            # The answer has begun, so it can only end; the client comes back and is told why.
            return


def _event(kind: str, last_id: int, body: BaseModel) -> bytes:
    return f"id: {last_id}\nevent: {kind}\ndata: {body.model_dump_json()}\n\n".encode()
