"""What answers say of limits.

Source: draft-ietf-httpapi-ratelimit-headers-06 (RateLimit Fields for HTTP); Docker's documentation, "Pull usage and
limits". The two use the same names, and `200;w=3600` is valid as both: 200 pulls in a window of 3600 seconds.
"""

from functools import lru_cache

from entrepot.access.limits import Allowance
from entrepot.errors import PullLimitExceeded, TooManyRequests
from entrepot.web.asgi import Headers


@lru_cache(4096)
def limit_headers(allowance: Allowance | None) -> tuple[tuple[bytes, bytes], ...]:
    """What an account may still pull."""
    if allowance is None:
        return ()
    return (
        (b"ratelimit-limit", b"%d;w=%d" % (allowance.allowed, allowance.window_seconds)),
        (b"ratelimit-remaining", b"%d;w=%d" % (allowance.remaining, allowance.window_seconds)),
        (b"ratelimit-reset", b"%d" % allowance.reset_seconds),
        (b"docker-ratelimit-source", allowance.account.encode()),
    )


def retry_headers(error: TooManyRequests) -> Headers:
    """When to come again, and that there are no pulls until then. Source: RFC 6585, section 4."""
    allowance = None
    if isinstance(error, PullLimitExceeded) and error.pulls is not None:
        allowed, seconds = error.pulls
        allowance = Allowance(error.account, allowed, 0, seconds, error.retry_seconds)
    return [(b"retry-after", b"%d" % error.retry_seconds), *limit_headers(allowance)]
