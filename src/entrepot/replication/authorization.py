"""How we show a source who we are: not at all, with Basic, or with tokens.

Implements the client's side of RFC 7617 (Basic) and of the docker token spec ("Token Authentication Specification").
Credentials go to the registry's own origin, and to the token service that this origin names; nowhere else.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from entrepot.errors import SourceDenied, SourceLied
from entrepot.replication.headers import Challenge
from entrepot.replication.logins import Login

# Docker token spec: a token without expires_in lives 60 seconds.
_DEFAULT_LIFE_SECONDS = 60
_MOST_LIFE_SECONDS = 12 * 3600
# A token is renewed this long before its end, so that none expires on its way.
_EARLY_SECONDS = 15
_TOKEN_LENGTH = 64 * 1024

Fetch = Callable[[URL, str | None], Awaitable[bytes]]
"""GETs a token service's URL with an Authorization header, and answers the body."""


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    until: float


class Authorization:
    """The Authorization headers for one source; tokens are kept by scope until shortly before they expire."""

    def __init__(
        self, name: str, origin: URL, login: Login | None, fetch: Fetch, monotonic: Callable[[], float]
    ) -> None:
        self._name = name
        self._origin = origin
        self._login = login
        self._fetch = fetch
        self._monotonic = monotonic
        self._is_basic = False
        self._tokens: dict[str, _Token] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def find(self, scope: str) -> str | None:
        """The header to send for `scope`; None before the source has asked for one, or once a token is too old."""
        token = self._tokens.get(scope)
        if token is not None and token.until > self._monotonic():
            return token.header
        return await self._login.find_header() if self._login is not None and self._is_basic else None

    async def renew(self, challenges: Iterable[Challenge], scope: str, refused: str | None) -> str:
        """A header other than `refused`, as the source's challenge asks. Raises SourceError."""
        by_scheme = {challenge.scheme: challenge.parameters for challenge in reversed(list(challenges))}
        if "bearer" in by_scheme:
            async with self._locks[scope]:
                current = await self.find(scope)
                # Another request may have renewed the token while this one waited.
                if current is not None and current != refused:
                    return current
                token = await self._fetch_token(by_scheme["bearer"], scope)
                self._tokens[scope] = token
                return token.header
        if "basic" not in by_scheme:
            raise SourceDenied(f"source {self._name} asks for no kind of login that is known here (Basic or Bearer)")
        if self._login is None:
            raise SourceDenied(
                f"source {self._name} wants a login; give it a username and a password_file or password_env"
            )
        self._is_basic = True
        header = await self._login.find_header(refused)
        if header is None:
            raise SourceDenied(f"source {self._name} refuses the login of {self._login.username!r}; check its password")
        return header

    async def find_newer(self, refused: str | None) -> str | None:
        """Another header than one that was `refused` for good; None where the login has no newer one.

        ECR answers 403, not 401, when a registry token has expired.
        """
        if self._login is None or not self._is_basic or refused is None:
            return None
        return await self._login.find_header(refused)

    async def _fetch_token(self, parameters: dict[str, str], scope: str) -> _Token:
        realm = self._verify_realm(parameters.get("realm", ""))
        query = [("scope", part) for part in parameters.get("scope", scope).split()]
        if "service" in parameters:
            query.insert(0, ("service", parameters["service"]))
        body = await self._fetch(realm.extend_query(query), await self._login.find_header() if self._login else None)
        return self._parse_token(body, realm)

    def _verify_realm(self, text: str) -> URL:
        try:
            realm = URL(text)
            is_server = realm.scheme in {"http", "https"} and bool(realm.host and realm.port)
        except ValueError:  # also when its port is looked at for the first time
            is_server = False
        if not is_server:
            raise SourceLied(f"source {self._name} names {text[:200]!r} as its token service, which is no URL")
        if self._origin.scheme == "https" and realm.scheme != "https":
            raise SourceLied(
                f"source {self._name} is asked over https but names a token service without it "
                f"({realm.origin()}); the password was not sent"
            )
        return realm

    def _parse_token(self, body: bytes, realm: URL) -> _Token:
        try:
            document: Any = json.loads(body)
        except ValueError:
            document = None
        text = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or len(text) > _TOKEN_LENGTH:
            raise SourceLied(f"the token service of source {self._name}, {realm.with_query(None)}, sent no token")
        life = document.get("expires_in")
        if isinstance(life, bool) or not isinstance(life, int | float) or life <= 0:
            life = _DEFAULT_LIFE_SECONDS
        life = min(life, _MOST_LIFE_SECONDS)
        return _Token(f"Bearer {text}", self._monotonic() + life - min(_EARLY_SECONDS, life / 4))
