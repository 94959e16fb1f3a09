"""One table of requests and answers for the whole of `/v2/`."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES
from tests.support.content import Image
from tests.support.served import RegistryClient, Served, files_below, rows_of

IMAGE = Image(config=b'{"os":"linux"}', layer=b"layer " * 100)
ABSENT = Digest.of(b"not here")
LAYER = Digest.of(IMAGE.layer)
UPLOAD = "00000000-0000-0000-0000-000000000000"
OCI = {"Content-Type": media_types.OCI_MANIFEST}


@dataclass(frozen=True)
class Case:
    id: str
    method: str
    path: str
    status: int
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    answer: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    json: Any = None


CASES = [
    # ping and list
    Case("ping", "GET", "/v2/", 200, answer={"docker-distribution-api-version": "registry/2.0"}, json={}),
    Case("ping by HEAD", "HEAD", "/v2/", 200, content=b""),
    Case("ping by POST", "POST", "/v2/", 405, "UNSUPPORTED"),
    Case("no such path", "GET", "/v2/smm/api/nothing", 404, "NAME_UNKNOWN"),
    Case("catalog", "GET", "/v2/_catalog", 200, json={"repositories": ["smm/api"]}),
    Case("tags", "GET", "/v2/smm/api/tags/list", 200, json={"name": "smm/api", "tags": ["v1", "v2"]}),
    Case("no tags wanted", "GET", "/v2/smm/api/tags/list?n=0", 200, json={"name": "smm/api", "tags": []}),
    Case(
        "one tag, and a link to the next",
        "GET",
        "/v2/smm/api/tags/list?n=1",
        200,
        json={"name": "smm/api", "tags": ["v1"]},
        answer={"link": '</v2/smm/api/tags/list?n=1&last=v1>; rel="next"'},
    ),
    Case("tags after", "GET", "/v2/smm/api/tags/list?n=5&last=v1", 200, json={"name": "smm/api", "tags": ["v2"]}),
    Case("number of tags is none", "GET", "/v2/smm/api/tags/list?n=-1", 400, "UNSUPPORTED"),
    Case("tags of no repository", "GET", "/v2/smm/none/tags/list", 404, "NAME_UNKNOWN"),
    # manifests
    Case(
        "manifest by tag",
        "GET",
        "/v2/smm/api/manifests/v1",
        200,
        content=IMAGE.manifest,
        answer={"content-type": media_types.OCI_MANIFEST, "docker-content-digest": str(IMAGE.digest)},
    ),
    Case("manifest by digest", "GET", f"/v2/smm/api/manifests/{IMAGE.digest}", 200, content=IMAGE.manifest),
    Case(
        "digest with an encoded colon",
        "GET",
        f"/v2/smm/api/manifests/sha256%3A{IMAGE.digest.hex}",
        200,
        content=IMAGE.manifest,
    ),
    Case(
        "HEAD of a manifest",
        "HEAD",
        "/v2/smm/api/manifests/v1",
        200,
        content=b"",
        answer={"content-length": str(len(IMAGE.manifest)), "docker-content-digest": str(IMAGE.digest)},
    ),
    Case(
        "manifest that the client has",
        "GET",
        "/v2/smm/api/manifests/v1",
        304,
        headers={"If-None-Match": f'"{IMAGE.digest}"'},
        content=b"",
    ),
    Case("no such tag", "GET", "/v2/smm/api/manifests/v9", 404, "MANIFEST_UNKNOWN"),
    Case("no such digest", "GET", f"/v2/smm/api/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
    Case("manifest of no repository", "GET", "/v2/smm/none/manifests/v1", 404, "NAME_UNKNOWN"),
    Case("unknown digest algorithm", "GET", "/v2/smm/api/manifests/md5:abc", 400, "DIGEST_INVALID"),
    Case("tag too long", "GET", f"/v2/smm/api/manifests/{'a' * 129}", 400, "MANIFEST_INVALID"),
    Case("manifest that is not JSON", "PUT", "/v2/smm/api/manifests/x", 400, "MANIFEST_INVALID", OCI, b"nonsense"),
    Case(
        "manifest with the wrong content type",
        "PUT",
        "/v2/smm/api/manifests/x",
        400,
        "MANIFEST_INVALID",
        {"Content-Type": media_types.OCI_INDEX},
        IMAGE.manifest,
    ),
    Case(
        "manifest sent as another type of the same shape than it says",
        "PUT",
        "/v2/smm/api/manifests/x",
        400,
        "MANIFEST_INVALID",
        {"Content-Type": media_types.DOCKER_MANIFEST},
        IMAGE.manifest,
    ),
    Case(
        "manifest with half of a surrogate pair",
        "PUT",
        "/v2/smm/api/manifests/x",
        400,
        "MANIFEST_INVALID",
        OCI,
        IMAGE.manifest[:-1] + b', "artifactType": "\\ud800"}',
    ),
    Case(
        "manifest with a foreign content type",
        "PUT",
        "/v2/smm/api/manifests/x",
        400,
        "MANIFEST_INVALID",
        {"Content-Type": "text/plain"},
        IMAGE.manifest,
    ),
    Case(
        "manifest too large",
        "PUT",
        "/v2/smm/api/manifests/x",
        413,
        "MANIFEST_INVALID",
        OCI,
        b" " * (MAX_MANIFEST_BYTES + 1),
    ),
    Case(
        "manifest that names missing blobs",
        "PUT",
        "/v2/smm/api/manifests/x",
        404,
        "MANIFEST_BLOB_UNKNOWN",
        OCI,
        Image().manifest,
    ),
    Case(
        "manifest under another digest",
        "PUT",
        f"/v2/smm/api/manifests/{ABSENT}",
        400,
        "DIGEST_INVALID",
        OCI,
        IMAGE.manifest,
    ),
    Case("deleting a tag that is not there", "DELETE", "/v2/smm/api/manifests/v9", 404, "MANIFEST_UNKNOWN"),
    Case("deleting in no repository", "DELETE", "/v2/smm/none/manifests/v9", 404, "NAME_UNKNOWN"),
    Case("posting a manifest", "POST", "/v2/smm/api/manifests/v1", 405, "UNSUPPORTED"),
    # names
    Case("name in upper case", "GET", "/v2/SMM/api/manifests/v1", 400, "NAME_INVALID"),
    Case("name with an encoded slash", "GET", "/v2/smm%2Fapi/manifests/v1", 400, "NAME_INVALID"),
    Case("name too long", "GET", f"/v2/{'a' * 256}/manifests/v1", 400, "NAME_INVALID"),
    Case("path too long", "GET", f"/v2/{'a/' * 300}a/manifests/v1", 400, "NAME_INVALID"),
    # blobs
    Case(
        "blob",
        "GET",
        f"/v2/smm/api/blobs/{LAYER}",
        200,
        content=IMAGE.layer,
        answer={"docker-content-digest": str(LAYER), "content-length": str(len(IMAGE.layer))},
    ),
    Case(
        "HEAD of a blob",
        "HEAD",
        f"/v2/smm/api/blobs/{LAYER}",
        200,
        content=b"",
        answer={"content-length": str(len(IMAGE.layer)), "accept-ranges": "bytes"},
    ),
    Case(
        "range of a blob",
        "GET",
        f"/v2/smm/api/blobs/{LAYER}",
        206,
        headers={"Range": "bytes=6-16"},
        content=IMAGE.layer[6:17],
        answer={"content-range": f"bytes 6-16/{len(IMAGE.layer)}", "content-length": "11"},
    ),
    Case(
        "end of a blob",
        "GET",
        f"/v2/smm/api/blobs/{LAYER}",
        206,
        headers={"Range": "bytes=-7"},
        content=IMAGE.layer[-7:],
    ),
    Case(
        "several ranges are answered by the whole",
        "GET",
        f"/v2/smm/api/blobs/{LAYER}",
        200,
        headers={"Range": "bytes=0-1,3-4"},
        content=IMAGE.layer,
    ),
    Case(
        "invalid range",
        "GET",
        f"/v2/smm/api/blobs/{LAYER}",
        416,
        "SIZE_INVALID",
        {"Range": f"bytes={len(IMAGE.layer)}-"},
        answer={"content-range": f"bytes */{len(IMAGE.layer)}"},
    ),
    Case("no such blob", "GET", f"/v2/smm/api/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
    Case("blob of another repository", "GET", f"/v2/smm/other/blobs/{LAYER}", 404, "BLOB_UNKNOWN"),
    Case("blob with an unknown algorithm", "GET", "/v2/smm/api/blobs/sha1:abc", 400, "DIGEST_INVALID"),
    Case("blob that a manifest needs", "DELETE", f"/v2/smm/api/blobs/{LAYER}", 409, "DENIED"),
    # uploads
    Case("no such upload", "GET", f"/v2/smm/api/blobs/uploads/{UPLOAD}", 404, "BLOB_UPLOAD_UNKNOWN"),
    Case("upload id of no upload", "PATCH", "/v2/smm/api/blobs/uploads/x", 404, "BLOB_UPLOAD_UNKNOWN", body=b"x"),
    Case(
        "wrong digest in a single POST",
        "POST",
        f"/v2/smm/api/blobs/uploads/?digest={ABSENT}",
        400,
        "DIGEST_INVALID",
        body=b"something else",
    ),
    Case(
        "unknown algorithm in a single POST",
        "POST",
        "/v2/smm/api/blobs/uploads/?digest=md5:abc",
        400,
        "DIGEST_INVALID",
        body=b"x",
    ),
    Case(
        "single POST with a body over the limit",
        "POST",
        f"/v2/smm/api/blobs/uploads/?digest={ABSENT}",
        413,
        "BLOB_UPLOAD_INVALID",
        {"Content-Length": str(10**15)},
        b"x",
    ),
    Case("query too long", "POST", f"/v2/smm/api/blobs/uploads/?digest={'a' * 9000}", 400, "UNSUPPORTED", body=b"x"),
    Case("query not UTF-8", "POST", "/v2/smm/api/blobs/uploads/?digest=%ff", 400, "UNSUPPORTED", body=b"x"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_answers_and_stores_nothing_that_it_refuses(
    case: Case, served: Served, publisher: RegistryClient, tmp_path: Any
) -> None:
    for tag in ("v1", "v2"):
        await publisher.push_image("smm/api", tag, IMAGE)
    stored, rows = files_below(tmp_path / "data" / "blobs"), rows_of(served)

    answer = await publisher.call(case.method, case.path, headers=case.headers, content=case.body)

    assert answer.status_code == case.status, answer.text
    if case.code is not None and case.method != "HEAD":
        assert [error["code"] for error in answer.json()["errors"]] == [case.code]
        assert answer.json()["errors"][0]["message"]
    if case.content is not None:
        assert answer.content == case.content
    if case.json is not None:
        assert answer.json() == case.json
    assert {name: answer.headers.get(name) for name in case.answer} == case.answer
    assert files_below(tmp_path / "data" / "blobs") == stored
    assert rows_of(served) == rows


async def test_a_manifest_of_unknown_length_is_not_read_beyond_the_limit(
    served: Served, publisher: RegistryClient
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10 * MAX_MANIFEST_BYTES:
            sent += 65536
            yield b" " * 65536

    rows = rows_of(served)
    answer = await publisher.call("PUT", "/v2/smm/api/manifests/v1", headers=OCI, content=endless())
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, "MANIFEST_INVALID")
    assert sent <= MAX_MANIFEST_BYTES + 2 * 65536
    assert rows_of(served) == rows
