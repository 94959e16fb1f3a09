"""Workflow "Pull": manifests, blobs, and whether they are there."""

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.repository import BINARY, Pushed, Repository, error_codes, image, index

pytestmark = pytest.mark.asyncio(loop_scope="session")

ABSENT = Digest.of(b"not here")
ABSENT_512 = Digest.of(b"not here", "sha512")
EMPTY_INDEX = index()
TYPES = [media_types.OCI_MANIFEST, media_types.OCI_INDEX, media_types.DOCKER_MANIFEST, media_types.DOCKER_LIST]


async def push_as(repository: Repository, media_type: str, tag: str, algorithm: str = "sha256") -> Pushed:
    """A manifest or index of this type."""
    push = repository.push_index if media_type in media_types.INDEXES else repository.push_image
    return await push(tag, algorithm, media_type=media_type)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("media_type", TYPES)
@clause("Pulling manifests", "GET of an existing manifest MUST be 200 with the expected manifest")
@clause("Pulling manifests", "Content-Type SHOULD match what was pushed; Docker-Content-Digest SHOULD be there")
async def test_manifest_comes_as_it_was_pushed(repository: Repository, media_type: str, algorithm: str) -> None:
    pushed = await push_as(repository, media_type, "v1", algorithm)
    for reference in ("v1", str(pushed.digest)):
        answer = await repository.call("GET", f"manifests/{reference}", headers={"Accept": media_type})
        assert (answer.status_code, answer.content) == (200, pushed.content)
        assert answer.headers["content-type"] == media_type
        assert answer.headers["docker-content-digest"] == str(pushed.digest)
        assert answer.headers["content-length"] == str(len(pushed.content))


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/json", media_types.DOCKER_MANIFEST, f"{media_types.OCI_INDEX}, */*;q=0.1", None],
)
@clause("Pulling manifests", "the manifest provided MUST be the expected one; Accept is the client's SHOULD")
async def test_manifest_is_never_another_one_for_the_sake_of_accept(repository: Repository, accept: str | None) -> None:
    pushed = await repository.push_image("v1")
    headers = {} if accept is None else {"Accept": accept}
    answer = await repository.call("GET", "manifests/v1", headers=headers)
    assert (answer.status_code, answer.content) == (200, pushed.content)
    assert answer.headers["content-type"] == media_types.OCI_MANIFEST


@clause("Pulling manifests", "the registry SHOULD NOT include parameters on Content-Type")
@clause("Pushing Manifests", "the registry SHOULD ignore parameters on Content-Type")
async def test_parameters_of_the_content_type_are_dropped(repository: Repository) -> None:
    answer = await repository.put("v1", EMPTY_INDEX, f"{media_types.OCI_INDEX}; charset=utf-8")
    assert answer.status_code == 201
    answer = await repository.call("GET", "manifests/v1")
    assert answer.headers["content-type"] == media_types.OCI_INDEX


@clause("Pulling manifests", "Content-Type SHOULD match what was pushed, where the manifest itself has no mediaType")
async def test_type_is_remembered_when_the_manifest_does_not_say_it(repository: Repository) -> None:
    for media_type in (media_types.OCI_INDEX, media_types.DOCKER_LIST):
        content = index(media_type=None, annotations={"for": media_type})  # type: ignore[arg-type]
        pushed = await repository.push(content, media_type=media_type)
        answer = await repository.call("GET", f"manifests/{pushed.digest}")
        assert (answer.headers["content-type"], answer.content) == (media_type, content)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("reference", ["none", str(ABSENT), str(ABSENT_512)], ids=["tag", "sha256", "sha512"])
@clause("Pulling manifests", "a manifest that is not found in the repository MUST be 404")
@clause("Checking if content exists in the registry", "what is not found MUST be 404")
async def test_missing_manifest_is_404(repository: Repository, method: str, reference: str) -> None:
    for name, code in ((f"{repository.name}/none", "NAME_UNKNOWN"), (repository.name, "MANIFEST_UNKNOWN")):
        await repository.push(EMPTY_INDEX, "v1", media_types.OCI_INDEX)
        answer = await repository.named(name).call(method, f"manifests/{reference}")
        assert answer.status_code == 404
        assert answer.content == b"" if method == "HEAD" else error_codes(answer) == [code]


@clause("Pulling manifests", "a manifest is found in its own repository only")
async def test_manifest_of_another_repository_is_404(repository: Repository) -> None:
    pushed = await repository.push(EMPTY_INDEX, "v1", media_types.OCI_INDEX)
    other = repository.named(f"{repository.name}/other")
    await other.push_blob(b"so that it exists")
    for reference in ("v1", pushed.digest):
        assert (await other.call("GET", f"manifests/{reference}")).status_code == 404


NAMES = [
    "0",
    "a.b",
    "a_b",
    "a__b",
    "a-b",
    "a---b",
    "a1/b2/c3/d4/e5/f6",
    "manifests",
    "manifests/v1",
    "a/manifests/b",
    "blobs",
    "a/blobs/uploads",
    "a/blobs/sha256",
    "tags/list",
    "a/tags/list",
    "a/referrers/b",
    "uploads",
    "v2",
    "long/" + "a" * 250,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20])
@clause("Pulling manifests", "<name> MUST match the grammar, so every name that matches can be used")
async def test_every_name_of_the_grammar_can_be_used(repository: Repository, name: str) -> None:
    repository = repository.named(name)
    blob = await repository.push_blob(b"x")
    pushed = await repository.push(EMPTY_INDEX, "v1", media_types.OCI_INDEX)
    assert (await repository.call("GET", "manifests/v1")).content == EMPTY_INDEX
    assert (await repository.call("GET", f"manifests/{pushed.digest}")).content == EMPTY_INDEX
    assert (await repository.fetch(f"blobs/{blob['digest']}")).content == b"x"
    assert (await repository.call("GET", "tags/list")).json() == {"name": name, "tags": ["v1"]}
    assert (await repository.call("GET", f"referrers/{ABSENT_512}")).json()["manifests"] == []
    assert (await repository.call("POST", "blobs/uploads/")).status_code == 202


@pytest.mark.parametrize(
    "name", ["A", "a..b", "a___b", "_a", "a_", "-a", "a-", ".a", "a.", "a/", "a//b", "a/_b", "a%2Fb", "ä", "a b"]
)
@clause("Pulling manifests", "<name> MUST match the grammar")
async def test_no_other_name_is_accepted(repository: Repository, name: str) -> None:
    for method, path in (("GET", "manifests/v1"), ("GET", "tags/list"), ("POST", "blobs/uploads/")):
        answer = await repository.client.call(method, f"/v2/{name}/{path}")
        assert (answer.status_code, error_codes(answer)) == (400, ["NAME_INVALID"])


@pytest.mark.parametrize("tag", ["a", "_", "0.1.2", "A-b_c.D", "list", "sha256-abc", "latest", "x" * 128])
@clause("Pulling manifests", "<reference> as a tag MUST be at most 128 characters and match the grammar")
async def test_every_tag_of_the_grammar_can_be_used(repository: Repository, tag: str) -> None:
    await repository.push(EMPTY_INDEX, tag, media_types.OCI_INDEX)
    assert (await repository.call("GET", f"manifests/{tag}")).content == EMPTY_INDEX


BAD_REFERENCES = {
    "tag of 129": "x" * 129,
    "dot first": ".a",
    "dash first": "-a",
    "plus": "a+b",
    "space": "a b",
    "short digest": "sha256:abc",
    "digest in upper case": f"sha256:{ABSENT.hex.upper()}",
    "digest of another algorithm's length": f"sha512:{ABSENT.hex}",
    "no hex": "sha256:" + "z" * 64,
    "unknown algorithm": "md5:d41d8cd98f00b204e9800998ecf8427e",
}


@pytest.mark.parametrize("reference", BAD_REFERENCES.values(), ids=BAD_REFERENCES)
@clause("Pulling manifests", "<reference> MUST be a digest or a tag, and MUST NOT be in any other format")
async def test_no_other_reference_is_accepted(repository: Repository, reference: str) -> None:
    for answer in (
        await repository.call("GET", f"manifests/{reference}"),
        await repository.put(reference, EMPTY_INDEX, media_types.OCI_INDEX),
    ):
        assert answer.status_code == 400
        assert error_codes(answer) == ["DIGEST_INVALID" if ":" in reference else "MANIFEST_INVALID"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize(
    "content", [b"content of a layer", b"", bytes(range(256)) * 300], ids=["text", "empty", "long"]
)
@clause("Pulling blobs", "GET of an existing blob MUST be 200 with the expected blob")
@clause("Pulling blobs", "Docker-Content-Digest, if present, MUST be a digest of the response body")
async def test_blob_comes_as_it_was_pushed(
    repository: Repository, direct: Repository, content: bytes, algorithm: str
) -> None:
    digest = (await repository.push_blob(content, algorithm=algorithm))["digest"]
    answer = await direct.call("GET", f"blobs/{digest}")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["docker-content-digest"] == digest
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["content-type"] == BINARY
    answer = await repository.fetch(f"blobs/{digest}")
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@clause("Pulling blobs", "a blob that is not found in the repository MUST be 404")
@clause("Checking if content exists in the registry", "what is not found MUST be 404")
async def test_missing_blob_is_404(repository: Repository, method: str) -> None:
    there = await repository.push_blob(b"in another repository")
    other = repository.named(f"{repository.name}/other")
    await other.push_blob(b"so that it exists")
    for place in (other, repository.named(f"{repository.name}/none")):
        for digest in (ABSENT, ABSENT_512, there["digest"]):
            answer = await place.call(method, f"blobs/{digest}")
            assert answer.status_code == 404
            assert answer.content == b"" if method == "HEAD" else error_codes(answer) == ["BLOB_UNKNOWN"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@clause("Checking if content exists in the registry", "HEAD of an existing blob or manifest MUST be 200")
@clause(
    "Checking if content exists in the registry", "SHOULD have Docker-Content-Digest, and Content-Length as its size"
)
async def test_head_tells_digest_and_size(repository: Repository, algorithm: str) -> None:
    content = b"content of a layer"
    layer = await repository.push_blob(content, algorithm=algorithm)
    pushed = await repository.push(image(layer, layer), "v1", algorithm=algorithm)
    for path, digest, size in (
        (f"blobs/{layer['digest']}", layer["digest"], len(content)),
        (f"manifests/{pushed.digest}", str(pushed.digest), len(pushed.content)),
        ("manifests/v1", str(pushed.digest), len(pushed.content)),
    ):
        answer = await repository.call("HEAD", path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["docker-content-digest"] == digest
        assert answer.headers["content-length"] == str(size)


@clause("RFC 9110, 9.3.2 HEAD", "a server SHOULD send the same header fields in response to a HEAD as to a GET")
async def test_head_has_the_headers_of_get(repository: Repository, direct: Repository) -> None:
    pushed = await repository.push_image("v1")
    await repository.push_image("v2")
    layer = await repository.push_blob(b"content of a layer")
    upload = (await direct.call("POST", "blobs/uploads/")).headers["location"]
    for path in (
        "manifests/v1",
        f"manifests/{pushed.digest}",
        f"blobs/{layer['digest']}",
        "tags/list",
        "tags/list?n=1",
        f"referrers/{pushed.digest}",
        f"referrers/{pushed.digest}?artifactType=x",
        "manifests/none",
        f"blobs/{ABSENT}",
        "referrers/none",
        "tags/list?n=none",
        "none",
        "/v2/",
        "/v2/_catalog?n=1",
        upload,
    ):
        get, head = await direct.call("GET", path), await direct.call("HEAD", path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers == get.headers
        if get.status_code != 204:
            assert head.headers["content-length"] == str(len(get.content))
