"""An attempt to deliver an event: how long it may take, and how it ended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of an attempt, in seconds: to connect, and for all of it. The spec asks for 15 to 30 in all."""

    connect_seconds: float = 5
    total_seconds: float = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt ended; `problem` is None when it succeeded, `status` when there was no answer.

    `asked_seconds` is the wait that the receiver asks for.
    """

    status: int | None
    problem: str | None
    asked_seconds: float | None = None
