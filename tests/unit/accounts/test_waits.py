from datetime import timedelta

import pytest

from entrepot.accounts.deliveries import WAITS, plan_wait
from entrepot.accounts.webhook_answer import Answer

FAILED = Answer(500, "answered 500")


def test_waits_are_those_that_the_specification_proposes() -> None:
    hours = [wait / timedelta(hours=1) for wait in WAITS]
    assert hours == pytest.approx([5 / 3600, 5 / 60, 0.5, 2, 5, 10, 14, 20, 24])


@pytest.mark.parametrize("attempts", range(1, 10))
def test_a_wait_is_no_shorter_and_not_the_same_for_all(attempts: int) -> None:
    full = WAITS[attempts - 1]
    found = {plan_wait(attempts, FAILED) for _ in range(50)}
    assert len(found) > 40
    assert all(wait is not None and full <= wait <= full * 1.2 for wait in found)


def test_after_the_last_attempt_there_is_none() -> None:
    assert plan_wait(10, FAILED) is None


@pytest.mark.parametrize(
    ("attempts", "asked", "least", "most"),
    [
        (1, 60.0, timedelta(seconds=60), timedelta(seconds=60)),
        (2, 60.0, timedelta(minutes=5), timedelta(minutes=6)),  # never sooner than planned
        (1, 10.0**9, timedelta(days=1), timedelta(days=1)),
    ],
)
def test_the_receiver_may_ask_for_longer(attempts: int, asked: float, least: timedelta, most: timedelta) -> None:
    wait = plan_wait(attempts, Answer(503, "answered 503", asked))
    assert wait is not None
    assert least <= wait <= most


def test_who_wants_no_more_gets_no_more() -> None:
    assert plan_wait(1, Answer(410, "answered 410", 5.0)) is None
