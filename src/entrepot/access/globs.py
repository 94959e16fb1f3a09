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

    def __str__(self) -> str:
        return self.text


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
