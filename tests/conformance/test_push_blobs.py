"""Workflow "Push", blobs: whole, in chunks, from another repository."""

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
import pytest

from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.conftest import Way
from tests.conformance.repository import BINARY, Repository, error_codes, with_query

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONTENT = bytes(range(256)) * 4
DIGEST = str(Digest.of(CONTENT))
DIGEST_512 = str(Digest.of(CONTENT, "sha512"))
NOTHING = str(Digest.of(b""))
ABSENT = str(Digest.of(b"not here"))
ALGORITHMS = pytest.mark.parametrize("digest", [DIGEST, DIGEST_512], ids=["sha256", "sha512"])
UNKNOWN = "blobs/uploads/00000000-0000-0000-0000-000000000000"


async def begin(repository: Repository, query: str = "") -> str:
    """The Location of a new upload."""
    answer = await repository.call("POST", f"blobs/uploads/{query}", headers={"Content-Length": "0"})
    assert answer.status_code == 202
    location: str = answer.headers["location"]
    return location


async def append(repository: Repository, location: str, start: int, end: int) -> httpx.Response:
    """Send the bytes of CONTENT from `start` up to `end` as a chunk."""
    headers = {"Content-Type": BINARY, "Content-Range": f"{start}-{end - 1}"}
    return await repository.call("PATCH", location, content=CONTENT[start:end], headers=headers)


async def assert_created(repository: Repository, answer: httpx.Response, digest: str, content: bytes = CONTENT) -> None:
    """201, and a Location where the blob is."""
    assert answer.status_code == 201, answer.text
    assert answer.headers["docker-content-digest"] == digest
    pulled = await repository.fetch(answer.headers["location"])
    assert (pulled.status_code, pulled.content) == (200, content)
    assert (await repository.call("HEAD", f"blobs/{digest}")).status_code == 200


@clause("POST then PUT", "the response to POST MUST be 202 with a Location, which MUST contain a unique session id")
async def test_every_upload_has_a_location_of_its_own(repository: Repository) -> None:
    locations = {await begin(repository) for _ in range(3)}
    assert len(locations) == 3
    for location in locations:
        assert (await repository.call("GET", location)).status_code == 204


@ALGORITHMS
@clause("POST then PUT", "PUT <location>?digest=<digest> MUST be 201 with the Location of a pullable blob")
async def test_post_then_put(repository: Repository, digest: str) -> None:
    location = with_query(await begin(repository), digest=digest)
    answer = await repository.call("PUT", location, content=CONTENT, headers={"Content-Type": BINARY})
    await assert_created(repository, answer, digest)


@ALGORITHMS
@clause("Single POST", "successful completion MUST be 201 with the Location of a pullable blob")
async def test_single_post(repository: Repository, digest: str) -> None:
    path = f"blobs/uploads/?digest={digest}"
    answer = await repository.call("POST", path, content=CONTENT, headers={"Content-Type": BINARY})
    await assert_created(repository, answer, digest)


@clause("Pushing blobs", "a blob that is there already can be pushed once more, with the same answer")
async def test_blob_can_be_pushed_again(repository: Repository) -> None:
    for _ in range(2):
        answer = await repository.call("POST", f"blobs/uploads/?digest={DIGEST}", content=CONTENT)
        await assert_created(repository, answer, DIGEST)
        answer = await repository.call("PUT", with_query(await begin(repository), digest=DIGEST), content=CONTENT)
        await assert_created(repository, answer, DIGEST)


@pytest.mark.parametrize("way_to_push", ["one POST", "POST, PUT", "POST, PATCH, PUT"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@clause("Pushing blobs", "a blob of no bytes is a blob")
async def test_empty_blob(repository: Repository, way_to_push: str, algorithm: str) -> None:
    digest = str(Digest.of(b"", algorithm))
    if way_to_push == "one POST":
        answer = await repository.call("POST", f"blobs/uploads/?digest={digest}", headers={"Content-Length": "0"})
    else:
        location = await begin(repository)
        if way_to_push == "POST, PATCH, PUT":
            answer = await repository.call("PATCH", location, content=b"")
            assert answer.status_code == 202
            location = answer.headers["location"]
        answer = await repository.call("PUT", with_query(location, digest=digest))
    await assert_created(repository, answer, digest, b"")


@pytest.mark.parametrize("wrong", [ABSENT, str(Digest.of(b"not here", "sha512"))], ids=["sha256", "sha512"])
@clause("Single POST", "the <digest> MUST match the blob's digest")
@clause("Error Codes", "DIGEST_INVALID: provided digest did not match uploaded content")
async def test_content_of_another_digest_is_refused(repository: Repository, wrong: str) -> None:
    await repository.push_blob(b"so that the repository exists")
    patched = await append(repository, await begin(repository), 0, len(CONTENT))
    for method, path, content in (
        ("POST", f"blobs/uploads/?digest={wrong}", CONTENT),
        ("PUT", with_query(await begin(repository), digest=wrong), CONTENT),
        ("PUT", with_query(patched.headers["location"], digest=wrong), b""),
    ):
        answer = await repository.call(method, path, content=content)
        assert (answer.status_code, error_codes(answer)) == (400, ["DIGEST_INVALID"])
    for digest in (wrong, DIGEST, DIGEST_512):
        assert (await repository.call("HEAD", f"blobs/{digest}")).status_code == 404


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "nonsense", ""])
@clause("Pushing blobs", "<digest> MUST be a digest of an algorithm that the registry knows")
async def test_unreadable_digest_is_refused(repository: Repository, digest: str) -> None:
    for method, path in (
        ("POST", f"blobs/uploads/?digest={digest}"),
        ("PUT", with_query(await begin(repository), digest=digest)),
    ):
        answer = await repository.call(method, path, content=CONTENT)
        assert (answer.status_code, error_codes(answer)) == (400, ["DIGEST_INVALID"])


