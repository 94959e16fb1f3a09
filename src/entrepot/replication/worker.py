"""The worker: queues what schedules want, runs what is queued, and takes over what a dead process left."""

import asyncio

import structlog

from entrepot.errors import EntrepotError, RunInterrupted
from entrepot.replication.replications import Replications
from entrepot.replication.runs import Run, Runs

# How often a worker looks for work that it is not told of. Reading an indexed table costs some 100 microseconds.
_POLL_SECONDS = 1.0

_log = structlog.stdlib.get_logger(__name__)


async def work(runs: Runs, replications: Replications, stop: asyncio.Event, *, at_once: int = 4) -> None:
    """Carry out runs until `stop` is set; what is unfinished then is given back to the queue.

    At most `at_once` runs of whole rules go on at a time, so that a slow source does not hold up the others, and as
    many runs of pushes, so that long runs do not hold up a push.
    """
    whole: set[asyncio.Task[None]] = set()
    pushes: set[asyncio.Task[None]] = set()
    with runs.watching_work() as bell:
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            run = await _claim(runs, takes_whole=len(whole) < at_once, takes_pushes=len(pushes) < at_once)
            if run is not None:
                going = whole if run.scope is None else pushes
                task = asyncio.create_task(_carry_out(replications, run))
                going.add(task)
                task.add_done_callback(going.discard)
                # What has ended may leave room for what waits.
                task.add_done_callback(lambda _: bell.set())
                continue
            await _rest(bell, stopping)
        stopping.cancel()
    for task in whole | pushes:
        task.cancel()
    await asyncio.gather(*whole, *pushes, return_exceptions=True)


async def _rest(bell: asyncio.Event, stopping: "asyncio.Task[bool]") -> None:
    """Wait until there may be something to do."""
    ringing = asyncio.create_task(bell.wait())
    await asyncio.wait({ringing, stopping}, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    ringing.cancel()
    bell.clear()


async def _claim(runs: Runs, *, takes_whole: bool, takes_pushes: bool) -> Run | None:
    try:
        await runs.queue_scheduled()
        return await runs.claim(takes_whole=takes_whole, takes_pushes=takes_pushes)
    except EntrepotError as error:
        _log.warning("cannot look for queued runs", problem=str(error))
        return None


async def _carry_out(replications: Replications, run: Run) -> None:
    try:
        await replications.carry_out(run)
    except RunInterrupted as error:
        _log.info("run interrupted", rule=run.rule, run=run.id, problem=str(error))
    except EntrepotError as error:
        # Its row shows no life from now on, so that it is taken up again once the database is back.
        _log.warning("run not recorded", rule=run.rule, run=run.id, problem=str(error))
