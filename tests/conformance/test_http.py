"""HTTP semantics: ranges, conditions, caching, and what answers must and must not carry."""

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.repository import Repository, error_codes, index

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONTENT = bytes(range(256)) * 12
SIZE = len(CONTENT)
DIGEST = Digest.of(CONTENT)
BLOB = f"blobs/{DIGEST}"
ETAG = f'"{DIGEST}"'

SATISFIABLE = {
    "bytes=0-0": (0, 1),
    "bytes=500-1499": (500, 1500),
    "bytes=500-": (500, SIZE),
    "bytes=0-": (0, SIZE),
    "bytes=-500": (SIZE - 500, SIZE),
    "bytes=-1": (SIZE - 1, SIZE),
    f"bytes={SIZE - 1}-": (SIZE - 1, SIZE),
    f"bytes=0-{SIZE - 1}": (0, SIZE),
    "bytes=2000-50000": (2000, SIZE),
    "bytes=-50000": (0, SIZE),
    "bytes=00500-0000000000000000501": (500, 502),
}


@pytest.fixture
async def blob(repository: Repository) -> str:
    """The path of a blob of CONTENT."""
    await repository.push_blob(CONTENT)
    return BLOB


@pytest.mark.parametrize(("wanted", "part"), SATISFIABLE.items(), ids=SATISFIABLE)
@clause("Pulling blobs", "a registry SHOULD support Range in accordance with RFC 9110")
@clause("RFC 9110, 14.4 Content-Range", "206 with Content-Range: the part, and the complete length")
async def test_range(repository: Repository, direct: Repository, blob: str, wanted: str, part: tuple[int, int]) -> None:
    for answer in (
        await direct.call("GET", blob, headers={"Range": wanted}),
        await repository.fetch(blob, headers={"Range": wanted}),
    ):
        assert (answer.status_code, answer.content) == (206, CONTENT[slice(*part)])
        assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/{SIZE}"
        assert answer.headers["content-length"] == str(part[1] - part[0])


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", "bytes=5000-10000", "bytes=-0", "bytes=500-0"])
@clause("RFC 9110, 15.5.17 Range Not Satisfiable", "416 SHOULD have Content-Range: bytes */<complete length>")
async def test_range_outside_the_blob(repository: Repository, direct: Repository, blob: str, wanted: str) -> None:
    for place in (direct, repository):
        answer = await place.call("GET", blob, headers={"Range": wanted})
        assert (answer.status_code, error_codes(answer)) == (416, ["SIZE_INVALID"])
        assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("wanted", ["bytes=0-0", "bytes=0-", "bytes=-5"])
@clause("RFC 9110, 14.1.2 Byte Ranges", "no range of an empty representation is satisfiable")
async def test_range_of_nothing(direct: Repository, wanted: str) -> None:
    empty = await direct.push_blob(b"")
    answer = await direct.call("GET", f"blobs/{empty['digest']}", headers={"Range": wanted})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize(
    "wanted", ["bytes=0-1,5-6", "bytes=0-1, -1", "items=0-1", "bytes=a-b", "bytes=-", "bytes", "0-5", "bytes=--5"]
)
@clause("RFC 9110, 14.2 Range", "MUST ignore an unknown unit; MAY ignore several ranges and what is not understood")
async def test_range_that_is_ignored(direct: Repository, blob: str, wanted: str) -> None:
    answer = await direct.call("GET", blob, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "content-range" not in answer.headers


@clause("RFC 9110, 14.2 Range", "a server MUST ignore Range with a method for which it is not defined: HEAD, or errors")
async def test_range_is_for_get_of_blobs(repository: Repository, direct: Repository, blob: str) -> None:
    headers = {"Range": "bytes=0-9"}
    answer = await direct.call("HEAD", blob, headers=headers)
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(SIZE))
    assert "content-range" not in answer.headers
    assert (await direct.call("GET", f"blobs/{Digest.of(b'not here')}", headers=headers)).status_code == 404
    await repository.push(index(), "v1", media_types.OCI_INDEX)
    assert (await direct.call("GET", "manifests/v1", headers=headers)).content == index()