@clause("Pushing a blob in chunks", "the closing PUT MUST include the <digest> of the whole blob")
async def test_upload_is_not_closed_without_a_digest(repository: Repository) -> None:
    location = await begin(repository)
    answer = await repository.call("PUT", location, content=CONTENT)
    assert answer.status_code == 400
    answer = await repository.call("PUT", with_query(location, digest=DIGEST), content=CONTENT)
    await assert_created(repository, answer, DIGEST)


@pytest.mark.parametrize("last_by", ["PATCH", "PUT"])
@ALGORITHMS
@clause("Pushing a blob in chunks", "each chunk MUST be 202 with the next Location, and Range: 0-<end-of-range>")
@clause("Pushing a blob in chunks", "the final chunk MAY come with PATCH or with the closing PUT, which MUST be 201")
async def test_chunks(repository: Repository, digest: str, last_by: str) -> None:
    location = await begin(repository)
    for start, end in ((0, 300), (300, 301), (301, 1000)):
        answer = await append(repository, location, start, end)
        assert (answer.status_code, answer.headers["range"]) == (202, f"0-{end - 1}")
        location = answer.headers["location"]
    rest, headers = CONTENT[1000:], {"Content-Range": f"1000-{len(CONTENT) - 1}"}
    if last_by == "PATCH":
        location = (await append(repository, location, 1000, len(CONTENT))).headers["location"]
        rest, headers = b"", {}
    answer = await repository.call("PUT", with_query(location, digest=digest), content=rest, headers=headers)
    await assert_created(repository, answer, digest)


@clause("Pushing a blob in chunks", "a PATCH without Content-Range appends what it brings")
async def test_stream_of_unknown_length(repository: Repository) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield CONTENT[:500]
        yield CONTENT[500:]

    answer = await repository.call("PATCH", await begin(repository), content=pieces())
    assert (answer.status_code, answer.headers["range"]) == (202, f"0-{len(CONTENT) - 1}")
    answer = await repository.call("PUT", with_query(answer.headers["location"], digest=DIGEST))
    await assert_created(repository, answer, DIGEST)


@pytest.mark.parametrize("query", ["?digest-algorithm=sha512", ""], ids=["announced", "not announced"])
@clause("POST then PUT", "the <location> MAY contain critical query parameters")
@clause("After 1.1: POST then PUT", "?digest-algorithm=<algorithm> tells which algorithm the digest will have")
async def test_algorithm_may_be_announced(repository: Repository, query: str) -> None:
    location = await begin(repository, query)
    for start, end in ((0, 500), (500, len(CONTENT))):
        location = (await append(repository, location, start, end)).headers["location"]
        status = await repository.call("GET", location)
        assert (status.status_code, status.headers["range"]) == (204, f"0-{end - 1}")
        location = status.headers["location"]
    answer = await repository.call("PUT", with_query(location, digest=DIGEST_512))
    await assert_created(repository, answer, DIGEST_512)


@clause("After 1.1: POST then PUT", "?digest-algorithm=<algorithm> names one that the registry knows")
async def test_unknown_algorithm_is_refused_at_once(repository: Repository) -> None:
    answer = await repository.call("POST", "blobs/uploads/?digest-algorithm=md5")
    assert (answer.status_code, error_codes(answer)) == (400, ["DIGEST_INVALID"])


# (what is sent, what had been received before)
OUT_OF_ORDER = {
    "first chunk not at 0": ((5, 15), 0),
    "a gap": ((400, 500), 300),
    "a chunk again": ((0, 300), 300),
    "an overlap": ((299, 400), 300),
}


