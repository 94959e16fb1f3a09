"""Versions and ranges of versions, as tags carry them: `v1.4.2` lies in `>=1.0 <2.0`.

Implements Semantic Versioning 2.0.0 (precedence, section 11) and the ranges of npm's node-semver ("Ranges" and
"Prerelease Tags" in its README): comparators, `^`, `~`, `x`, partial versions, `||`. A pre-release is in a range only
if the range names a pre-release of the same version, so `>=1.0` never takes in `2.0.0-rc.1`. Unlike npm, a tag may
leave out minor and patch, and begin with `v`.
"""

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Self

from entrepot.errors import RangeUnreadable

_MAX_CHARACTERS = 255
_NUMBER = r"(?:0|[1-9]\d{0,8})"
_TAG = re.compile(
    rf"v?({_NUMBER})(?:\.({_NUMBER}))?(?:\.({_NUMBER}))?(?:-([0-9A-Za-z.-]+))?(?:[+_]([0-9A-Za-z._-]+))?", re.ASCII
)
_PART = rf"(?:{_NUMBER}|[xX*])"
_COMPARATOR = re.compile(
    rf"(>=|<=|>|<|=|\^|~)?\s*v?({_PART})(?:\.({_PART}))?(?:\.({_PART}))?(?:-([0-9A-Za-z.-]+))?", re.ASCII
)
_SPACED_OPERATOR = re.compile(r"(>=|<=|>|<|=|\^|~)\s+")


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A version without its build: three numbers, and the identifiers of a pre-release, none for a release."""

    numbers: tuple[int, int, int]
    prerelease: tuple[str, ...] = ()

    @classmethod
    def find(cls, tag: str) -> Self | None:
        """The version that a tag spells, None when it spells none."""
        match = _TAG.fullmatch(tag) if len(tag) <= _MAX_CHARACTERS else None
        if match is None:
            return None
        identifiers = tuple(match[4].split(".")) if match[4] else ()
        if "" in identifiers or (identifiers and match[3] is None):
            return None
        return cls((int(match[1]), int(match[2] or 0), int(match[3] or 0)), identifiers)

    def __lt__(self, other: "Version") -> bool:
        return self._rank() < other._rank()

    def _rank(self) -> tuple[object, ...]:
        """A release comes after its pre-releases; numbers come before words (section 11.4)."""
        identifiers = tuple((0, int(one), "") if one.isdigit() else (1, 0, one) for one in self.prerelease)
        return (self.numbers, not self.prerelease, identifiers)

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers)) + ("-" + ".".join(self.prerelease) if self.prerelease else "")


@dataclass(frozen=True, slots=True)
class _Bound:
    """One side of a range: `operator` is `>=`, `>`, `<=` or `<`."""

    operator: str
    version: Version

    def holds(self, version: Version) -> bool:
        if self.operator == ">=":
            return version >= self.version
        if self.operator == ">":
            return version > self.version
        return version <= self.version if self.operator == "<=" else version < self.version


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Alternatives, each of bounds that must all hold."""

    text: str
    alternatives: tuple[tuple[_Bound, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The range that `text` spells. Raises RangeUnreadable."""
        if not text.strip() or len(text) > _MAX_CHARACTERS:
            raise RangeUnreadable(f"semver range {text[:80]!r}: write one such as '>=1.0 <2.0'")
        joined = _SPACED_OPERATOR.sub(r"\1", text.replace(",", " "))
        return cls(text, tuple(_parse_alternative(part, text) for part in joined.split("||")))

    def contains(self, version: Version) -> bool:
        """Whether a version lies in the range."""
        return any(_admits(bounds, version) for bounds in self.alternatives)

    def may_meet(self, other: Self) -> bool:
        """False only if no version lies in both; pre-releases are not looked at closely."""
        return any(_has_room((*ours, *theirs)) for ours in self.alternatives for theirs in other.alternatives)

    def __str__(self) -> str:
        return self.text


def _has_room(bounds: tuple[_Bound, ...]) -> bool:
    lows = [bound for bound in bounds if bound.operator in {">=", ">"}]
    highs = [bound for bound in bounds if bound.operator in {"<=", "<"}]
    return all(
        low.version < high.version or (low.version == high.version and (low.operator, high.operator) == (">=", "<="))
        for low in lows
        for high in highs
    )


def _admits(bounds: tuple[_Bound, ...], version: Version) -> bool:
    if not all(bound.holds(version) for bound in bounds):
        return False
    return not version.prerelease or any(
        bound.version.prerelease and bound.version.numbers == version.numbers for bound in bounds
    )


def _parse_alternative(part: str, text: str) -> tuple[_Bound, ...]:
    bounds: list[_Bound] = []
    for word in part.split() or ["*"]:
        match = _COMPARATOR.fullmatch(word)
        if match is None:
            raise RangeUnreadable(
                f"semver range {text!r}: {word!r} is no comparator; use >=, >, <, <=, =, ^ or ~ and a version"
            )
        numbers = [None if one is None or one in "xX*" else int(one) for one in match.groups()[1:4]]
        bounds += _expand(match[1] or "=", numbers, tuple(match[5].split(".")) if match[5] else ())
    return tuple(bounds)


# The pre-release below all others: `<2.0.0-0` keeps those of 2.0.0 out.
_LOWEST = ("0",)


def _expand(operator: str, numbers: list[int | None], prerelease: tuple[str, ...]) -> list[_Bound]:
    """Bounds that say the same with whole versions (node-semver, "X-Ranges", "Tilde Ranges", "Caret Ranges")."""
    known = [number for number in numbers[: numbers.index(None) if None in numbers else 3] if number is not None]
    is_whole = len(known) == len(numbers)
    low = Version(_fill(known), prerelease if is_whole else ())
    if not known:
        # `<*` admits nothing, everything else all.
        bounds = [_Bound("<", Version((0, 0, 0), _LOWEST))] if operator in {"<", ">"} else [_Bound(">=", low)]
    elif operator == "^":
        leading = next((place for place, number in enumerate(known) if number), len(known) - 1)
        bounds = [_Bound(">=", low), _Bound("<", _next(known, leading))]
    elif operator == "~":
        bounds = [_Bound(">=", low), _Bound("<", _next(known, min(1, len(known) - 1)))]
    elif is_whole:
        bounds = [_Bound(">=", low), _Bound("<=", low)] if operator == "=" else [_Bound(operator, low)]
    else:
        bounds = _expand_partial(operator, low, _next(known, len(known) - 1))
    return bounds


def _expand_partial(operator: str, low: Version, after: Version) -> list[_Bound]:
    """The same for a version that stands for many: from `low` up to, not including, `after`."""
    if operator == "=":
        return [_Bound(">=", low), _Bound("<", after)]
    if operator == ">":
        return [_Bound(">=", Version(after.numbers))]
    if operator == "<=":
        return [_Bound("<", after)]
    return [_Bound(operator, Version(low.numbers, _LOWEST if operator == "<" else ()))]


def _next(known: list[int], at: int) -> Version:
    """What comes right behind every version with the same numbers up to `at`: pre-releases of it included."""
    return Version(_fill([*known[:at], known[at] + 1]), _LOWEST)


def _fill(numbers: list[int]) -> tuple[int, int, int]:
    first, second, third, *_ = [*numbers, 0, 0, 0]
    return (first, second, third)
