"""Digests: `algorithm:hex`.

Implements image-spec 1.1, descriptor.md, section "Digests", for the two registered algorithms. Unregistered algorithms
are refused, because content under them could not be verified.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol, Self

from entrepot.errors import DigestInvalid

# image-spec, "Registered algorithms": lower case hex of a fixed length.
_HEX_LENGTH = {"sha256": 64, "sha512": 128}
# image-spec, "SHA-256": what everybody can verify.
CANONICAL = "sha256"
_HEX = re.compile(r"[0-9a-f]+")
_KNOWN = " or ".join(_HEX_LENGTH)


class Hasher(Protocol):
    """What `hashlib` gives: feed it bytes, then read the hex."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The hash so far, in lower-case hex."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A verified-in-form digest; whether content matches it is for `of` and `hasher` to say."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The digest that `text` spells. Raises DigestInvalid."""
        algorithm, _, value = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            raise DigestInvalid(f"digest {text[:150]!r}: the algorithm must be {_KNOWN}")
        if len(value) != length or not _HEX.fullmatch(value):
            raise DigestInvalid(f"digest {text[:150]!r}: {algorithm} takes {length} lower-case hex digits")
        return cls(algorithm, value)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        """The digest of `content`."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hasher of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def is_of(self, content: bytes) -> bool:
        """Whether `content` has this digest."""
        return self.of(content, self.algorithm) == self

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def verify_algorithm(name: str) -> str:
    """The name of an algorithm that is known here. Raises DigestInvalid."""
    if name not in _HEX_LENGTH:
        raise DigestInvalid(f"digest algorithm {name[:40]!r}: use {_KNOWN}")
    return name
