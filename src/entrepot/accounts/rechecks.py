"""Which pulls are only re-checks: the same content, for the same account and network, as a moment ago.

What counts pulls and what limits them look here, so that the two agree.
"""

from collections import OrderedDict

RECHECK_SECONDS = 60.0
_REMEMBERED = 100_000

Check = tuple[int, str, str, str]
"""(account id, repository, digest, network)."""


class Rechecks:
    """Pulls of late. The same again within `seconds` is a re-check and no pull."""

    def __init__(self, seconds: float = RECHECK_SECONDS) -> None:
        self._seconds = seconds
        self._recent: OrderedDict[Check, float] = OrderedDict()

    def is_recheck(self, check: Check, now: float) -> bool:
        """Whether it was pulled a moment before `now`, in unix seconds."""
        last = self._recent.get(check)
        return last is not None and 0 <= now - last < self._seconds

    def note(self, check: Check, now: float) -> None:
        """Remember a pull."""
        self._recent[check] = now
        self._recent.move_to_end(check)
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
