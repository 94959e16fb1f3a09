"""What the reference says of events, for tests that hold the program to it."""

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"
_ROW = re.compile(r"^\| ((?:`[a-z0-9.]+`(?:, )?)+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def documented_events() -> dict[str, set[str]]:
    """Every type in the table, and the words in code type that its data has."""
    found: dict[str, set[str]] = {}
    before: set[str] = set()
    for types, _, data in _ROW.findall(_PAGE.read_text(encoding="utf-8")):
        fields = set(re.findall(r"`([a-z_]+)`", data)) | (before if data.startswith("as before") else set())
        before = fields
        for kind in re.findall(r"`([^`]+)`", types):
            found[kind] = fields
    return found
