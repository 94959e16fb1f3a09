"""Uploads in all their forms, and what goes wrong with them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from entrepot.access.plans import parse_plans
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.served import TESTER, RegistryClient, Served, files_below, rows_of, serve

CONTENT = b"0123456789" * 5000
DIGEST = Digest.of(CONTENT)
UPLOADS = "/v2/smm/api/blobs/uploads/"
BLOB = f"/v2/smm/api/blobs/{DIGEST}"


async def begin(publisher: RegistryClient) -> str:
    answer = await publisher.call("POST", UPLOADS)
    assert answer.status_code == 202
    assert answer.headers["range"] == "0-0"
    return str(answer.headers["location"])


async def assert_stored(publisher: RegistryClient, content: bytes = CONTENT) -> None:
    answer = await publisher.call("GET", f"/v2/smm/api/blobs/{Digest.of(content)}")
    assert (answer.status_code, answer.content) == (200, content)


def stored_files(tmp_path: Path) -> list[Path]:
    return files_below(tmp_path / "data" / "blobs")


async def test_single_post(publisher: RegistryClient) -> None:
    answer = await publisher.call("POST", f"{UPLOADS}?digest={DIGEST}", content=CONTENT)
    assert (answer.status_code, answer.headers["location"]) == (201, BLOB)
    assert answer.headers["docker-content-digest"] == str(DIGEST)
    await assert_stored(publisher)


async def test_post_then_put(publisher: RegistryClient) -> None:
    location = await begin(publisher)
    answer = await publisher.call("PUT", f"{location}?digest={DIGEST}", content=CONTENT)
    assert (answer.status_code, answer.headers["location"]) == (201, BLOB)
    await assert_stored(publisher)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_chunks_then_put(publisher: RegistryClient, tmp_path: Path, algorithm: str) -> None:
    digest = Digest.of(CONTENT, algorithm)
    location = await begin(publisher)
    for start in range(0, 45_000, 15_000):
        headers = {"Content-Range": f"{start}-{start + 14_999}"}
        answer = await publisher.call("PATCH", location, content=CONTENT[start : start + 15_000], headers=headers)
        assert (answer.status_code, answer.headers["range"]) == (202, f"0-{start + 14_999}")
        location = answer.headers["location"]
    status = await publisher.call("GET", location)
    assert (status.status_code, status.headers["range"]) == (204, "0-44999")
    answer = await publisher.call("PUT", f"{location}?digest={digest}", content=CONTENT[45_000:])
    assert answer.status_code == 201
    pulled = await publisher.call("GET", f"/v2/smm/api/blobs/{digest}")
    assert pulled.content == CONTENT
    assert len(stored_files(tmp_path)) == 1
    assert (await publisher.call("GET", location)).status_code == 404


async def test_stream_of_unknown_length_then_empty_put(publisher: RegistryClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(CONTENT), 1000):
            yield CONTENT[start : start + 1000]

    location = await begin(publisher)
    answer = await publisher.call("PATCH", location, content=pieces())
    assert answer.status_code == 202
    answer = await publisher.call("PUT", f"{answer.headers['location']}?digest={DIGEST}")
    assert answer.status_code == 201
    await assert_stored(publisher)


async def test_empty_blob(publisher: RegistryClient) -> None:
    location = await begin(publisher)
    assert (await publisher.call("PUT", f"{location}?digest={Digest.of(b'')}")).status_code == 201
    await assert_stored(publisher, b"")


async def test_session_of_another_repository_is_unknown(publisher: RegistryClient) -> None:
    location = (await begin(publisher)).replace("/smm/api/", "/smm/other/")
    answer = await publisher.call("PATCH", location, content=b"x")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_wrong_digest_at_the_end_leaves_nothing(
    served: Served, publisher: RegistryClient, tmp_path: Path
) -> None:
    location = await begin(publisher)
    await publisher.call("PATCH", location, content=CONTENT)
    answer = await publisher.call("PUT", f"{location}?digest={Digest.of(b'other')}")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    assert str(DIGEST) in answer.json()["errors"][0]["message"]
    assert stored_files(tmp_path) == []
    assert rows_of(served)["blobs"] == rows_of(served)["repository_blobs"] == rows_of(served)["uploads"] == []
    assert (await publisher.call("GET", location)).status_code == 404


@pytest.mark.parametrize("content_range", ["5-14", "100-109"])
async def test_chunk_out_of_order_is_told_where_to_go_on(
    publisher: RegistryClient, tmp_path: Path, content_range: str
) -> None:
    location = await begin(publisher)
    await publisher.call("PATCH", location, content=CONTENT[:10], headers={"Content-Range": "0-9"})
    before = stored_files(tmp_path)
    answer = await publisher.call("PATCH", location, content=b"x" * 10, headers={"Content-Range": content_range})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (416, "BLOB_UPLOAD_INVALID")
    assert (answer.headers["range"], answer.headers["location"]) == ("0-9", location)
    assert stored_files(tmp_path) == before
    assert (await publisher.call("PUT", f"{location}?digest={DIGEST}", content=CONTENT[10:])).status_code == 201


@pytest.mark.parametrize("content_range", ["0-4", "0-99", "nonsense", "9-0"])
async def test_chunk_of_another_length_than_announced_is_dropped(
    publisher: RegistryClient, tmp_path: Path, content_range: str
) -> None:
    location = await begin(publisher)
    answer = await publisher.call("PATCH", location, content=b"x" * 10, headers={"Content-Range": content_range})
    assert answer.status_code in {400, 416}
    assert stored_files(tmp_path) == []
    assert (await publisher.call("GET", location)).headers["range"] == "0-0"


async def test_cancelled_upload_leaves_nothing(publisher: RegistryClient, tmp_path: Path) -> None:
    location = await begin(publisher)
    await publisher.call("PATCH", location, content=CONTENT)
    assert (await publisher.call("DELETE", location)).status_code == 204
    assert stored_files(tmp_path) == []
    assert (await publisher.call("PATCH", location, content=b"x")).status_code == 404


async def test_put_without_digest_is_refused(publisher: RegistryClient) -> None:
    answer = await publisher.call("PUT", await begin(publisher), content=CONTENT)
    assert answer.status_code == 400
    assert "digest" in answer.json()["errors"][0]["message"]


async def test_body_over_the_limit_leaves_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path / "data", limits={"blob_bytes": 1000}) as served:
        publisher = await served.client("publisher")
        location = await begin(publisher)
        answer = await publisher.call("PATCH", location, content=b"x" * 600)
        assert answer.status_code == 202
        for method, path in (
            ("PATCH", location),
            ("PUT", f"{location}?digest={DIGEST}"),
            ("POST", f"{UPLOADS}?digest={DIGEST}"),
        ):
            answer = await publisher.call(
                method, path, content=b"x" * (401 if path != f"{UPLOADS}?digest={DIGEST}" else 1001)
            )
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, "BLOB_UPLOAD_INVALID"), method
            assert "1000" in answer.json()["errors"][0]["message"]
        assert [path.stat().st_size for path in stored_files(tmp_path)] == [600]


async def test_client_that_stalls_is_given_up(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield CONTENT[:1000]
        await asyncio.sleep(5)
        yield CONTENT[1000:]

    async with serve(tmp_path / "data", limits={"stall_seconds": 0.2}) as served:
        publisher = await served.client("publisher")
        answer = await publisher.call("PATCH", await begin(publisher), content=pieces())
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "BLOB_UPLOAD_INVALID")
        assert stored_files(tmp_path) == []


async def test_two_uploads_of_the_same_blob_at_once(publisher: RegistryClient, tmp_path: Path) -> None:
    locations = [await begin(publisher) for _ in range(8)]
    answers = await asyncio.gather(
        *(publisher.call("PUT", f"{location}?digest={DIGEST}", content=CONTENT) for location in locations)
    )
    assert [answer.status_code for answer in answers] == [201] * 8
    await assert_stored(publisher)
    assert len(stored_files(tmp_path)) == 1


async def test_two_chunks_for_the_same_place_at_once(publisher: RegistryClient, tmp_path: Path) -> None:
    location = await begin(publisher)
    answers = await asyncio.gather(
        *(
            publisher.call("PATCH", location, content=CONTENT[:1000], headers={"Content-Range": "0-999"})
            for _ in range(6)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [202, 416, 416, 416, 416, 416]
    assert len(stored_files(tmp_path)) == 1


class TestMount:
    async def test_mounts_what_another_repository_holds(self, publisher: RegistryClient, tmp_path: Path) -> None:
        await publisher.push_blob("smm/api", CONTENT)
        answer = await publisher.call("POST", f"/v2/smm/web/blobs/uploads/?mount={DIGEST}&from=smm/api")
        assert (answer.status_code, answer.headers["location"]) == (201, f"/v2/smm/web/blobs/{DIGEST}")
        assert (await publisher.call("GET", f"/v2/smm/web/blobs/{DIGEST}")).content == CONTENT
        assert len(stored_files(tmp_path)) == 1

    @pytest.mark.parametrize("query", [f"mount={DIGEST}&from=smm/none", f"mount={DIGEST}"])
    async def test_is_an_upload_when_there_is_nothing_to_mount(self, publisher: RegistryClient, query: str) -> None:
        answer = await publisher.call("POST", f"/v2/smm/web/blobs/uploads/?{query}")
        assert answer.status_code == 202
        assert "/v2/smm/web/blobs/uploads/" in answer.headers["location"]

    async def test_needs_the_right_to_read_the_source(self, served: Served, publisher: RegistryClient) -> None:
        await publisher.push_blob("smm/api", CONTENT)
        path = f"/v2/smm/web/blobs/uploads/?mount={DIGEST}&from=smm/api"
        narrow = await publisher.token("repository:smm/web:pull,push")
        answer = await served.http.post(path, headers={"Authorization": f"Bearer {narrow}"})
        assert answer.status_code == 401
        wanted = 'scope="repository:smm/web:pull,push repository:smm/api:pull"'
        assert wanted in answer.headers["www-authenticate"]
        assert (await publisher.call("HEAD", f"/v2/smm/web/blobs/{DIGEST}")).status_code == 404
        wide = await publisher.token("repository:smm/web:pull,push", "repository:smm/api:pull")
        answer = await served.http.post(path, headers={"Authorization": f"Bearer {wide}"})
        assert answer.status_code == 201

    async def test_is_an_upload_when_the_plan_forbids_to_read_the_source(
        self, served: Served, publisher: RegistryClient
    ) -> None:
        await publisher.push_blob("smm/api", CONTENT)
        plan = {"plans": {"narrow": {"grants": [{"repositories": ["smm/web"], "actions": ["pull", "push"]}]}}}
        await served.parts.plans.apply(parse_plans(plan), TESTER)
        narrow = await served.client("narrow")
        for query in (f"mount={DIGEST}&from=smm/api", f"mount={DIGEST}"):
            answer = await narrow.call("POST", f"/v2/smm/web/blobs/uploads/?{query}")
            assert answer.status_code == 202
        assert (await narrow.call("HEAD", f"/v2/smm/web/blobs/{DIGEST}")).status_code == 404

    async def test_finds_the_source_by_itself(self, publisher: RegistryClient) -> None:
        await publisher.push_blob("smm/api", CONTENT)
        answer = await publisher.call("POST", f"/v2/smm/web/blobs/uploads/?mount={DIGEST}")
        assert (answer.status_code, answer.headers["location"]) == (201, f"/v2/smm/web/blobs/{DIGEST}")


class TestManifests:
    async def test_tag_moves_and_old_digest_stays(self, publisher: RegistryClient) -> None:
        old = await publisher.push_image("smm/api", "v1")
        new = await publisher.push_image("smm/api", "v1")
        assert (await publisher.call("GET", "/v2/smm/api/manifests/v1")).content == new.manifest
        assert (await publisher.call("GET", f"/v2/smm/api/manifests/{old.digest}")).content == old.manifest

    async def test_pushed_by_digest_has_no_tag(self, publisher: RegistryClient) -> None:
        image = Image()
        for blob in (image.config, image.layer):
            await publisher.push_blob("smm/api", blob)
        for digest in (image.digest, Digest.of(image.manifest, "sha512")):
            answer = await publisher.push_manifest("smm/api", str(digest), image.manifest)
            assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, str(digest))
            assert (await publisher.call("GET", f"/v2/smm/api/manifests/{digest}")).content == image.manifest
        assert (await publisher.call("GET", "/v2/smm/api/tags/list")).json()["tags"] == []

    async def test_deleted_tag_leaves_the_manifest(self, publisher: RegistryClient) -> None:
        image = await publisher.push_image("smm/api", "v1")
        assert (await publisher.call("DELETE", "/v2/smm/api/manifests/v1")).status_code == 202
        assert (await publisher.call("GET", "/v2/smm/api/manifests/v1")).status_code == 404
        assert (await publisher.call("GET", f"/v2/smm/api/manifests/{image.digest}")).status_code == 200

    async def test_deleted_manifest_takes_its_tags_along(self, publisher: RegistryClient) -> None:
        image = await publisher.push_image("smm/api", "v1")
        await publisher.push_image("smm/api", "v2", image)
        assert (await publisher.call("GET", "/v2/smm/api/manifests/v2")).status_code == 200
        assert (await publisher.call("DELETE", f"/v2/smm/api/manifests/{image.digest}")).status_code == 202
        for reference in ("v1", "v2", image.digest):
            assert (await publisher.call("GET", f"/v2/smm/api/manifests/{reference}")).status_code == 404
        assert (await publisher.call("GET", "/v2/smm/api/tags/list")).json()["tags"] == []

    async def test_child_of_an_index_cannot_be_deleted(self, publisher: RegistryClient) -> None:
        from entrepot.oci import media_types
        from tests.support.content import index_of

        image = await publisher.push_image("smm/api", "child")
        index = index_of(image)
        assert (await publisher.push_manifest("smm/api", "all", index, media_types.OCI_INDEX)).status_code == 201
        answer = await publisher.call("DELETE", f"/v2/smm/api/manifests/{image.digest}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, "DENIED")
        assert (await publisher.call("DELETE", f"/v2/smm/api/manifests/{Digest.of(index)}")).status_code == 202
        assert (await publisher.call("DELETE", f"/v2/smm/api/manifests/{image.digest}")).status_code == 202

    async def test_index_needs_its_children(self, publisher: RegistryClient) -> None:
        from entrepot.oci import media_types
        from tests.support.content import index_of

        answer = await publisher.push_manifest("smm/api", "all", index_of(Image()), media_types.OCI_INDEX)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "MANIFEST_BLOB_UNKNOWN")

    async def test_size_of_a_blob_must_be_told_right(self, publisher: RegistryClient) -> None:
        image = Image()
        for blob in (image.config, image.layer):
            await publisher.push_blob("smm/api", blob)
        lie = image.manifest.replace(b'"size": 1000', b'"size": 1001')
        answer = await publisher.push_manifest("smm/api", "v1", lie)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")

    async def test_pages_of_tags_lose_none(self, publisher: RegistryClient) -> None:
        tags = sorted(["0.1.2", "0.1.20", "0.1.3", "latest", "v1", "V1", "v1-rc.1", "_x"])
        image = await publisher.push_image("smm/api", tags[0])
        for tag in tags[1:]:
            await publisher.push_manifest("smm/api", tag, image.manifest)
        found: list[str] = []
        path: str | None = "/v2/smm/api/tags/list?n=3"
        while path is not None:
            answer = await publisher.call("GET", path)
            found += answer.json()["tags"]
            path = answer.headers["link"].partition("<")[2].partition(">")[0] if "link" in answer.headers else None
        assert found == tags
