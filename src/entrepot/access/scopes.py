"""Scopes of tokens: `repository:smm/api:pull,push`.

Source: docker token spec, "Token Scope Documentation".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from entrepot.errors import ScopeInvalid

# `repository(plugin)` is Docker's way to say what a repository holds; it changes nothing here.
_SCOPE = re.compile(r"([a-z]+)(?:\([a-z]+\))?:([^: ]+):((?:[a-z]+|\*)?(?:,(?:[a-z]+|\*))*)")
_MAX_SCOPE_CHARACTERS = 512
# containerd asks for several at once, mounts for two; nobody needs more.
MAX_SCOPES = 32


class Action(StrEnum):
    """What may be done with a repository."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Scope:
    """Actions on one resource; `type` is `repository` or `registry`."""

    type: str
    name: str
    actions: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The scope that `text` spells. Raises ScopeInvalid."""
        match = _SCOPE.fullmatch(text) if len(text) <= _MAX_SCOPE_CHARACTERS else None
        if match is None:
            raise ScopeInvalid(f"scope {text[:100]!r}: use <type>:<name>:<action>[,<action>]")
        return cls(match[1], match[2], frozenset(action for action in match[3].split(",") if action))

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(sorted(self.actions))}"


def parse_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """The scopes that a client asks for, repeated or separated by spaces. Raises ScopeInvalid."""
    words = [word for text in texts for word in text.split(" ") if word]
    if len(words) > MAX_SCOPES:
        raise ScopeInvalid(f"{len(words)} scopes are asked for at once; at most {MAX_SCOPES} are granted")
    return tuple(Scope.parse(word) for word in words)
