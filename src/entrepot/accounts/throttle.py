"""Slowing down who guesses credentials, and nobody else.

Wrong credentials are counted by the minute over all processes: for each site (an IPv4 address, an IPv6 network of 64
bits), and for each name that was tried, whether or not there is such an account. Beyond a budget they are answered that
there were too many. What is right is never refused for what others did wrong: whoever knows a secret gets in, from the
same address and at the same moment. Tokens are not throttled at all, since clients send expired ones by design.

A name that this process does not know costs a look-up. A site beyond its budget gets only a few of them, which all such
sites share, so that an attacker cannot keep the database busy; names that logged in here before are looked up always.
"""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable

from prometheus_client import Counter

from entrepot.access.limits import minute_of
from entrepot.errors import TooManyFailures
from entrepot.storage.counters import Counters, Tally

# Look-ups a second, for all sites beyond their budget together.
_LOOK_UPS = 20.0
_TRUSTED = 20_000

THROTTLED = Counter(
    "entrepot_throttled_logins_total", "Wrong credentials answered 429, by what was over budget.", ["by"]
)


class Throttle:
    """Counts wrong credentials. Budgets are per minute; 0 means that there is none.

    `key` hides addresses and names in what is shared.
    """

    def __init__(
        self,
        counters: Counters,
        key: bytes,
        *,
        per_site: int,
        per_account: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._counters = counters
        self._key = key
        self._per_site = per_site
        self._per_account = per_account
        self._clock = clock
        self._trusted: OrderedDict[str, None] = OrderedDict()
        self._look_ups = _LOOK_UPS
        self._looked_at = 0.0

    def start(self) -> None:
        """Begin to exchange counts with other processes, on the running loop."""
        self._counters.start()

    async def stop(self) -> None:
        """Tell what is left, and end."""
        await self._counters.stop()

    def close(self) -> None:
        """Let go of where counts are exchanged."""
        self._counters.close()

    def verify_may_look_up(self, site: str, name: str) -> None:
        """Raises TooManyFailures where a name is not worth a question to the database."""
        if name not in self._trusted and not self.may_look_up(site):
            raise self._refusal("site")

    def may_look_up(self, site: str) -> bool:
        """Whether what comes from a site is worth a question to the database, whatever name it has."""
        window = minute_of(self._clock())
        tally = self._counters.find(self._hide("site", site), window.start)
        return tally is None or not self._is_over(tally, self._per_site) or self._take_look_up()

    def trust(self, name: str) -> None:
        """Note that somebody logged in under a name."""
        self._trusted[name] = None
        self._trusted.move_to_end(name)
        if len(self._trusted) > _TRUSTED:
            self._trusted.popitem(last=False)

    def count_failure(self, site: str, name: str = "") -> None:
        """Note that a credential was wrong; without a name, for something that has none.

        Raises TooManyFailures when there were too many.
        """
        window = minute_of(self._clock())
        over = []
        for kind, text, budget in (("site", site, self._per_site), ("account", name, self._per_account)):
            if text and budget:
                tally = self._counters.tally(self._hide(kind, text), *window)
                tally.add(1)
                if self._is_over(tally, budget):
                    over.append(kind)
        if over:
            raise self._refusal(over[0])

    def _is_over(self, tally: Tally, budget: int) -> bool:
        return 0 < budget < tally.amount()

    def _take_look_up(self) -> bool:
        now = time.monotonic()
        self._look_ups = min(_LOOK_UPS, self._look_ups + (now - self._looked_at) * _LOOK_UPS)
        self._looked_at = now
        if self._look_ups < 1:
            return False
        self._look_ups -= 1
        return True

    def _refusal(self, over: str) -> TooManyFailures:
        THROTTLED.labels(over).inc()
        now = self._clock()
        seconds = max(1, round(minute_of(now).until - now))
        # The same words for both, so that nobody learns whether a name is an account's.
        return TooManyFailures(
            "too many wrong credentials came from your address, or for this username; check what your clients send, "
            f"and try again in {seconds} seconds",
            retry_seconds=seconds,
        )

    def _hide(self, kind: str, text: str) -> str:
        hidden = hmac.digest(self._key, f"{kind} {text}".encode("utf-8", "surrogatepass"), "sha256")
        return f"{kind}:{hidden[:15].hex()}"
