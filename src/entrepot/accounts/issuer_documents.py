"""Reading an issuer's documents: the one place where the HTTP client's errors become ours.

Source: OpenID Connect Discovery 1.0, section 4.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from entrepot import __version__
from entrepot.accounts.issuers import Issuer, is_safe_url
from entrepot.errors import IssuerUnavailable

# Real documents have a few kilobytes.
_MAX_BYTES = 256 * 1024


async def fetch_keys(issuer: Issuer, deadline_seconds: float) -> Mapping[str, Any]:
    """The JWK set of an issuer. Raises IssuerUnavailable."""
    try:
        async with asyncio.timeout(deadline_seconds):
            return await _fetch(issuer)
    except TimeoutError as error:
        raise IssuerUnavailable(f"{issuer.url} does not answer within {deadline_seconds:.0f} seconds") from error
    except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
        raise IssuerUnavailable(f"{issuer.url}: {error}") from error


async def _fetch(issuer: Issuer) -> Mapping[str, Any]:
    headers = {"User-Agent": f"entrepot/{__version__}", "Accept": "application/json", "Accept-Encoding": "identity"}
    if issuer.token_file is not None:
        headers["Authorization"] = f"Bearer {issuer.token_file.read_text(encoding='ascii').strip()}"
    tls = ssl.create_default_context(cafile=issuer.ca_file)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        auto_decompress=False,
        trust_env=False,
    ) as session:
        if issuer.keys_url is not None:
            return await _read_document(session, issuer.keys_url)
        found = await _read_document(session, issuer.url.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != issuer.url:
            raise ValueError("its discovery document names another issuer")
        keys_url = found.get("jwks_uri")
        if not isinstance(keys_url, str) or not is_safe_url(keys_url):
            raise ValueError("its discovery document names no https address of keys")
        if "Authorization" in headers and _origin(keys_url) != _origin(issuer.url):
            raise ValueError("its keys are elsewhere, where our token for it must not go; set keys_url")
        return await _read_document(session, keys_url)


async def _read_document(session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:  # noqa: PLR2004
            raise ValueError(f"{url} answers with status {response.status}")
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > _MAX_BYTES:
                raise ValueError(f"{url} sends more than {_MAX_BYTES} bytes")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError(f"{url} sends no JSON object")  # noqa: TRY004 - of theirs, not of ours
    return document


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
