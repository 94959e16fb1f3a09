"""An issuer of workloads' tokens, as a Kubernetes API server is one, that can be told to misbehave."""

import json
import ssl
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AUDIENCE = "https://entrepot.example.com"
HOUR = 3600
DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/openid/v1/jwks"

Misbehave = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Answers a request in place of the issuer; None lets the issuer answer."""


@cache
def private_key(algorithm: str, number: int = 0, bits: int = 2048) -> Any:
    """A key to sign with; the same for the same numbers."""
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, bits)


def jwk(key_id: str | None, algorithm: str, key: Any, **fields: Any) -> dict[str, Any]:
    """The public half of a key, as a JWK set lists it."""
    shown = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
    shown.pop("key_ops", None)
    return {**shown, **({} if key_id is None else {"kid": key_id}), "use": "sig", "alg": algorithm} | fields


def public_pem(key: Any) -> bytes:
    """The public half as a file has it."""
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


@dataclass
class FakeIssuer:
    """Signs with RS256 under the key id `first`, unless told otherwise."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk("first", "RS256", private_key("RS256"))])
    misbehave: Misbehave | None = None
    asked: Counter[str] = field(default_factory=Counter)
    authorizations: list[str | None] = field(default_factory=list)

    def token(
        self, *, key: Any = None, algorithm: str = "RS256", headers: Mapping[str, Any] | None = None, **claims: Any
    ) -> str:
        """A service account's token; a claim of None is left out."""
        now = int(time.time())
        payload = {
            "aud": [AUDIENCE],
            "exp": now + HOUR,
            "iat": now,
            "iss": self.url,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {"namespace": "web", "serviceaccount": {"name": "signup", "uid": str(uuid.uuid4())}},
            "nbf": now,
            "sub": "system:serviceaccount:web:signup",
        } | claims
        payload = {name: value for name, value in payload.items() if value is not None}
        named = {"kid": "first"} if headers is None else dict(headers)
        # The library would refuse to write what is to be refused when it is read.
        content = json.dumps(payload).encode()
        return jwt.api_jws.encode(content, key or private_key(algorithm), algorithm=algorithm, headers=named)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The document of a path."""
        self.asked[request.path] += 1
        self.authorizations.append(request.headers.get("Authorization"))
        if self.misbehave is not None and (answer := await self.misbehave(request)) is not None:
            return answer
        if request.path == DISCOVERY:
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}{KEYS}"})
        if request.path == KEYS:
            return web.json_response({"keys": self.keys})
        return web.Response(status=404)


@asynccontextmanager
async def issuing(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeIssuer]:
    """An issuer, listening."""
    issuer = FakeIssuer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", issuer.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    assert runner.addresses
    issuer.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()
