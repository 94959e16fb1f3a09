"""The pages about events and webhooks say what the program does."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from entrepot.access.signatures import generate_key, show_key, sign
from entrepot.accounts.deliveries import FAILING_FOR, WAITS
from entrepot.accounts.events import EventType
from tests.support.reference import documented_events

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "webhooks.md").read_text(encoding="utf-8")


def test_every_type_is_documented_and_no_other() -> None:
    assert list(documented_events()) == [kind.value for kind in EventType]


def test_the_receiver_in_python_tells_ours_from_others() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    verify = names["verify"]
    old, new = generate_key(), generate_key()
    headers = sign([new, old], "evt_1", int(time.time()), b"{}")
    for key in (old, new):
        verify(show_key(key).reveal(), headers, b"{}")
        with pytest.raises(ValueError, match="not signed"):
            verify(show_key(key).reveal(), headers, b"{ }")
    with pytest.raises(ValueError, match="not signed"):
        verify(show_key(generate_key()).reveal(), headers, b"{}")
    with pytest.raises(ValueError, match="too long ago"):
        verify(show_key(new).reveal(), sign([new], "evt_1", int(time.time()) - 400, b"{}"), b"{}")


def test_the_waits_are_those_of_the_page() -> None:
    (row,) = re.findall(r"^\| the next comes in \| (.*) \|$", PAGE, re.MULTILINE)
    units = {"s": 1, "min": 60, "h": 3600}
    said = [int(number) * units[unit] for number, unit in (cell.split() for cell in row.split(" | "))]
    assert said == [wait.total_seconds() for wait in WAITS]
    assert FAILING_FOR.days == 5
    assert "five days" in PAGE
