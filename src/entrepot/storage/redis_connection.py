"""How Redis is reached, whatever it is used for."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from entrepot.errors import SettingsInvalid


def open_redis(url: str, *, answer_seconds: float) -> redis.Redis:
    """A client that connects when it is first used, and tries nothing twice.

    `url` is redis:// or rediss:// (TLS), with its password. Raises SettingsInvalid.
    """
    try:
        client: redis.Redis = redis.Redis.from_url(
            url,
            socket_connect_timeout=answer_seconds,
            socket_timeout=answer_seconds,
            retry=Retry(NoBackoff(), 0),
            client_name="entrepot",
        )
    except ValueError as error:
        raise SettingsInvalid(
            "ENTREPOT_REDIS_URL: use redis://[:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS"
        ) from error
    return client


def name_of(error: Exception) -> str:
    """What happened, without what may hold a password."""
    return type(error).__name__