@clause("RFC 9110, 14.3 Accept-Ranges", "a server that supports ranges of a resource MAY say so")
async def test_ranges_are_offered(direct: Repository, blob: str) -> None:
    for method in ("GET", "HEAD"):
        assert (await direct.call(method, blob)).headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (ETAG, 206),
        (f"  {ETAG}  ", 206),
        (f"W/{ETAG}", 200),
        ('"other"', 200),
        (str(DIGEST), 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ],
)
@clause("RFC 9110, 13.1.5 If-Range", "MUST ignore Range unless the validator matches by strong comparison")
async def test_if_range(direct: Repository, blob: str, condition: str, status: int) -> None:
    answer = await direct.call("GET", blob, headers={"Range": "bytes=5-9", "If-Range": condition})
    assert answer.status_code == status
    assert answer.content == (CONTENT[5:10] if status == 206 else CONTENT)
    if status == 200:
        headers = {"Range": f"bytes={SIZE}-", "If-Range": condition}
        assert (await direct.call("GET", blob, headers=headers)).status_code == 200


MATCHING = ["{0}", "W/{0}", '"x", {0}', '"x",W/{0} , "y"', "*", " * ", "{0},"]
OTHER = ['"x"', '"x", "y"', "", "sha256:abc", '"{0}"', "x{0}"]


@pytest.mark.parametrize(("known", "status"), [*((one, 304) for one in MATCHING), *((one, 200) for one in OTHER)])
@clause("RFC 9110, 13.1.2 If-None-Match", "304 to GET and HEAD if one of the list matches by weak comparison, or for *")
@clause("RFC 9110, 15.4.5 Not Modified", "MUST have the Cache-Control and ETag of a 200, and has no content")
async def test_if_none_match(repository: Repository, direct: Repository, blob: str, known: str, status: int) -> None:
    pushed = await repository.push(index(), "v1", media_types.OCI_INDEX)
    for path in ("manifests/v1", f"manifests/{pushed.digest}", blob):
        whole = await direct.call("GET", path)
        headers = {"If-None-Match": known.format(whole.headers["etag"])}
        for method in ("GET", "HEAD"):
            answer = await direct.call(method, path, headers=headers)
            assert answer.status_code == status
            assert answer.headers["etag"] == whole.headers["etag"]
            assert answer.headers["cache-control"] == whole.headers["cache-control"]
            if status == 304:
                assert answer.content == b""
                assert answer.headers.get("content-length") in {None, str(len(whole.content))}  # RFC 9110, 8.6
                # No redirect either: what the client has is right.
                assert (await repository.call(method, path, headers=headers)).status_code == 304
            elif method == "GET":
                assert answer.content == whole.content


@clause("RFC 9110, 13.2.2 Precedence", "If-None-Match is evaluated before Range and If-Range")
async def test_not_modified_comes_before_ranges(direct: Repository, blob: str) -> None:
    for wanted in ("bytes=0-9", f"bytes={SIZE}-"):
        headers = {"Range": wanted, "If-None-Match": ETAG, "If-Range": ETAG}
        assert (await direct.call("GET", blob, headers=headers)).status_code == 304


@clause(
    "RFC 9110, 13.2.1 When to Evaluate", "MUST ignore preconditions if the response without them would be no success"
)
async def test_condition_on_what_is_missing(direct: Repository, blob: str) -> None:
    for path in (f"blobs/{Digest.of(b'not here')}", "manifests/none"):
        assert (await direct.call("GET", path, headers={"If-None-Match": "*"})).status_code == 404


@clause("RFC 9110, 8.8.3 ETag", "a strong validator differs whenever the content does, and is the same when that is")
@clause("RFC 9111, 5.2.2.4 no-cache", "a tag may move, so what is cached for it must be asked about")
async def test_moved_tag_is_seen_through_its_etag(repository: Repository) -> None:
    await repository.push_image("v1")
    old = await repository.call("GET", "manifests/v1")
    assert (await repository.call("GET", "manifests/v1")).headers["etag"] == old.headers["etag"]
    moved = await repository.push_image("v1")
    headers = {"If-None-Match": old.headers["etag"]}
    answer = await repository.call("GET", "manifests/v1", headers=headers)
    assert (answer.status_code, answer.content) == (200, moved.content)
    assert answer.headers["etag"] != old.headers["etag"]
    assert not answer.headers["etag"].startswith("W/")


