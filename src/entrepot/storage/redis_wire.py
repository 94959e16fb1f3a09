"""Change notices through Redis publish and subscribe.

What Redis loses, while it is away or because it drops a slow subscriber, the database still tells: see
`storage/signals.py`. So nothing here is retried or waited for, and no request ever waits for Redis.
"""

import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import redis
import structlog

from entrepot.storage.redis_connection import name_of, open_redis
from entrepot.storage.signals import Notice

_CHANNEL = "entrepot:signals"
_ANSWER_SECONDS = 2.0
# A subscriber that hears nothing asks for a sign of life this often, and knows by it that the connection holds.
_BEAT_SECONDS = 1.0
_RECONNECT_SECONDS = 0.5
# Notices that wait while Redis is slow; beyond that they are left to the database.
_MAX_WAITING = 10_000
_MAX_MESSAGE_BYTES = 1024 * 1024

log = structlog.get_logger(__name__)


class RedisWire:
    """Notices to and from every process at one Redis. `url` is redis:// or rediss:// (TLS), with its password."""

    def __init__(self, url: str) -> None:
        self._redis = open_redis(url, answer_seconds=_ANSWER_SECONDS)
        self._sender = uuid.uuid4().hex
        self._waiting: queue.Queue[list[Notice]] = queue.Queue(_MAX_WAITING)
        self._is_open = False
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, hear: Callable[[Iterable[Notice]], None]) -> None:
        """Begin to send, and to pass on what others send."""
        self._threads = [
            threading.Thread(target=self._receive, args=(hear,), name="redis-receive", daemon=True),
            threading.Thread(target=self._send, name="redis-send", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, notices: Iterable[Notice]) -> None:
        """Send to every other process."""
        try:
            self._waiting.put_nowait(list(notices))
        except queue.Full:
            return

    def is_open(self) -> bool:
        """Whether the subscription holds."""
        return self._is_open

    def ping(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        """End, without waiting for what was not sent, nor for the receiver, which notices within a beat."""
        self._stopping.set()
        self.send([])

    def _send(self) -> None:
        while True:
            notices = self._waiting.get()
            if self._stopping.is_set():
                self._redis.close()
                return
            try:
                self._redis.publish(_CHANNEL, self._write(notices))
            except redis.RedisError as error:
                log.debug("redis_not_sent", error=name_of(error))

    def _receive(self, hear: Callable[[Iterable[Notice]], None]) -> None:
        is_told = False
        while not self._stopping.is_set():
            try:
                with self._redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(_CHANNEL)
                    self._follow(subscription, hear)
            except (redis.RedisError, OSError, ValueError, AttributeError) as error:
                if self._stopping.is_set():  # `stop` closed the connection under it
                    return
                if not is_told:
                    log.warning("redis_away", error=name_of(error), effect="notices come through the database alone")
                is_told = True
            else:
                is_told = False
            self._is_open = False
            self._stopping.wait(_RECONNECT_SECONDS)

    def _follow(self, subscription: Any, hear: Callable[[Iterable[Notice]], None]) -> None:
        """Pass on messages until the connection breaks, which raises RedisError, or does not answer."""
        is_asked = False
        while not self._stopping.is_set():
            message = subscription.get_message(timeout=_BEAT_SECONDS)
            if message is None:
                if is_asked:
                    raise redis.TimeoutError("no sign of life")
                subscription.ping()
                is_asked = True
                continue
            is_asked = False
            self._is_open = True
            if message["type"] == "message":
                hear(self._read(message["data"]))

    def _write(self, notices: list[Notice]) -> str:
        """A message. Topics and keys alone are what versions before this one send and read."""
        return json.dumps(
            {
                "from": self._sender,
                "notices": [(notice.topic, notice.key) for notice in notices],
                "times": [(notice.id, notice.at) for notice in notices],
            }
        )

    def _read(self, data: bytes) -> list[Notice]:
        """The notices of a message; none when it is our own, or nonsense (whoever reaches Redis can send that)."""
        if len(data) > _MAX_MESSAGE_BYTES:
            return []
        try:
            document = json.loads(data)
            if document["from"] == self._sender:
                return []
            pairs = document["notices"]
            times = document.get("times", [(0, 0)] * len(pairs))
            return [
                Notice(str(topic), str(key), int(number), float(at))
                for (topic, key), (number, at) in zip(pairs, times, strict=True)
            ]
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            return []
