"""AWS as moto plays it: ECR, STS, IAM and instance metadata on one server; and a way to watch what is asked of it."""

import json
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import botocore.session
import httpx
from aiohttp import web

from entrepot.oci.digest import Digest
from tests.support.programs import free_port, require, running, wait_for

ACCOUNT = "123456789012"
# What moto hands out as the password of every registry.
TOKEN_OF = "{account}-auth-token"


@dataclass(frozen=True)
class Moto:
    """The server. What is there belongs to everybody in the tests: use a region of your own."""

    url: str

    def client(self, service: str, region: str, **keys: str) -> Any:
        """The SDK's client, with keys that moto takes unless it checks policies."""
        keys = keys or {"aws_access_key_id": "AKIAIOSFODNN7EXAMPLE", "aws_secret_access_key": "secret"}
        session = botocore.session.get_session()
        return session.create_client(service, region_name=region, endpoint_url=self.url, **keys)

    def put_manifest(self, region: str, repository: str, tag: str, content: bytes, media_type: str) -> None:
        """Have ECR's API tell of a tag; the content itself is for a registry."""
        ecr = self.client("ecr", region)
        if repository not in {one["repositoryName"] for one in ecr.describe_repositories()["repositories"]}:
            ecr.create_repository(repositoryName=repository)
        ecr.put_image(
            repositoryName=repository,
            imageManifest=content.decode(),
            imageManifestMediaType=media_type,
            imageTag=tag,
            imageDigest=str(Digest.of(content)),
        )

    @contextmanager
    def checking_policies(self) -> Iterator[None]:
        """Have every call's signature and policies checked meanwhile."""
        self._check_from("0")
        try:
            yield
        finally:
            self._check_from("inf")

    def _check_from(self, count: str) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", count.encode(), headers, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def moto_server(folder: Path) -> Iterator[Moto]:
    """moto, served."""
    port = free_port()
    command = [require("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder / "moto.log", patience_seconds=0) as process:
        wait_for(f"http://127.0.0.1:{port}/moto-api/data.json", process)
        yield Moto(f"http://127.0.0.1:{port}")


@dataclass(frozen=True)
class Call:
    """A call of AWS: its operation, whose key signed it (None: nobody's), and its arguments."""

    operation: str
    key_id: str | None
    arguments: dict[str, Any]


@dataclass
class Watched:
    """Passes calls on to moto, and notes them."""

    target: str
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    expiration: str | None = None
    """What STS answers as the end of credentials, in place of an hour from now."""

    def operations(self) -> list[str]:
        """What was called, in order."""
        return [call.operation for call in self.calls]

    async def answer(self, request: web.Request) -> web.Response:
        """Pass on one request."""
        body = await request.read()
        self._note(request, body)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            answer = await http.request(
                request.method, f"{self.target}{request.path_qs}", headers=headers, content=body
            )
        content = answer.content
        if self.expiration is not None:
            content = re.sub(rb"(?<=<Expiration>)[^<]*", self.expiration.encode(), content)
        return web.Response(
            status=answer.status_code, body=content, headers={"Content-Type": answer.headers["Content-Type"]}
        )

    def _note(self, request: web.Request, body: bytes) -> None:
        target = request.headers.get("X-Amz-Target")
        if target is not None:
            operation, arguments = target.rpartition(".")[2], json.loads(body)
        elif body:
            arguments = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            operation = arguments.get("Action", "")
        else:
            operation, arguments = request.path, {}
        key = re.search(r"Credential=([^/]+)", request.headers.get("Authorization", ""))
        self.calls.append(Call(operation, key[1] if key else None, arguments))


@asynccontextmanager
async def watching(moto: Moto) -> AsyncIterator[Watched]:
    """A server in front of moto."""
    watched = Watched(moto.url)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", watched.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    watched.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield watched
    finally:
        await runner.cleanup()
