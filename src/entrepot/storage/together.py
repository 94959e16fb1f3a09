"""Writes that wait at the same time become durable at the same time.

SQLite syncs the disk once for each commit, one after another, which on many disks takes longer than the writing itself.
So what has come up while one transaction was written goes into the next one together, each part behind a savepoint of
its own: one that fails takes nothing of the others with it, and none is answered before all are on the disk.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from entrepot.errors import EntrepotError

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

# A bound on how long other processes wait for their turn.
_MOST = 50

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    work: Work[Any]
    answer: "Future[Any]"


class Together:
    """Runs transactions by `run`, on the one thread of `threads`."""

    def __init__(self, run: Callable[[Work[Any]], Any], threads: ThreadPoolExecutor) -> None:
        self._run = run
        self._threads = threads
        self._line: deque[_Waiting] = deque()
        self._lock = threading.Lock()

    def submit(self, work: Work[T]) -> "Future[T]":
        """What `work` answers, once it is durable."""
        answer: Future[T] = Future()
        with self._lock:
            self._line.append(_Waiting(work, answer))
        # As many steps as works: one that finds nothing left does nothing.
        self._threads.submit(self._step)
        return answer

    def _step(self) -> None:
        with self._lock:
            taken = [self._line.popleft() for _ in range(min(len(self._line), _MOST))]
        waiting = [one for one in taken if one.answer.set_running_or_notify_cancel()]
        if len(waiting) > 1 and self._run_together(waiting):
            return
        for one in waiting:
            self._run_alone(one)

    def _run_alone(self, one: _Waiting) -> None:
        try:
            answer = self._run(one.work)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the answer gets it
            one.answer.set_exception(error)
        else:
            one.answer.set_result(answer)

    def _run_together(self, waiting: list[_Waiting]) -> bool:
        """Run all in one transaction; False when nothing of it was kept, so that each must run alone."""
        outcomes: list[tuple[Any, Exception | None]] = []

        def work(connection: sa.Connection) -> None:
            outcomes.clear()
            outcomes.extend(_attempt(connection, one.work) for one in waiting)

        try:
            self._run(work)
        except (EntrepotError, DBAPIError) as error:
            log.debug("writes_run_alone", count=len(waiting), error=str(error))
            return False
        except BaseException as error:  # noqa: BLE001
            for one in waiting:
                one.answer.set_exception(error)
            return True
        for one, (answer, refusal) in zip(waiting, outcomes, strict=True):
            if refusal is None:
                one.answer.set_result(answer)
            else:
                one.answer.set_exception(refusal)
        return True


def _attempt(connection: sa.Connection, work: Work[Any]) -> tuple[Any, Exception | None]:
    """What `work` answers, or raises after all that it wrote is taken back. The database's errors concern everybody."""
    savepoint = connection.begin_nested()
    try:
        answer = work(connection)
    except DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001 - its own mistake or refusal, for whoever asked
        savepoint.rollback()
        return None, error
    savepoint.commit()
    return answer, None
