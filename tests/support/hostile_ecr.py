"""ECR's API in front of a hostile registry: tokens that end, throttling, and answers that no AWS would give."""

import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from entrepot.oci.digest import Digest
from tests.support.aws import ACCOUNT
from tests.support.hostile import HostileRegistry, Misbehave, serving

Answer = Callable[[str, dict[str, Any]], Awaitable[web.StreamResponse | None]]
"""Answers a call of the API in place of ECR; None lets ECR answer."""

PUSHED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class HostileEcr:
    """Speaks as much of ECR's API as a source asks for; `/v2/` wants the latest token, as ECR does it."""

    registry: HostileRegistry = field(default_factory=HostileRegistry)
    page: int = 1000
    misbehave: Answer | None = None
    calls: list[str] = field(default_factory=list)
    tokens: int = 0
    token_life: timedelta = timedelta(hours=12)
    # What ECR answers to a token that has ended; 401 is what others would.
    expired_status: int = 403

    @property
    def document(self) -> dict[str, Any]:
        """As a source in replication.yaml; its keys are for the environment."""
        url = self.registry.url
        return {"type": "ecr", "account": ACCOUNT, "region": "eu-west-1", "endpoint": url, "url": url}

    def end_token(self) -> None:
        """Take the latest token no longer."""
        self.tokens += 1

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        """One request: of the API, or of the registry, which answers by itself where this gives None."""
        target = request.headers.get("X-Amz-Target")
        if target is None:
            return self._refuse(request)
        operation = target.rpartition(".")[2]
        arguments = await request.json()
        self.calls.append(operation)
        if self.misbehave is not None and (answer := await self.misbehave(operation, arguments)) is not None:
            return answer
        return self._behave(operation, arguments)

    def _refuse(self, request: web.Request) -> web.Response | None:
        header = request.headers.get("Authorization")
        if header is None:
            challenge = 'Basic realm="https://ecr.example/",service="ecr.amazonaws.com"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if header == f"Basic {self._token()}":
            return None
        body = {"errors": [{"code": "DENIED", "message": "Your authorization token has expired."}]}
        return web.json_response(body, status=self.expired_status, headers={"WWW-Authenticate": 'Basic realm="r"'})

    def _token(self) -> str:
        return base64.b64encode(f"AWS:token-{self.tokens}".encode()).decode()

    def _behave(self, operation: str, arguments: dict[str, Any]) -> web.Response:
        if operation == "GetAuthorizationToken":
            entry = {
                "authorizationToken": self._token(),
                "expiresAt": (datetime.now(UTC) + self.token_life).timestamp(),
                "proxyEndpoint": "https://ecr.example",
            }
            return amz_json({"authorizationData": [entry]})
        if operation == "DescribeRepositories":
            entries = [{"repositoryName": name} for name in sorted(self.registry.tags)]
            return self._page(arguments, "repositories", entries)
        name = arguments["repositoryName"]
        if name not in self.registry.tags:
            return amz_error("RepositoryNotFoundException", f"The repository with name '{name}' does not exist")
        images = [
            {
                "imageDigest": str(Digest.of(self.registry.manifests[name, tag][1])),
                "imageTags": [tag],
                "imagePushedAt": PUSHED_AT.timestamp(),
                **_tell_types(*self.registry.manifests[name, tag]),
            }
            for tag in self.registry.tags[name]
        ]
        return self._page(arguments, "imageDetails", images)

    def _page(self, arguments: dict[str, Any], field: str, entries: list[Any]) -> web.Response:
        start = int(arguments.get("nextToken", "0"))
        end = start + min(arguments["maxResults"], self.page)
        more = {"nextToken": str(end)} if end < len(entries) else {}
        return amz_json({field: entries[start:end], **more})


def _tell_types(media_type: str, content: bytes) -> dict[str, str]:
    """What ECR tells of a manifest's kind: of an index, nothing but its own type."""
    config = json.loads(content).get("config")
    artifact = {} if config is None else {"artifactMediaType": config["mediaType"]}
    return {"imageManifestMediaType": media_type, **artifact}


def amz_json(document: dict[str, Any], status: int = 200) -> web.Response:
    """An answer in ECR's protocol."""
    return web.Response(status=status, body=json.dumps(document).encode(), content_type="application/x-amz-json-1.1")


def amz_error(code: str, message: str, status: int = 400) -> web.Response:
    """An error in ECR's protocol."""
    return amz_json({"__type": f"com.amazonaws.ecr#{code}", "message": message}, status)


@asynccontextmanager
async def serving_ecr(tls: ssl.SSLContext | None = None) -> AsyncIterator[HostileEcr]:
    """ECR and its registry on one free port."""
    ecr = HostileEcr()
    ecr.registry.misbehave = ecr.answer
    async with serving(ecr.registry, tls=tls):
        yield ecr


def also(ecr: HostileEcr, misbehave: Misbehave) -> Misbehave:
    """Have the registry behind ECR's API misbehave, too."""

    async def both(request: web.Request) -> web.StreamResponse | None:
        return await ecr.answer(request) or await misbehave(request)

    return both
