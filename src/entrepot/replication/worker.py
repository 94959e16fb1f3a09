"""The worker: runs what is queued, and takes over what a dead process left."""

import asyncio
import contextlib

import structlog

from entrepot.errors import RunInterrupted, Unavailable
from entrepot.replication.runs import Replications, Run

# How often a worker looks for work. Reading an indexed table costs some 100 microseconds.
_POLL_SECONDS = 1.0
# Runs of different rules that one worker carries on at a time, so that a slow source does not hold up the others.
_RUNS_AT_ONCE = 4

_log = structlog.stdlib.get_logger(__name__)


async def work(replications: Replications, stop: asyncio.Event) -> None:
    """Carry out runs until `stop` is set; what is unfinished then is given back to the queue."""
    going: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        if len(going) < _RUNS_AT_ONCE and (run := await _claim(replications)) is not None:
            task = asyncio.create_task(_carry_out(replications, run))
            going.add(task)
            task.add_done_callback(going.discard)
            continue
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _POLL_SECONDS)
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)


async def _claim(replications: Replications) -> Run | None:
    try:
        return await replications.claim()
    except Unavailable as error:
        _log.warning("cannot look for queued runs", problem=str(error))
        return None


async def _carry_out(replications: Replications, run: Run) -> None:
    try:
        await replications.carry_out(run)
    except asyncio.CancelledError:
        await replications.give_back(run)
        raise
    except RunInterrupted as error:
        _log.warning("run interrupted", rule=run.rule, run=run.id, problem=str(error))
    except Unavailable as error:
        # Its row shows no life from now on, so that it is taken up again once the database is back.
        _log.warning("run not recorded", rule=run.rule, run=run.id, problem=str(error))
