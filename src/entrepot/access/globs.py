"""Globs over names with slashes: `*` within a path element, `**` across.

Matching takes time linear in the text for each star, whatever the pattern: the pattern is cut at its stars and the
pieces are found one after the other, so that no pattern can be made to backtrack.
"""

import re
from dataclasses import dataclass
from typing import Self

from entrepot.errors import GlobInvalid

_MAX_CHARACTERS = 255
_WORD = re.compile(r"\*\*|\*|[^*]+")
_ALLOWED = re.compile(r"[A-Za-z0-9._/*-]+")


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern, in words: literal text, `*` or `**`."""

    text: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The pattern that `text` spells. Raises GlobInvalid."""
        if len(text) > _MAX_CHARACTERS:
            raise GlobInvalid(f"glob of {len(text)} characters: at most {_MAX_CHARACTERS} are allowed")
        if not _ALLOWED.fullmatch(text) or "***" in text:
            raise GlobInvalid(
                f"glob {text!r}: use letters, digits, . _ - and /, with * within an element and ** across"
            )
        return cls.read(text)

    @classmethod
    def read(cls, text: str) -> Self:
        """The pattern in a text that is known to be one, however long."""
        return cls(text, split_words(text))

    @property
    def literal(self) -> str | None:
        """The only text that matches, None when there is a star."""
        return None if "*" in self.text else self.text

    @property
    def prefix(self) -> str:
        """What every text that matches begins with."""
        return self.text.partition("*")[0]

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` fits."""
        return fits(self.words, text, "/")

    def meets(self, other: Self) -> bool:
        """Whether some text fits both.

        Walks through all pairs of positions that one text can lead to in the two patterns.
        """
        ours, theirs = self._letters(), other._letters()
        seen: set[tuple[int, int]] = set()
        waiting = [(0, 0)]
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            i, j = at
            if (i, j) == (len(ours), len(theirs)):
                return True
            left, right = (ours[i] if i < len(ours) else ""), (theirs[j] if j < len(theirs) else "")
            if left in _STARS:
                waiting.append((i + 1, j))
                if right and right not in _STARS and _takes(left, right):
                    waiting.append((i, j + 1))
            if right in _STARS:
                waiting.append((i, j + 1))
                if left and left not in _STARS and _takes(right, left):
                    waiting.append((i + 1, j))
            elif left == right:
                waiting.append((i + 1, j + 1))
        return False

    def covers(self, other: Self) -> bool:
        """True only if every text that fits `other` fits this, too; False may also mean that it is hard to tell."""
        letters = self._letters()
        reached = _skip_stars(letters, {0})
        for letter in other._letters():
            further = {
                at for at in reached if at < len(letters) and letters[at] in _STARS and _takes(letters[at], letter)
            }
            further |= {
                at + 1 for at in reached if at < len(letters) and letters[at] == letter and letter not in _STARS
            }
            reached = _skip_stars(letters, further)
        return len(letters) in reached

    def _letters(self) -> list[str]:
        """Each character of literal text, and each star, by itself."""
        return [letter for word in self.words for letter in ([word] if word in _STARS else word)]

    def __str__(self) -> str:
        return self.text


_STARS = frozenset({"*", "**"})


def _takes(star: str, letter: str) -> bool:
    """Whether a star fits a character, or all that another star fits."""
    return star == "**" or letter not in {"/", "**"}


def _skip_stars(letters: list[str], reached: set[int]) -> set[int]:
    """The positions, and those behind stars, which may fit nothing."""
    further = set(reached)
    for at in sorted(reached):
        after = at
        while after < len(letters) and letters[after] in _STARS:
            after += 1
            further.add(after)
    return further


def split_words(text: str) -> tuple[str, ...]:
    """A pattern's words: literal text, `*` or `**`."""
    return tuple(_WORD.findall(text))


def fits(words: tuple[str, ...], text: str, separators: str) -> bool:
    """Whether the whole of `text` fits a pattern; `*` stays between two of the `separators`.

    The set of positions in `text` that a prefix of the pattern can reach is carried from word to word, so the work is
    at most words x characters.
    """
    reached = {0}
    for word in words:
        if word == "**":
            reached = set(range(min(reached), len(text) + 1))
        elif word == "*":
            reached = _across_element(text, reached, separators)
        else:
            reached = {at + len(word) for at in reached if text.startswith(word, at)}
        if not reached:
            return False
    return len(text) in reached


def _across_element(text: str, reached: set[int], separators: str) -> set[int]:
    """Every position that `*` reaches from the given ones: up to the next separator."""
    further: set[int] = set()
    for at in sorted(reached):
        if at in further:  # an earlier start in the same element went on from here
            continue
        ends = [text.find(separator, at) for separator in separators]
        further.update(range(at, min((end for end in ends if end >= 0), default=len(text)) + 1))
    return further
