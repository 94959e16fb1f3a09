"""Shared counts in Redis: a hash for each name and window, which ends by itself when nobody counts in it any more."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import redis

from entrepot.errors import RedisUnavailable
from entrepot.storage.counters import Amounts, Change
from entrepot.storage.redis_connection import name_of, open_redis

# Below the patience of whoever asks.
_ANSWER_SECONDS = 0.5
# Beyond a window's length: the clocks of two machines may differ, and that of Redis does not matter.
_KEPT_SECONDS = 3600
# ARGV: for how long the key is kept, then (member, known, added) for each share. Amounts go through Redis as text: Lua
# would write large numbers with an exponent.
_SCRIPT = """
for i = 2, #ARGV, 3 do
  local has = redis.call('HGET', KEYS[1], ARGV[i])
  if tonumber(has or '0') < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 2])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""


class RedisCounters:
    """A CounterStore. `space` tells the counts of one installation from those of others at the same Redis."""

    name = "redis"

    def __init__(self, url: str, *, space: str) -> None:
        self._redis = open_redis(url, answer_seconds=_ANSWER_SECONDS)
        self._space = space
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="redis-counters")

    async def exchange(self, changes: Sequence[Change]) -> list[Amounts]:
        """See CounterStore."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._exchange, changes)

    async def prune(self, before: datetime) -> None:
        """See CounterStore; Redis does it by itself."""

    def close(self) -> None:
        """See CounterStore."""
        self._thread.shutdown()
        self._redis.close()

    def _exchange(self, changes: Sequence[Change]) -> list[Amounts]:
        pipeline = self._redis.pipeline(transaction=False)
        for change in changes:
            key = f"entrepot:{self._space}:count:{change.name}:{change.start}"
            shares = [text for share in change.shares for text in map(str, share)]
            pipeline.eval(_SCRIPT, 1, key, str(change.until - change.start + _KEPT_SECONDS), *shares)
        try:
            return [_read(answer) for answer in pipeline.execute()]
        except redis.TimeoutError as error:
            raise TimeoutError(name_of(error)) from error
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            raise RedisUnavailable(f"Redis cannot be used for counting ({name_of(error)})") from error


def _read(answer: object) -> Amounts:
    """Fields and values, in turn."""
    if not isinstance(answer, list):
        raise TypeError(f"{type(answer).__name__} instead of a list")
    texts = [part.decode() for part in answer]
    return {field: int(value) for field, value in zip(texts[::2], texts[1::2], strict=True)}
