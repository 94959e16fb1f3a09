"""A small registry client: what a publisher's pipeline and a customer's container runtime do, over the public protocol.

Spec: distribution-spec 1.1, "Pull" and "Push"; docker token spec. Every digest is checked.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from entrepot.demo.content import Content
from entrepot.errors import DigestMismatch, EntrepotError, Unavailable
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES, Manifest

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_ACCEPT = ", ".join(sorted(media_types.ACCEPTED))
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)


class Refused(EntrepotError):
    """The registry refused a request; the message is the registry's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: the digest that the tag names, and how much there was below it."""

    digest: Digest
    parts: int
    size: int


class RegistryUser:
    """Someone with a credential for the registry at `url`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, username: str, secret: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._basic = aiohttp.BasicAuth(username, secret)
        self._authorization: dict[str, str] = {}

    async def log_in(self, repository: str, actions: str) -> None:
        """Get the right to use a repository, as the registry's challenge asks. Raises Refused."""
        async with self._ask("GET", f"{self._url}/v2/") as answer:
            status, challenge = answer.status, answer.headers.get("WWW-Authenticate", "")
        if status == 200:  # noqa: PLR2004 - it lets everybody in
            return
        if not challenge:
            raise Unavailable(f"{self._url} does not answer as a registry does; check its address")
        if not challenge.lower().startswith("bearer"):
            self._authorization = {"Authorization": self._basic.encode()}
            return
        parameters = dict(_PARAMETER.findall(challenge))
        query = {"service": parameters.get("service", ""), "scope": f"repository:{repository}:{actions}"}
        async with self._ask("GET", parameters["realm"], params=query, auth=self._basic) as answer:
            if answer.status != 200:  # noqa: PLR2004
                raise Refused(answer.status, await _reason(answer))
            document = await answer.json()
        self._authorization = {"Authorization": f"Bearer {document.get('token') or document['access_token']}"}

    async def push(self, content: Content) -> None:
        """Push an artifact: blobs, then manifests, the tag last."""
        await self.log_in(content.repository, "pull,push")
        for blob in content.blobs:
            await self._push_blob(content.repository, blob)
        *children, last = content.manifests
        for media_type, manifest in children:
            await self._put_manifest(content.repository, str(Digest.of(manifest)), media_type, manifest)
        await self._put_manifest(content.repository, content.tag, *last)

    async def pull(self, repository: str, tag: str) -> Pulled:
        """Pull an artifact with all that it names. Raises Refused, or DigestMismatch for a wrong digest."""
        await self.log_in(repository, "pull")
        top = await self.get_manifest(repository, tag)
        seen: dict[Digest, int] = {}
        manifests = [top]
        while manifests:
            manifest = manifests.pop()
            seen[manifest.digest] = manifest.size
            manifests += [await self.get_manifest(repository, str(child.digest)) for child in manifest.children]
            for blob in manifest.blobs:
                if blob.digest not in seen:
                    seen[blob.digest] = await self._get_blob(repository, blob.digest)
        return Pulled(top.digest, len(seen), sum(seen.values()))

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """One manifest. Raises Refused, or DigestMismatch when it has another digest than asked for."""
        url = f"{self._url}/v2/{repository}/manifests/{reference}"
        headers = self._authorization | {"Accept": _ACCEPT}
        async with self._ask("GET", url, headers=headers) as answer:
            if answer.status != 200:  # noqa: PLR2004
                raise Refused(answer.status, await _reason(answer))
            content = await answer.content.read(MAX_MANIFEST_BYTES + 1)
            manifest = Manifest.parse(content, answer.headers.get("Content-Type", ""))
        if ":" in reference and str(manifest.digest) != reference:
            raise DigestMismatch(f"manifest {reference} came with digest {manifest.digest}")
        return manifest

    @asynccontextmanager
    async def _ask(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request. Raises Unavailable when the registry cannot be reached."""
        try:
            async with self._session.request(method, url, timeout=_TIMEOUT, **options) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{self._url} cannot be reached ({error or type(error).__name__})") from error

    async def _get_blob(self, repository: str, digest: Digest) -> int:
        hasher, size = digest.hasher(), 0
        url = f"{self._url}/v2/{repository}/blobs/{digest}"
        async with self._ask("GET", url, headers=self._authorization) as answer:
            if answer.status != 200:  # noqa: PLR2004
                raise Refused(answer.status, await _reason(answer))
            async for piece in answer.content.iter_chunked(1024 * 1024):
                hasher.update(piece)
                size += len(piece)
        if hasher.hexdigest() != digest.hex:
            raise DigestMismatch(f"blob {digest} came with another digest")
        return size

    async def _push_blob(self, repository: str, content: bytes) -> None:
        base = f"{self._url}/v2/{repository}/blobs/uploads/"
        location = await self._send("POST", base, b"", {})
        separator = "&" if "?" in location else "?"
        octets = {"Content-Type": "application/octet-stream"}
        await self._send("PUT", f"{location}{separator}digest={Digest.of(content)}", content, octets)

    async def _put_manifest(self, repository: str, reference: str, media_type: str, content: bytes) -> None:
        url = f"{self._url}/v2/{repository}/manifests/{reference}"
        await self._send("PUT", url, content, {"Content-Type": media_type})

    async def _send(self, method: str, url: str, content: bytes, headers: dict[str, str]) -> str:
        """One writing request; answers where its session goes on."""
        target = url if "://" in url else self._url + url
        headers = headers | self._authorization
        async with self._ask(method, target, data=content, headers=headers) as answer:
            if answer.status not in {201, 202}:
                raise Refused(answer.status, await _reason(answer))
            location: str = answer.headers.get("Location", "")
            return location


async def call_api(
    session: aiohttp.ClientSession, method: str, url: str, key: str, body: dict[str, Any] | None = None
) -> Any:
    """One call of the platform API; answers its JSON. Raises Refused."""
    headers = {"Authorization": f"Bearer {key}"}
    async with session.request(method, url, json=body, headers=headers, timeout=_TIMEOUT) as answer:
        if answer.status >= 400:  # noqa: PLR2004
            raise Refused(answer.status, str((await answer.json())["detail"]))
        return await answer.json() if answer.content_type.endswith("json") else None


async def wait_until_ready(session: aiohttp.ClientSession, url: str, deadline_seconds: float) -> None:
    """Return once the server at `url` is ready. Raises Unavailable."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_seconds
    while loop.time() < deadline:
        try:
            async with session.get(f"{url}/readyz", timeout=_TIMEOUT) as answer:
                if answer.status == 200:  # noqa: PLR2004
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise Unavailable(f"{url} did not become ready within {deadline_seconds:.0f} seconds")


async def _reason(answer: aiohttp.ClientResponse) -> str:
    """What a refusal says, in the words of the registry."""
    text = (await answer.content.read(4096)).decode("utf-8", "replace")
    messages = re.findall(r'"message":\s*"([^"]*)"', text)
    return "; ".join(messages) or f"HTTP {answer.status}"
