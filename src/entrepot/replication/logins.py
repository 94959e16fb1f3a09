"""Who we are at a source: a password that stays, or one that is fetched and renewed."""

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from entrepot.errors import SourceError, SourceLoginMissing
from entrepot.replication.source_specs import SecretPlace

_SECRET_BYTES = 64 * 1024
# What is refused so soon after it was fetched is refused for another reason than its age.
_YOUNG_SECONDS = 60
# How long to go on with a password that could not be renewed, or whose end nobody knows, before the next try.
_AGAIN_SECONDS = 60


class Login(Protocol):
    """A username and password at a source, whatever kind they are."""

    @property
    def username(self) -> str:
        """As whom we log in."""

    async def find_header(self, refused: str | None = None) -> str | None:
        """The Authorization header of RFC 7617; None where there is none but the one that was `refused`.

        Raises SourceError.
        """


class FixedLogin:
    """A username and a password that stays as it is."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._header = _basic(username, password)

    @property
    def username(self) -> str:
        """As whom we log in."""
        return self._username

    async def find_header(self, refused: str | None = None) -> str | None:
        """The one header there is."""
        return None if refused == self._header else self._header


@dataclass(frozen=True, slots=True)
class FetchedPassword:
    """A password for a while: `life_seconds` are what is left of it, not above 0 where nobody knows."""

    password: str = field(repr=False)
    life_seconds: float


class RenewedLogin:
    """A password that is fetched, kept until half of its life is over, and fetched anew when the source refuses it."""

    def __init__(
        self, username: str, fetch: Callable[[], Awaitable[FetchedPassword]], monotonic: Callable[[], float]
    ) -> None:
        self._username = username
        self._fetch = fetch
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._header: str | None = None
        self._fetched_at = self._renew_at = self._ends_at = 0.0

    @property
    def username(self) -> str:
        """As whom we log in."""
        return self._username

    async def find_header(self, refused: str | None = None) -> str | None:
        """The latest header, fetched anew when that is due."""
        async with self._lock:
            now = self._monotonic()
            is_refused = refused is not None and refused == self._header and now >= self._fetched_at + _YOUNG_SECONDS
            if self._header is None or is_refused or now >= self._renew_at:
                await self._renew(now, may_keep=not is_refused and self._header is not None and now < self._ends_at)
            return None if self._header == refused else self._header

    async def _renew(self, now: float, *, may_keep: bool) -> None:
        try:
            fetched = await self._fetch()
        except SourceError:
            if not may_keep:
                raise
            self._renew_at = now + _AGAIN_SECONDS
            return
        self._header = _basic(self._username, fetched.password)
        self._fetched_at = now
        self._ends_at = now + fetched.life_seconds
        self._renew_at = now + max(fetched.life_seconds / 2, _AGAIN_SECONDS)


def read_secret(place: SecretPlace, field: str, source: str) -> str:
    """The secret in a place, of which `field` tells. Raises SourceLoginMissing."""
    if place.env is not None:
        secret = os.environ.get(place.env, "")
        if not secret:
            raise SourceLoginMissing(
                f"source {source}: the environment variable {place.env} ({field}_env) is not set here"
            )
        return secret
    try:
        with Path(place.file or "").open(encoding="utf-8") as file:
            secret = file.read(_SECRET_BYTES).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SourceLoginMissing(f"source {source}: {field}_file {place.file}: {reason}") from error
    if not secret:
        raise SourceLoginMissing(f"source {source}: {field}_file {place.file} is empty")
    return secret


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
