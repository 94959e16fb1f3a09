"""Error codes and their form, and whether this is a registry at all."""

import base64
import re

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.repository import Repository, describe, error_codes, image, index
from tests.support.served import RegistryClient, Served

pytestmark = pytest.mark.asyncio(loop_scope="session")

ABSENT = Digest.of(b"not here")
UPLOAD = "blobs/uploads/00000000-0000-0000-0000-000000000000"
MANIFEST = {"Content-Type": media_types.OCI_MANIFEST}

# (method, path, headers, body) -> (status, code)
REFUSED = {
    "code-1": (("GET", f"blobs/{ABSENT}", {}, b""), (404, "BLOB_UNKNOWN")),
    "code-2": (("PATCH", "{upload}", {"Content-Range": "5-5"}, b"x"), (416, "BLOB_UPLOAD_INVALID")),
    "code-3": (("PATCH", UPLOAD, {}, b"x"), (404, "BLOB_UPLOAD_UNKNOWN")),
    "code-4": (("PUT", f"{{upload}}?digest={ABSENT}", {}, b"x"), (400, "DIGEST_INVALID")),
    "code-5": (
        ("PUT", "manifests/v9", MANIFEST, image(describe(b"not here"))),
        (404, "MANIFEST_BLOB_UNKNOWN"),
    ),
    "code-6": (("PUT", "manifests/v9", MANIFEST, b"{}"), (400, "MANIFEST_INVALID")),
    "code-7": (("GET", "manifests/v9", {}, b""), (404, "MANIFEST_UNKNOWN")),
    "code-8": (("GET", "/v2/NAME/manifests/v1", {}, b""), (400, "NAME_INVALID")),
    "code-9": (("GET", "/v2/smm/none/tags/list", {}, b""), (404, "NAME_UNKNOWN")),
    "code-10": (("PATCH", "{upload}", {"Content-Range": "0-5"}, b"x"), (400, "SIZE_INVALID")),
    "code-13": (("POST", "manifests/v1", {}, b""), (405, "UNSUPPORTED")),
    "no such path": (("GET", "nothing", {}, b""), (404, "NAME_UNKNOWN")),
}


def assert_form(answer_body: object) -> None:
    """As "Error Codes" has it."""
    assert isinstance(answer_body, dict)
    assert set(answer_body) == {"errors"}
    for error in answer_body["errors"]:
        assert {"code", "message"} <= set(error) <= {"code", "message", "detail"}
        assert re.fullmatch("[A-Z_]+", error["code"])
        assert isinstance(error["message"], str)


@pytest.mark.parametrize(("request_", "expected"), REFUSED.values(), ids=REFUSED)
@clause("Error Codes", "a JSON body MUST have the form {errors: [{code, message?, detail?}]}")
@clause("Error Codes", "the code MUST be one of those in the table")
async def test_refusal(
    repository: Repository, request_: tuple[str, str, dict[str, str], bytes], expected: tuple[int, str]
) -> None:
    await repository.push(index(), "v1", media_types.OCI_INDEX)
    upload = (await repository.call("POST", "blobs/uploads/")).headers["location"]
    method, path, headers, body = request_
    answer = await repository.call(method, path.format(upload=upload), headers=headers, content=body)
    assert (answer.status_code, error_codes(answer)) == (expected[0], [expected[1]])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert_form(answer.json())


@clause("Determining Support", "GET /v2/: 200 OK, if the registry implements this specification")
@clause("Docker Registry HTTP API V2: API Version Check", "Docker-Distribution-API-Version SHOULD be registry/2.0")
async def test_ping(anywhere: Served, repository: Repository) -> None:
    for method in ("GET", "HEAD"):
        answer = await repository.call(method, "/v2/")
        assert answer.status_code == 200
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
        answer = await anywhere.http.request(method, "/v2/")
        assert answer.status_code == 401
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/"),
        ("GET", "manifests/v1"),
        ("GET", f"blobs/{ABSENT}"),
        ("GET", "tags/list"),
        ("GET", f"referrers/{ABSENT}"),
        ("GET", "/v2/_catalog"),
        ("POST", "blobs/uploads/"),
        ("PATCH", UPLOAD),
        ("PUT", "manifests/v1"),
        ("DELETE", "manifests/v1"),
        ("DELETE", f"blobs/{ABSENT}"),
    ],
)
@clause("Error Codes", "UNAUTHORIZED: authentication required")
@clause("RFC 9110, 15.5.2 Unauthorized", "the server MUST send a WWW-Authenticate with a challenge")
async def test_nobody_is_challenged(anywhere: Served, repository: Repository, method: str, path: str) -> None:
    await repository.push(index(), "v1", media_types.OCI_INDEX)
    path = path if path.startswith("/") else f"/v2/{repository.name}/{path}"
    for headers in ({}, {"Authorization": "Basic bm9ib2R5Om5vdGhpbmc="}, {"Authorization": "Bearer nothing"}):
        answer = await anywhere.http.request(method, path, headers=headers)
        assert (answer.status_code, error_codes(answer)) == (401, ["UNAUTHORIZED"])
        assert answer.headers["www-authenticate"].startswith('Bearer realm="http')
        assert_form(answer.json())
    assert await repository.tags() == ["v1"]


@clause("Error Codes", "DENIED: requested access to the resource is denied")
async def test_reader_may_not_write(anywhere: Served, repository: Repository) -> None:
    pushed = await repository.push(index(), "v1", media_types.OCI_INDEX)
    reader = await anywhere.client("free", f"reader of {repository.name}")
    for method, path in (
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/v1"),
        ("DELETE", "manifests/v1"),
        ("DELETE", f"manifests/{pushed.digest}"),
        ("DELETE", f"blobs/{ABSENT}"),
    ):
        answer = await reader.call(method, f"/v2/{repository.name}/{path}", content=b"x" if method == "PUT" else b"")
        assert (answer.status_code, error_codes(answer)) == (403, ["DENIED"])
        assert_form(answer.json())
    answer = await reader.call("GET", f"/v2/{repository.name}/manifests/v1")
    assert (answer.status_code, answer.content) == (200, index())


@pytest.mark.parametrize(
    "path",
    [
        "tags/list?last=a%00b",
        "tags/list?n=1&last=%00",
        f"referrers/{ABSENT}?last=%00",
        f"referrers/{ABSENT}?artifactType=%00",
        "/v2/_catalog?last=%00",
    ],
)
@clause("RFC 9110, 15.5.1 Bad Request", "what the server cannot process is perceived to be a client error: 400")
async def test_nul_is_in_no_name(repository: Repository, path: str) -> None:
    """PostgreSQL keeps no such text, and would not even be asked for it."""
    await repository.push(index(), "v1", media_types.OCI_INDEX)
    answer = await repository.call("GET", path)
    assert (answer.status_code, error_codes(answer)) == (400, ["UNSUPPORTED"])


@clause("RFC 7617, 2", "the user-id and password MUST NOT contain any control characters")
async def test_nobody_has_nul_in_the_username(anywhere: Served, publisher: RegistryClient) -> None:
    secret = publisher.credential.secret.reveal()
    for username in ("\0", f"{publisher.credential.username}\0"):
        login = {"Authorization": f"Basic {base64.b64encode(f'{username}:{secret}'.encode()).decode()}"}
        for path in ("/v2/", "/token"):
            assert (await anywhere.http.get(path, headers=login)).status_code == 401
        form = {"grant_type": "password", "username": username, "password": secret}
        assert (await anywhere.http.post("/token", data=form)).status_code == 400