@clause("RFC 8246", "what a digest names never changes: immutable; what a tag names is revalidated")
@clause("RFC 9111, 5.2.2.7 private", "who may not pull must not get it from a shared cache")
async def test_how_long_answers_may_be_kept(repository: Repository, direct: Repository, blob: str) -> None:
    pushed = await repository.push(index(), "v1", media_types.OCI_INDEX)
    for method in ("GET", "HEAD"):
        for path in (blob, f"manifests/{pushed.digest}"):
            directives = (await direct.call(method, path)).headers["cache-control"].split(", ")
            assert {"private", "immutable", "max-age=31536000"} <= set(directives)
        directives = (await direct.call(method, "manifests/v1")).headers["cache-control"].split(", ")
        assert {"private", "no-cache"} <= set(directives)
        for path in (f"blobs/{Digest.of(b'not here')}", "manifests/none", "tags/list", f"referrers/{DIGEST}"):
            assert "max-age" not in (await direct.call(method, path)).headers.get("cache-control", "")


@clause("RFC 9110, 8.6 Content-Length", "a server MUST NOT send Content-Length in a 204")
async def test_no_content_has_no_length(repository: Repository) -> None:
    location = (await repository.call("POST", "blobs/uploads/")).headers["location"]
    for method in ("GET", "DELETE"):
        answer = await repository.call(method, location)
        assert answer.status_code == 204
        assert "content-length" not in answer.headers


@clause("RFC 9110, 15.5.6 Method Not Allowed", "the origin server MUST generate an Allow header")
async def test_refused_method_tells_which_ones_would_do(repository: Repository, blob: str) -> None:
    for method, path, expected in (
        ("POST", blob, {"GET", "HEAD", "DELETE"}),
        ("PATCH", "manifests/v1", {"GET", "HEAD", "PUT", "DELETE"}),
        ("PUT", "tags/list", {"GET", "HEAD"}),
        ("DELETE", "/v2/", {"GET", "HEAD"}),
    ):
        answer = await repository.call(method, path)
        assert (answer.status_code, error_codes(answer)) == (405, ["UNSUPPORTED"])
        assert set(answer.headers.get_list("allow", split_commas=True)) == expected


@pytest.mark.parametrize("condition", [{"If-None-Match": "*"}, {"If-Match": '"other"'}], ids=["only new", "only if"])
@clause("Pushing Manifests with Subject", "the client MAY use conditional requests to prevent overwriting a list")
@clause("RFC 9110, 13.1.1 If-Match", "an origin server MUST NOT perform the method if the condition is false: 412")
async def test_conditional_push(repository: Repository, condition: dict[str, str]) -> None:
    old = await repository.push(index(), "v1", media_types.OCI_INDEX)
    content = index(annotations={"is": "another one"})
    headers = {"Content-Type": media_types.OCI_INDEX} | condition
    answer = await repository.call("PUT", "manifests/v1", content=content, headers=headers)
    assert answer.status_code == 412
    assert (await repository.call("GET", "manifests/v1")).content == old.content


@clause("RFC 9110, 13.1.1 If-Match", "a condition that holds lets the method be performed")
async def test_condition_that_holds(repository: Repository) -> None:
    old = await repository.push(index(), "v1", media_types.OCI_INDEX)
    content = index(annotations={"is": "another one"})
    for tag, body, condition in (
        ("v1", content, {"If-Match": f'"{old.digest}"'}),
        ("v2", content, {"If-None-Match": "*"}),
        ("v1", index(), {"If-Match": "*", "If-None-Match": f'"{old.digest}"'}),
    ):
        headers = {"Content-Type": media_types.OCI_INDEX} | condition
        answer = await repository.call("PUT", f"manifests/{tag}", content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        assert (await repository.call("GET", f"manifests/{tag}")).content == body


@clause("Deleting Manifests", "the client MAY use conditional requests")
@clause("RFC 9110, 13.1.1 If-Match", "an origin server MUST NOT perform the method if the condition is false: 412")
@clause("RFC 9110, 13.2.1 When to Evaluate", "MUST ignore preconditions if the response without them is no success")
async def test_conditional_deletion(repository: Repository) -> None:
    pushed = await repository.push(index(), "v1", media_types.OCI_INDEX)
    for path in ("manifests/v1", f"manifests/{pushed.digest}"):
        for condition in ({"If-Match": '"other"'}, {"If-None-Match": "*"}):
            assert (await repository.call("DELETE", path, headers=condition)).status_code == 412
            assert (await repository.call("GET", path)).content == index()
        answer = await repository.call("DELETE", path, headers={"If-Match": f'"{pushed.digest}"'})
        assert answer.status_code == 202
        answer = await repository.call("DELETE", path, headers={"If-Match": '"other"'})
        assert (answer.status_code, error_codes(answer)) == (404, ["MANIFEST_UNKNOWN"])
