"""Requests that may be sent again: carried out once, and answered alike for a day.

What is kept of an answer is a row in the transaction of the change itself, so that a process which is killed leaves
both or neither. It holds no secret: whoever asks again is told what was done, and not shown the secret a second time.

Source: IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from entrepot.access.secrets import is_same_hash
from entrepot.accounts import key_records
from entrepot.errors import AccountUnknown, IdempotencyKeyReused, RequestRepeated
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database, Work

T = TypeVar("T")

KEPT_FOR = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer without its secret; `account` is the account that it tells of, and with which it is erased."""

    status: int
    body: dict[str, Any]
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Once(Generic[T]):
    """A request to be carried out once. `answer` makes of its result what is kept.

    `owner` is whose key it came with: two platforms may choose the same `key`.
    """

    owner: str
    key: str
    fingerprint: bytes
    answer: Callable[[T], KeptAnswer]


def fingerprint(method: str, path: str, body: object) -> bytes:
    """What tells two requests apart; `body` is JSON, and compared by its meaning."""
    text = json.dumps([method, path, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def once_only(work: Work[T], once: Once[T] | None, now: datetime) -> Work[T]:
    """`work`, that keeps its answer; it raises RequestRepeated, and does nothing, where one is kept already."""
    if once is None:
        return work

    def keeping(connection: sa.Connection) -> T:
        key_records.drop_answer(connection, once.owner, once.key, now - KEPT_FOR)
        if key_records.find_answer(connection, once.owner, once.key, now - KEPT_FOR) is not None:
            raise RequestRepeated(_REPEATED)
        result = work(connection)
        kept = once.answer(result)
        row = {
            "api_key": once.owner,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "status": kept.status,
            "body": kept.body,
            "account": kept.account,
            "at": now,
        }
        if not key_records.insert_answer(connection, row):
            raise RequestRepeated(_REPEATED)
        return result

    return keeping


_REPEATED = "the same request is being carried out at this moment; ask again"


class Answers:
    """Every answer that is kept."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def once(self, once: Once[T] | None, change: Callable[[], Awaitable[T]]) -> T | KeptAnswer:
        """The result of `change`, which must keep its answer by `once_only`, or the answer that is kept already.

        Raises IdempotencyKeyReused when another request had this key.
        """
        if once is None:
            return await change()
        kept = await self._find(once)
        if kept is not None:
            return kept
        try:
            return await change()
        except RequestRepeated:
            kept = await self._find(once)
            if kept is None:
                raise
            return kept

    async def _find(self, once: Once[T]) -> KeptAnswer | None:
        since = self._clock() - KEPT_FOR
        row = await self._database.read(
            lambda connection: key_records.find_answer(connection, once.owner, once.key, since)
        )
        if row is None:
            return None
        if not is_same_hash(row["fingerprint"], once.fingerprint):
            raise IdempotencyKeyReused(
                "this Idempotency-Key came with another request; choose a new one for a new request"
            )
        if not row["body"]:
            raise AccountUnknown("this request was carried out, and its account was deleted since")
        return KeptAnswer(row["status"], row["body"], row["account"])
