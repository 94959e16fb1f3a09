"""Which of a repository's tags a rule picks beyond globs and ranges: by regex, by when they were pushed, the newest N.

Pure. A regex is matched by RE2, whose time grows with the tag alone: the syntax is Go's, without look-around and back
references, which no pattern can use to keep the program busy.
"""

import heapq
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Literal, Self

from entrepot.access.semver import Version
from entrepot.errors import RuleInvalid
from entrepot.oci.reference import Tag
from entrepot.replication.fields import verify_known
from entrepot.replication.source import TagEntry
from entrepot.replication.source_specs import EcrSpec, SourceSpec

PICK_FIELDS = frozenset({"regex", "newest", "since"})
MAX_NEWEST = 100_000
_MAX_REGEX = 1000
_MAX_DAYS = 36_500
_DURATION = re.compile(r"([1-9]\d{0,8})([smhd])", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d.*)?", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest `count` tags, by when they were pushed or by version."""

    count: int
    by: Literal["push", "version"] = "push"

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """What `newest: N` or `newest: {count: N, by: version}` spells. Raises RuleInvalid."""
        if not isinstance(value, Mapping):
            return cls(_parse_count(value, where))
        verify_known(value, where, {"count", "by"})
        by = value.get("by", "push")
        if by != "push" and by != "version":  # noqa: PLR1714 - it may be a list
            raise RuleInvalid(f"{where}.by: must be push or version")
        return cls(_parse_count(value.get("count"), f"{where}.count"), by)

    def select(self, entries: Iterable[TagEntry]) -> list[TagEntry]:
        """The newest of some tags; of equals, those whose names come last. By version, only tags that are versions."""
        if self.by == "push":
            return heapq.nlargest(self.count, entries, key=lambda entry: (entry.pushed_at or _BEGINNING, entry.tag))
        versions = [(version, entry) for entry in entries if (version := Version.find(entry.tag.value)) is not None]
        newest = heapq.nlargest(self.count, versions, key=lambda pair: (pair[0], pair[1].tag))
        return [entry for _, entry in newest]

    def to_document(self) -> int | dict[str, Any]:
        """As in replication.yaml."""
        return self.count if self.by == "push" else {"count": self.count, "by": self.by}


@dataclass(frozen=True, slots=True)
class TagPicks:
    """Each narrows further what include, exclude and semver let through.

    `since` is a date, an instant or a duration before now, as text.
    """

    regex: str | None = None
    newest: Newest | None = None
    since: str | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The picks among the fields of a rule's tags. Raises RuleInvalid, whose message begins with the place."""
        regex, newest, since = (fields.get(name) for name in ("regex", "newest", "since"))
        return cls(
            regex=None if regex is None else _parse_regex(regex, f"{where}.regex"),
            newest=None if newest is None else Newest.parse(newest, f"{where}.newest"),
            since=None if since is None else _parse_since(since, f"{where}.since"),
        )

    @property
    def needs_all(self) -> bool:
        """Whether one tag cannot be judged by its name, without what the list says of the others."""
        return self.newest is not None or self.since is not None

    def matches(self, tag: Tag) -> bool:
        """Whether the whole tag fits the regex."""
        return self.regex is None or _compile(self.regex).fullmatch(tag.value) is not None

    def select(self, entries: list[TagEntry], now: datetime) -> list[TagEntry]:
        """Those of the tags of one repository that are new enough.

        A tag whose push the source does not tell counts as the oldest.
        """
        if self.since is not None:
            begin = _begin(self.since, now)
            entries = [entry for entry in entries if (entry.pushed_at or _BEGINNING) >= begin]
        return entries if self.newest is None else self.newest.select(entries)

    def verify_source(self, source: SourceSpec, where: str) -> None:
        """Raises RuleInvalid where these ask when tags were pushed, and a source of this type does not tell."""
        if isinstance(source, EcrSpec):
            return
        problem = f"source {source.name!r} does not tell when tags were pushed; only sources of type ecr do"
        if self.since is not None:
            raise RuleInvalid(f"{where}.since: {problem}. Use semver, or newest by version")
        if self.newest is not None and self.newest.by == "push":
            raise RuleInvalid(f"{where}.newest: {problem}. Use {{count: {self.newest.count}, by: version}}")

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml, without what says nothing."""
        newest = None if self.newest is None else self.newest.to_document()
        document = {"regex": self.regex, "newest": newest, "since": self.since}
        return {name: value for name, value in document.items() if value is not None}

    def __str__(self) -> str:
        parts = [] if self.regex is None else [f"/{self.regex}/"]
        parts += [] if self.since is None else [f"since {self.since}"]
        if self.newest is not None:
            parts.append(f"newest {self.newest.count}" + (" versions" if self.newest.by == "version" else ""))
        return " ".join(parts)


def _parse_count(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_NEWEST:
        raise RuleInvalid(f"{where}: must be a whole number from 1 to {MAX_NEWEST}")
    return value


def _parse_regex(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_REGEX:
        raise RuleInvalid(f"{where}: must be a regex of at most {_MAX_REGEX} characters, in quotes")
    try:
        _compile(value)
    except ValueError as error:
        raise RuleInvalid(f"{where}: {value[:100]!r} is no regex as Go and RE2 read them: {error}") from error
    return value


@lru_cache(maxsize=256)
def _compile(pattern: str) -> Any:
    """A regex of RE2. Raises ValueError."""
    import re2  # noqa: PLC0415 - most rules have no regex, and it is a library of some size

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error


def _parse_since(value: object, where: str) -> str:
    # YAML reads a date or time without quotes as such.
    text = value.isoformat() if isinstance(value, date) else value
    problem = f"{where}: must be a date such as 2026-01-31, a time such as 2026-01-31T12:00:00Z, or a duration: 90d"
    if not isinstance(text, str):
        raise RuleInvalid(problem)
    try:
        _begin(text, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise RuleInvalid(problem) from error
    return text


def _begin(since: str, now: datetime) -> datetime:
    """The instant that `since` spells; UTC when it names no zone. Raises ValueError or OverflowError."""
    duration = _DURATION.fullmatch(since)
    if duration is not None:
        length = timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        if length.days > _MAX_DAYS:
            raise ValueError(since)
        return now - length
    if not _DATE.fullmatch(since):
        raise ValueError(since)
    if len(since) == len("2026-01-31"):
        return datetime.combine(date.fromisoformat(since), time(), UTC)
    instant = datetime.fromisoformat(since)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
