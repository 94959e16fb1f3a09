"""How long to wait for a source, and how often to ask again."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of one request, in seconds: to connect, between two pieces, and for a whole small answer."""

    connect_seconds: float = 10
    idle_seconds: float = 60
    answer_seconds: float = 60


@dataclass(frozen=True, slots=True)
class Backoff:
    """At most `attempts` tries; the wait doubles from `first_seconds` and never exceeds `most_seconds`."""

    attempts: int = 5
    first_seconds: float = 0.5
    most_seconds: float = 20

    def wait_seconds(self, failures: int, asked_seconds: float | None = None) -> float:
        """The wait after `failures` failed tries (1 or more); `asked_seconds` is what the source asks for.

        Half of it is random, so that many clients do not come back at the same moment (AWS Architecture Blog,
        "Exponential Backoff And Jitter", 2015).
        """
        if asked_seconds is not None:
            return min(asked_seconds, self.most_seconds)
        full = min(self.first_seconds * 2.0 ** (failures - 1), self.most_seconds)
        return full / 2 + random.uniform(0, full / 2)  # noqa: S311 - spreads load, guards nothing
