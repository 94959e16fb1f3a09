"""Blobs that clients fetch from the object store itself, by presigned URLs; a folder has none."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import pytest_asyncio

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.conftest import Way
from tests.conformance.repository import Repository, image, index
from tests.support.served import RegistryClient, Served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONTENT = bytes(range(256)) * 4


def expected_status(served: Served) -> int:
    """What a GET of a blob is answered with when nothing speaks against a redirect."""
    return 307 if served.parts.blobs.can_sign else 200


def from_address(served: Served, publisher: RegistryClient, address: str) -> RegistryClient:
    """The publisher, calling from this address."""
    inner: httpx.ASGITransport = served.http._transport  # type: ignore[assignment]
    transport = httpx.ASGITransport(app=inner.app, client=(address, 50000))
    return RegistryClient(httpx.AsyncClient(transport=transport, base_url=served.http.base_url), publisher.credential)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("content", [CONTENT, b""], ids=["text", "empty"])
@clause("Pulling blobs", "the expected blob MUST be provided; clients follow a 307 to another service to get it")
async def test_get_leads_to_the_blob(
    anywhere: Served, way: Way, repository: Repository, outside: httpx.AsyncClient, content: bytes, algorithm: str
) -> None:
    blob = await repository.push_blob(content, algorithm=algorithm)
    answer = await repository.call("GET", f"blobs/{blob['digest']}")
    assert answer.status_code == expected_status(anywhere)
    assert answer.headers["docker-content-digest"] == blob["digest"]
    if answer.status_code == 200:
        assert answer.content == content
        return
    assert answer.headers["location"].startswith(way.settings["storage"]["endpoint"] + "/")
    assert answer.headers["content-length"] == "0"
    assert "immutable" not in answer.headers["cache-control"]
    elsewhere = await outside.get(answer.headers["location"])
    assert (elsewhere.status_code, elsewhere.content) == (200, content)
    assert elsewhere.headers["content-length"] == str(len(content))


@clause("Pulling blobs", "a blob that was pushed in chunks or mounted is provided like any other")
async def test_blob_of_chunks_and_mounts(repository: Repository) -> None:
    location = (await repository.call("POST", "blobs/uploads/")).headers["location"]
    for part in (CONTENT[:500], CONTENT[500:]):
        location = (await repository.call("PATCH", location, content=part)).headers["location"]
    digest = Digest.of(CONTENT)
    assert (await repository.call("PUT", f"{location}?digest={digest}")).status_code == 201
    assert (await repository.fetch(f"blobs/{digest}")).content == CONTENT
    other = repository.named(f"{repository.name}/other")
    await other.call("POST", f"blobs/uploads/?mount={digest}&from={repository.name}")
    assert (await other.fetch(f"blobs/{digest}")).content == CONTENT


@clause("Checking if content exists in the registry", "HEAD of an existing blob MUST be 200")
async def test_head_is_answered_here(repository: Repository) -> None:
    blob = await repository.push_blob(CONTENT)
    answer = await repository.call("HEAD", f"blobs/{blob['digest']}")
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(CONTENT)))
    assert "location" not in answer.headers


@clause("Pulling blobs", "only blobs are redirected: a manifest MUST be 200, what is missing MUST be 404")
async def test_nothing_else_is_redirected(repository: Repository) -> None:
    await repository.push(index(), "v1", media_types.OCI_INDEX)
    assert (await repository.call("GET", "manifests/v1")).status_code == 200
    assert (await repository.call("GET", f"blobs/{Digest.of(b'not here')}")).status_code == 404


@pytest.mark.parametrize(("wanted", "part"), [("bytes=5-9", slice(5, 10)), ("bytes=-7", slice(-7, None))])
@clause("RFC 9110, 15.4.8 Temporary Redirect", "the client repeats its request there, with the range it asked for")
async def test_range_holds_after_the_redirect(repository: Repository, wanted: str, part: slice) -> None:
    blob = await repository.push_blob(CONTENT)
    answer = await repository.fetch(f"blobs/{blob['digest']}", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, CONTENT[part])


@clause("settings: storage.redirect", "without it every byte goes through the server")
async def test_redirects_can_be_switched_off(repository: Repository, direct: Repository) -> None:
    blob = await repository.push_blob(CONTENT)
    answer = await direct.call("GET", f"blobs/{blob['digest']}")
    assert (answer.status_code, answer.content) == (200, CONTENT)


@clause("settings: storage.redirect", "whoever has the URL may read this blob, and do nothing else")
async def test_url_is_good_for_nothing_but_reading(
    anywhere: Served, repository: Repository, outside: httpx.AsyncClient
) -> None:
    blob = await repository.push_blob(CONTENT)
    answer = await repository.call("GET", f"blobs/{blob['digest']}")
    assert answer.status_code == expected_status(anywhere)
    if answer.status_code == 307:
        url = answer.headers["location"]
        assert (await outside.put(url, content=b"other")).status_code == 403
        assert (await outside.delete(url)).status_code == 403
        assert (await outside.get(url.partition("?")[0])).status_code == 403
    assert (await repository.fetch(f"blobs/{blob['digest']}")).content == CONTENT


@clause("settings: storage.redirect_seconds, storage.public_endpoint", "how long a URL is valid, and where it leads")
async def test_lifetime_and_address_of_urls(
    way: Way, publisher: RegistryClient, repository: Repository, outside: httpx.AsyncClient
) -> None:
    blob = await repository.push_blob(CONTENT)
    async with way.serve(storage={"redirect_seconds": 6}) as served:
        there = Repository(RegistryClient(served.http, publisher.credential), repository.name, outside)
        answer = await there.call("GET", f"blobs/{blob['digest']}")
        assert answer.status_code == expected_status(served)
        if answer.status_code == 307:
            url = answer.headers["location"]
            assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["6"]
            assert (await outside.get(url)).status_code == 200
            await asyncio.sleep(7.1)  # the store counts in whole seconds
            assert (await outside.get(url)).status_code == 403
    changes = {"redirect_seconds": 3600, "public_endpoint": "https://blobs.example.com"}
    async with way.serve(storage=changes) as served:
        there = Repository(RegistryClient(served.http, publisher.credential), repository.name, outside)
        answer = await there.call("GET", f"blobs/{blob['digest']}")
        assert answer.status_code == expected_status(served)
        if answer.status_code == 307:
            url = urlsplit(answer.headers["location"])
            assert (url.scheme, url.netloc) == ("https", "blobs.example.com")
            assert parse_qs(url.query)["X-Amz-Expires"] == ["3600"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def with_exceptions(way: Way) -> AsyncIterator[Served]:
    """An application that sends the bytes itself to clients from some networks."""
    networks = {"redirect_except": ("10.1.0.0/16", "2001:db8::/32")}
    async with way.serve(storage=networks, trusted_proxies=("192.0.2.0/24", "fe80::/10")) as served:
        yield served


# (address, X-Forwarded-For, whether the client is from one of the networks)
CLIENTS = {
    "from a network": ("10.1.2.3", None, True),
    "from a network, by IPv6": ("2001:db8::7", None, True),
    "from a network, IPv4 in IPv6": ("::ffff:10.1.2.3", None, True),
    "from elsewhere": ("10.2.0.1", None, False),
    "from elsewhere, by IPv6": ("2001:db9::7", None, False),
    "from elsewhere, lying": ("203.0.113.9", "10.1.2.3", False),
    "a proxy itself": ("192.0.2.1", None, False),
    "behind a proxy, from a network": ("192.0.2.1", "10.1.2.3", True),
    "behind two proxies, from a network": ("fe80::1", "10.1.2.3, 192.0.2.7", True),
    "behind a proxy, from elsewhere": ("192.0.2.1", "203.0.113.9", False),
    "behind a proxy, lying": ("192.0.2.1", "10.1.2.3, 203.0.113.9", False),
}


@pytest.mark.parametrize(("address", "forwarded", "is_excepted"), CLIENTS.values(), ids=CLIENTS)
@clause("settings: storage.redirect_except", "clients of these networks get blobs through the server all the same")
async def test_clients_of_some_networks_are_not_redirected(
    with_exceptions: Served,
    publisher: RegistryClient,
    repository: Repository,
    outside: httpx.AsyncClient,
    address: str,
    forwarded: str | None,
    *,
    is_excepted: bool,
) -> None:
    blob = await repository.push_blob(CONTENT)
    there = Repository(from_address(with_exceptions, publisher, address), repository.name, outside)
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    answer = await there.call("GET", f"blobs/{blob['digest']}", headers=headers)
    assert answer.status_code == (200 if is_excepted else expected_status(with_exceptions))
    assert answer.status_code == 307 or answer.content == CONTENT


@clause("Pulling blobs", "what is pulled by way of a redirect is what the manifest names")
async def test_a_whole_image(repository: Repository) -> None:
    layers = [await repository.push_blob(content) for content in (b"config", b"layer", b"")]
    await repository.push(image(*layers), "v1")
    document = (await repository.call("GET", "manifests/v1")).json()
    for entry in (document["config"], *document["layers"]):
        content = (await repository.fetch(f"blobs/{entry['digest']}")).content
        assert (str(Digest.of(content)), len(content)) == (entry["digest"], entry["size"])
