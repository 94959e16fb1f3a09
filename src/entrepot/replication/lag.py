"""What a rule's source has that is not here yet, and since when.

Since when is the time of the push, where the source tells it; else the time when it was first seen.
"""

from collections.abc import Mapping
from datetime import datetime

from entrepot.replication.differences import Change, Item
from entrepot.replication.events import Event, ItemFinished, ItemLeftOut, Listed

# Of more, the oldest and the newest are kept.
MAX_KNOWN = 1000

Unreplicated = dict[str, str]
"""`repository:tag` at the source, and the instant in ISO 8601: as it is kept with the rule."""


class Lag:
    """What one run finds out about it."""

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._missing: dict[str, datetime | None] = {}
        self._seen: set[str] = set()
        self.is_listed = False

    def note(self, event: Event) -> None:
        """Take in what the run tells."""
        match event:
            case Listed(items):
                self.is_listed = True
                self._seen = {_key(item) for item in items}
                self._missing = {_key(item): item.pushed_at for item in items if item.change is not Change.SAME}
            case ItemFinished(item):
                self._missing.pop(_key(item), None)
            case ItemLeftOut(item):
                self._seen.add(_key(item))
                self._missing.pop(_key(item), None)
            case _:
                pass

    def update(self, known: Mapping[str, str], now: datetime) -> Unreplicated:
        """What is not here, given what was `known` of it before; a run of part of a rule leaves the rest as it was."""
        rest = {} if self._is_whole else {key: since for key, since in known.items() if key not in self._seen}
        found = {key: at.isoformat() if at else known.get(key, now.isoformat()) for key, at in self._missing.items()}
        return _bounded(rest | found)


def read_ages(unreplicated: Mapping[str, str], now: datetime) -> tuple[float, float]:
    """The ages of the oldest and of the newest push that is not here, in seconds; 0 when all is."""
    ages = [max(0.0, (now - datetime.fromisoformat(since)).total_seconds()) for since in unreplicated.values()]
    return (max(ages, default=0.0), min(ages, default=0.0))


def _bounded(found: Unreplicated) -> Unreplicated:
    if len(found) <= MAX_KNOWN:
        return found
    ordered = sorted(found.items(), key=lambda entry: datetime.fromisoformat(entry[1]))
    half = MAX_KNOWN // 2
    return dict(ordered[:half] + ordered[-half:])


def _key(item: Item) -> str:
    return f"{item.origin}:{item.tag}"