@pytest.mark.parametrize("last", [False, True], ids=["PATCH", "PUT"])
@pytest.mark.parametrize(("chunk", "received"), OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
@clause("Pushing a blob in chunks", "a chunk that is uploaded out of order MUST be 416")
@clause("Pushing a blob in chunks", "a GET may be used to retrieve the current valid offset and upload location")
async def test_chunk_out_of_order(repository: Repository, chunk: tuple[int, int], received: int, *, last: bool) -> None:
    location = await begin(repository)
    if received:
        location = (await append(repository, location, 0, received)).headers["location"]
    if last:
        headers = {"Content-Range": f"{chunk[0]}-{chunk[1] - 1}"}
        path = with_query(location, digest=DIGEST)
        answer = await repository.call("PUT", path, content=CONTENT[slice(*chunk)], headers=headers)
    else:
        answer = await append(repository, location, *chunk)
    assert (answer.status_code, error_codes(answer)) == (416, ["BLOB_UPLOAD_INVALID"])
    assert answer.headers["range"] == f"0-{max(received - 1, 0)}"
    status = await repository.call("GET", answer.headers["location"])
    assert (status.status_code, status.headers["range"]) == (204, f"0-{max(received - 1, 0)}")
    answer = await append(repository, status.headers["location"], received, len(CONTENT))
    assert answer.status_code == 202
    answer = await repository.call("PUT", with_query(answer.headers["location"], digest=DIGEST))
    await assert_created(repository, answer, DIGEST)


@pytest.mark.parametrize("content_range", ["nonsense", "0-", "-9", "9-0", "0-9-19", "a-b"])
@clause("Pushing a blob in chunks", "<range> MUST match ^[0-9]+-[0-9]+$")
async def test_unreadable_range_is_refused(repository: Repository, content_range: str) -> None:
    location = await begin(repository)
    headers = {"Content-Range": content_range}
    answer = await repository.call("PATCH", location, content=CONTENT[:10], headers=headers)
    assert (answer.status_code, error_codes(answer)) == (416, ["BLOB_UPLOAD_INVALID"])
    assert (await repository.call("GET", location)).headers["range"] == "0-0"


@pytest.mark.parametrize("content_range", ["0-8", "0-10"])
@clause("Pushing a blob in chunks", "<range> MUST be inclusive on both ends, and <length> the size of the chunk")
@clause("Error Codes", "SIZE_INVALID: provided length did not match content length")
async def test_chunk_of_another_length_than_its_range_is_refused(repository: Repository, content_range: str) -> None:
    location = await begin(repository)
    headers = {"Content-Range": content_range}
    answer = await repository.call("PATCH", location, content=CONTENT[:10], headers=headers)
    assert (answer.status_code, error_codes(answer)) == (400, ["SIZE_INVALID"])
    answer = await append(repository, location, 0, len(CONTENT))
    assert (answer.status_code, answer.headers["range"]) == (202, f"0-{len(CONTENT) - 1}")


@clause("Pushing a blob in chunks", "chunks MUST be uploaded in order, so of two for one place only one is taken")
async def test_two_chunks_for_one_place_at_once(repository: Repository) -> None:
    location = await begin(repository)
    answers = await asyncio.gather(*(append(repository, location, 0, 300) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [202, 416, 416, 416]
    rest = CONTENT[300:]
    answer = await repository.call("PUT", with_query(location, digest=DIGEST), content=rest)
    await assert_created(repository, answer, DIGEST)


@clause("Pushing a blob in chunks", "GET of an active upload MUST be 204 with Location and Range: 0-<end-of-range>")
async def test_status_of_an_upload(repository: Repository) -> None:
    location = await begin(repository)
    for end, shown in ((0, "0-0"), (1, "0-0"), (700, "0-699")):
        if end:
            location = (await append(repository, location, 0 if end == 1 else 1, end)).headers["location"]
        status = await repository.call("GET", location)
        assert (status.status_code, status.content, status.headers["range"]) == (204, b"", shown)
        location = status.headers["location"]
    answer = await repository.call("PUT", with_query(location, digest=DIGEST), content=CONTENT[700:])
    await assert_created(repository, answer, DIGEST)


@clause("Docker Registry HTTP API V2: Canceling an Upload", "after DELETE the session is no longer valid")
async def test_cancelled_upload_is_gone(repository: Repository) -> None:
    location = (await append(repository, await begin(repository), 0, 300)).headers["location"]
    answer = await repository.call("DELETE", location)
    assert (answer.status_code, answer.content) == (204, b"")
    await assert_gone(repository, location)


@clause("Pushing a blob in chunks", "the session is closed by PUT")
async def test_closed_upload_is_gone(repository: Repository) -> None:
    location = (await append(repository, await begin(repository), 0, len(CONTENT))).headers["location"]
    answer = await repository.call("PUT", with_query(location, digest=DIGEST))
    await assert_created(repository, answer, DIGEST)
    await assert_gone(repository, location)


@clause("Endpoints", "an upload that is not known MUST be 404 (end-5, end-6, end-13)")
async def test_upload_of_another_repository_or_of_none_is_404(repository: Repository) -> None:
    location = await begin(repository)
    await assert_gone(repository, location.replace(repository.name, f"{repository.name}/other"))
    await assert_gone(repository, UNKNOWN)
    await assert_gone(repository, "blobs/uploads/x")
    assert (await repository.call("GET", location)).status_code == 204


async def assert_gone(repository: Repository, location: str) -> None:
    for method, path in (
        ("GET", location),
        ("PATCH", location),
        ("PUT", with_query(location, digest=NOTHING)),
        ("DELETE", location),
    ):
        answer = await repository.call(method, path, content=b"x" if method == "PATCH" else b"")
        assert (answer.status_code, error_codes(answer)) == (404, ["BLOB_UPLOAD_UNKNOWN"]), method


@clause("Pushing a blob in chunks", "with a minimum chunk size the POST response SHOULD have OCI-Chunk-Min-Length")
@clause("Pushing a blob in chunks", "the final chunk MAY have any length")
async def test_least_chunk_length_is_told(repository: Repository, way: Way, outside: httpx.AsyncClient) -> None:
    answer = await repository.call("POST", "blobs/uploads/")
    assert "oci-chunk-min-length" not in answer.headers
    async with way.serve(limits={"chunk_bytes_min": 300}) as served:
        publisher = await served.client("publisher", "of long chunks")
        repository = Repository(publisher, repository.name, outside)
        answer = await repository.call("POST", "blobs/uploads/")
        assert answer.headers["oci-chunk-min-length"] == "300"
        location = answer.headers["location"]
        for start, end in ((0, 300), (300, 1000)):
            location = (await append(repository, location, start, end)).headers["location"]
        headers = {"Content-Range": f"1000-{len(CONTENT) - 1}"}
        path = with_query(location, digest=DIGEST)
        assert (await repository.call("PUT", path, content=CONTENT[1000:], headers=headers)).status_code == 201


class TestMount:
    """Section "Mounting a blob from another repository"."""

    @pytest.mark.parametrize("query", ["&from={name}", ""], ids=["from a repository", "from anywhere"])
    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    @clause("Mounting a blob from another repository", "a successful mount MUST be 201 with the blob's Location")
    @clause("Mounting a blob from another repository", "`from` MAY be optional: the blob is mounted if it can be found")
    async def test_mounts_what_is_there(self, repository: Repository, algorithm: str, query: str) -> None:
        content = os.urandom(100)
        digest = (await repository.push_blob(content, algorithm=algorithm))["digest"]
        other = repository.named(f"{repository.name}/other")
        path = f"blobs/uploads/?mount={digest}" + query.format(name=repository.name)
        answer = await other.call("POST", path, headers={"Content-Length": "0"})
        await assert_created(other, answer, digest, content)

    @clause("Mounting a blob from another repository", "what is mounted belongs to the repository it is mounted into")
    async def test_mounted_blob_outlives_its_source(self, repository: Repository) -> None:
        content = os.urandom(100)
        digest = (await repository.push_blob(content))["digest"]
        other = repository.named(f"{repository.name}/other")
        answer = await other.call("POST", f"blobs/uploads/?mount={digest}&from={repository.name}")
        assert answer.status_code == 201
        assert (await repository.call("DELETE", f"blobs/{digest}")).status_code == 202
        assert (await other.fetch(f"blobs/{digest}")).content == content

    @pytest.mark.parametrize(
        "query",
        [f"mount={ABSENT}&from={{name}}", f"mount={ABSENT}", "mount={digest}&from=smm/none", "mount={digest}&from=A"],
        ids=["not in the source", "nowhere", "no such source", "no name"],
    )
    @clause(
        "Mounting a blob from another repository", "a registry that cannot mount SHOULD answer 202: an upload begun"
    )
    async def test_is_an_upload_otherwise(self, repository: Repository, query: str) -> None:
        content = os.urandom(100)
        digest = (await repository.push_blob(content))["digest"]
        other = repository.named(f"{repository.name}/other")
        query = query.format(name=repository.name, digest=digest)
        answer = await other.call("POST", f"blobs/uploads/?{query}")
        assert answer.status_code == 202
        assert (await other.call("HEAD", f"blobs/{digest}")).status_code == 404
        answer = await other.call("PUT", with_query(answer.headers["location"], digest=digest), content=content)
        await assert_created(other, answer, digest, content)
