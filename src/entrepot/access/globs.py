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
        return cls(text, tuple(_WORD.findall(text)))

    @property
    def literal(self) -> str | None:
        """The only text that matches, None when there is a star."""
        return None if "*" in self.text else self.text

    @property
    def prefix(self) -> str:
        """What every text that matches begins with."""
        return self.text.partition("*")[0]

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` fits.

        The set of positions in `text` that a prefix of the pattern can reach is carried from word to word, so the work
        is at most words x characters.
        """
        reached = {0}
        for word in self.words:
            if word == "**":
                reached = set(range(min(reached), len(text) + 1))
            elif word == "*":
                reached = _across_element(text, reached)
            else:
                reached = {at + len(word) for at in reached if text.startswith(word, at)}
            if not reached:
                return False
        return len(text) in reached

    def __str__(self) -> str:
        return self.text


def _across_element(text: str, reached: set[int]) -> set[int]:
    """Every position that `*` reaches from the given ones: up to the next slash."""
    further: set[int] = set()
    for at in sorted(reached):
        if at in further:  # an earlier start in the same element went on from here
            continue
        end = text.find("/", at)
        further.update(range(at, (len(text) if end < 0 else end) + 1))
    return further
