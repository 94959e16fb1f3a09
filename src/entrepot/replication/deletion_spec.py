"""What a rule says of tags that are gone at the source: `keep`, `mirror`, or for how long they are kept. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from entrepot.access.durations import parse_duration
from entrepot.errors import RuleInvalid

_KEEP = "keep"
_MIRROR = "mirror"


@dataclass(frozen=True, slots=True)
class DeletionSpec:
    """Tags are kept for `kept` after they were found missing; None: for ever. `text` is as the rule has it."""

    text: str = _KEEP
    kept: timedelta | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """What the field says; left out, it keeps. Raises RuleInvalid, whose message begins with the place."""
        if value is None or value == _KEEP:
            return cls()
        if value == _MIRROR:
            return cls(_MIRROR, timedelta(0))
        try:
            return cls(str(value), parse_duration(value))
        except ValueError as error:
            raise RuleInvalid(
                f"{where}: must be keep, mirror, or for how long to keep what is gone, such as 30d ({error})"
            ) from error

    @property
    def deletes(self) -> bool:
        """Whether anything is ever deleted."""
        return self.kept is not None

    def due_at(self, missing_since: datetime) -> datetime | None:
        """When a tag is to be deleted that is gone since an instant; None: never."""
        return None if self.kept is None else missing_since + self.kept
