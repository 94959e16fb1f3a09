"""Workloads: which programs may get an API key by a token of their platform instead of a stored secret.

Source: OpenID Connect Core 1.0, section 2 (ID token), for the claims. Keys, signatures and times are verified before
anything here looks at a token (accounts/workloads.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from entrepot.access.api_scopes import ApiScope
from entrepot.access.globs import fits, split_words
from entrepot.errors import GlobInvalid

# What stands between the parts of a subject: `system:serviceaccount:web:signup`, `repo:acme/web:ref:refs/heads/main`.
_SEPARATORS = ":/"
_MAX_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class ClaimPattern:
    """What a claim must be: `*` stands for anything between two of `:` and `/`, `**` for anything at all."""

    claim: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, claim: str, text: str) -> Self:
        """The pattern that `text` spells. Raises GlobInvalid."""
        if not 1 <= len(text) <= _MAX_CHARACTERS or not text.isprintable() or "***" in text:
            raise GlobInvalid(
                f"claim {claim[:40]}: use 1 to {_MAX_CHARACTERS} printable characters, "
                "with * between two of : and /, and ** across"
            )
        return cls(claim, split_words(text))

    def matches(self, claims: Mapping[str, Any]) -> bool:
        """Whether the claim is such a text, or a list that holds one."""
        value = claims.get(self.claim)
        texts = value if isinstance(value, list) else [value]
        return any(
            isinstance(text, str) and len(text) <= _MAX_CHARACTERS and fits(self.words, text, _SEPARATORS)
            for text in texts[:_MAX_CHARACTERS]
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """Who has claims that match all patterns, and what their keys may do; None does not restrict."""

    name: str
    claims: tuple[ClaimPattern, ...]
    scopes: frozenset[ApiScope]
    plans: frozenset[str] | None
    own_accounts_only: bool
    requests_per_minute: int | None
    lifetime: timedelta

    def matches(self, claims: Mapping[str, Any]) -> bool:
        """Whether the verified claims of a token are this workload's."""
        return all(pattern.matches(claims) for pattern in self.claims)
