"""A repository as its publisher and its readers see it, and documents to put there."""

import json
import os
import re
from dataclasses import dataclass
from typing import Any

import httpx

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import CONFIG_TYPE, LAYER_TYPE
from tests.support.served import RegistryClient

BINARY = "application/octet-stream"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
"""The empty descriptor's content. Source: image-spec 1.1, manifest.md, "Guidance for an Empty Descriptor"."""


def describe(content: bytes, media_type: str = LAYER_TYPE, algorithm: str = "sha256", **fields: Any) -> dict[str, Any]:
    """What a manifest says of `content`."""
    return {
        "mediaType": media_type,
        "digest": str(Digest.of(content, algorithm)),
        "size": len(content),
        **fields,
    }


def image(
    config: dict[str, Any], *layers: dict[str, Any], media_type: str = media_types.OCI_MANIFEST, **fields: Any
) -> bytes:
    """An image manifest over these descriptors; fields that are None are left out."""
    document = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": list(layers), **fields}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def index(*manifests: dict[str, Any], media_type: str = media_types.OCI_INDEX, **fields: Any) -> bytes:
    """An index over these descriptors; fields that are None are left out."""
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(manifests), **fields}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def with_query(location: str, **parameters: str) -> str:
    """`location` with more parameters, as it may have some of its own."""
    names = {name.replace("_", "-"): value for name, value in parameters.items()}
    return str(httpx.URL(location).copy_merge_params(names))


def next_link(answer: httpx.Response) -> str | None:
    """Where the next page is (RFC 8288), None when this is the last."""
    following = answer.links.get("next")
    return None if following is None else following["url"]


def error_codes(answer: httpx.Response) -> list[str]:
    """The codes in a refusal."""
    return [error["code"] for error in answer.json()["errors"]]


@dataclass(frozen=True)
class Pushed:
    """A manifest that was accepted."""

    content: bytes
    media_type: str
    digest: Digest

    @property
    def descriptor(self) -> dict[str, Any]:
        """What an index or a referrer says of it."""
        return describe(self.content, self.media_type, self.digest.algorithm)


class Repository:
    """One repository, and a client that may do with it what its plan allows: by token, as real clients do.

    `outside` is for what lies elsewhere: presigned URLs.
    """

    def __init__(self, client: RegistryClient, name: str, outside: httpx.AsyncClient) -> None:
        self.client = client
        self.name = name
        self._outside = outside
        self._token: dict[str, str] = {}

    def named(self, name: str) -> "Repository":
        """Another repository, with the same client."""
        return Repository(self.client, name, self._outside)

    async def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request, by a path inside the repository, or by a Location.

        What is read is read twice: the second answer may come out of memory, and must be the same.
        """
        is_inside = not path.startswith(("/", "http://", "https://"))
        path = f"/v2/{self.name}/{path}" if is_inside else path
        answer = await self._call(method, path, **arguments)
        if method in {"GET", "HEAD"}:
            again = await self._call(method, path, **arguments)
            assert (again.status_code, again.content) == (answer.status_code, answer.content)
            assert again.headers == answer.headers or again.status_code == 307
        return answer

    async def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        if not self._token:
            await self._log_in(f"repository:{self.name}:pull,push,delete")
        arguments["headers"] = arguments.get("headers", {}) | self._token
        answer = await self.client.http.request(method, path, **arguments)
        if 'error="insufficient_scope"' in answer.headers.get("www-authenticate", ""):
            await self._log_in(*re.findall(r'scope="([^"]*)"', answer.headers["www-authenticate"])[0].split())
            answer = await self.client.http.request(method, path, **arguments | {"headers": self._token})
        return answer

    async def _log_in(self, *scopes: str) -> None:
        self._token = {"Authorization": f"Bearer {await self.client.token(*scopes)}"}

    async def fetch(self, path: str, **arguments: Any) -> httpx.Response:
        """GET, and on to blob storage when the answer leads there: with the range, without the login."""
        answer = await self.call("GET", path, **arguments)
        if answer.status_code != 307:
            return answer
        return await self._outside.get(answer.headers["location"], headers=arguments.get("headers", {}))

    async def push_blob(
        self, content: bytes, media_type: str = LAYER_TYPE, algorithm: str = "sha256"
    ) -> dict[str, Any]:
        """Push a blob; answers its descriptor."""
        descriptor = describe(content, media_type, algorithm)
        answer = await self.call("POST", f"blobs/uploads/?digest={descriptor['digest']}", content=content)
        assert answer.status_code == 201, answer.text
        return descriptor

    async def put(
        self, reference: str, content: bytes, media_type: str = media_types.OCI_MANIFEST, query: str = ""
    ) -> httpx.Response:
        """Try to push a manifest."""
        headers = {"Content-Type": media_type}
        return await self.call("PUT", f"manifests/{reference}{query}", content=content, headers=headers)

    async def push(
        self,
        content: bytes,
        tag: str | None = None,
        media_type: str = media_types.OCI_MANIFEST,
        algorithm: str = "sha256",
    ) -> Pushed:
        """Push a manifest, by its digest or as `tag`."""
        digest = Digest.of(content, algorithm)
        reference, query = (str(digest), "") if tag is None else (tag, f"?digest={digest}")
        answer = await self.put(reference, content, media_type, query)
        assert answer.status_code == 201, answer.text
        return Pushed(content, media_type, digest)

    async def push_image(self, tag: str | None = None, algorithm: str = "sha256", **fields: Any) -> Pushed:
        """Push an image of one layer, different every time."""
        config = await self.push_blob(json.dumps({"id": os.urandom(8).hex()}).encode(), CONFIG_TYPE, algorithm)
        layer = await self.push_blob(os.urandom(200), algorithm=algorithm)
        media_type = fields.get("media_type", media_types.OCI_MANIFEST)
        return await self.push(image(config, layer, **fields), tag, media_type, algorithm)

    async def push_index(self, tag: str | None = None, algorithm: str = "sha256", **fields: Any) -> Pushed:
        """Push an index of one image, different every time."""
        child = await self.push_image(algorithm=algorithm)
        media_type = fields.get("media_type", media_types.OCI_INDEX)
        return await self.push(index(child.descriptor, **fields), tag, media_type, algorithm)

    async def push_artifact(self, tag: str | None = None, **fields: Any) -> Pushed:
        """Push what has neither config nor content, only fields; different every time unless they say it all."""
        await self.push_blob(EMPTY, EMPTY_TYPE)
        empty = describe(EMPTY, EMPTY_TYPE)
        fields = {"artifactType": "application/vnd.example.note.v1", "id": os.urandom(8).hex()} | fields
        return await self.push(image(empty, empty, **fields), tag)

    async def pages(self, path: str) -> list[httpx.Response]:
        """Every page of a list, following the links as they stand."""
        link: str | None = path
        pages: list[httpx.Response] = []
        seen = set()
        while link is not None:
            assert link not in seen, "the links lead in a circle"
            seen.add(link)
            answer = await self.call("GET", link)
            assert answer.status_code == 200, answer.text
            pages.append(answer)
            link = next_link(answer)
        return pages

    async def tags(self) -> list[str]:
        """The tags that a list of them shows."""
        answer = await self.call("GET", "tags/list")
        assert answer.status_code == 200, answer.text
        tags: list[str] = answer.json()["tags"]
        return tags
