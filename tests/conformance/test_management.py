"""Workflow "Content Management": what is deleted, and what stays."""

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.repository import Repository, error_codes, image, index

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALGORITHMS = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


async def delete(repository: Repository, path: str) -> None:
    """DELETE what is there."""
    answer = await repository.call("DELETE", path)
    assert (answer.status_code, answer.content) == (202, b"")


async def assert_there(repository: Repository, *paths: str) -> None:
    for path in paths:
        for method in ("GET", "HEAD"):
            assert (await repository.call(method, path)).status_code in {200, 307}, f"{method} {path}"


async def assert_gone(repository: Repository, *paths: str) -> None:
    """404 to whoever reads or deletes it."""
    for path in paths:
        code = "BLOB_UNKNOWN" if path.startswith("blobs/") else "MANIFEST_UNKNOWN"
        for method in ("GET", "HEAD", "DELETE"):
            answer = await repository.call(method, path)
            assert answer.status_code == 404, f"{method} {path}"
            assert method == "HEAD" or error_codes(answer) == [code]


async def assert_refused(repository: Repository, path: str) -> None:
    """What is needed is not deleted."""
    answer = await repository.call("DELETE", path)
    assert (answer.status_code, error_codes(answer)) == (409, ["DENIED"])
    await assert_there(repository, path)


@ALGORITHMS
@clause("Deleting tags", "MUST be 202; once deleted, a GET of the tag is 404")
async def test_deleted_tag_leaves_the_manifest_and_its_other_tags(repository: Repository, algorithm: str) -> None:
    pushed = await repository.push_image("v1", algorithm)
    await repository.push(pushed.content, "v2", algorithm=algorithm)
    await assert_there(repository, "manifests/v1")
    await delete(repository, "manifests/v1")
    await assert_gone(repository, "manifests/v1")
    await assert_there(repository, "manifests/v2", f"manifests/{pushed.digest}")
    assert await repository.tags() == ["v2"]
    await repository.push(pushed.content, "v1", algorithm=algorithm)
    await assert_there(repository, "manifests/v1")


@ALGORITHMS
@clause("Deleting Manifests", "MUST be 202; once deleted, a GET of the digest and any tag pointing to it is 404")
async def test_deleted_manifest_takes_its_tags_along(repository: Repository, algorithm: str) -> None:
    pushed, other = await repository.push_image("v1", algorithm), await repository.push_image("other")
    await repository.push(pushed.content, "v2", algorithm=algorithm)
    await assert_there(repository, "manifests/v1", "manifests/v2", f"manifests/{pushed.digest}")
    await delete(repository, f"manifests/{pushed.digest}")
    await assert_gone(repository, f"manifests/{pushed.digest}", "manifests/v1", "manifests/v2")
    await assert_there(repository, "manifests/other", f"manifests/{other.digest}")
    assert await repository.tags() == ["other"]
    await repository.push(pushed.content, "v1", algorithm=algorithm)
    await assert_there(repository, "manifests/v1", f"manifests/{pushed.digest}")
    assert await repository.tags() == ["other", "v1"]


@clause("Deleting Manifests", "a manifest is deleted in the namespace <name>, and nowhere else")
async def test_deletion_stays_in_its_repository(repository: Repository) -> None:
    other = repository.named(f"{repository.name}/other")
    pushed, blob = await repository.push(index(), "v1", media_types.OCI_INDEX), await repository.push_blob(b"blob")
    await other.push(index(), "v1", media_types.OCI_INDEX)
    await other.push_blob(b"blob")
    for path in ("manifests/v1", f"manifests/{pushed.digest}", f"blobs/{blob['digest']}"):
        await delete(repository, path)
        await assert_gone(repository, path)
        await assert_there(other, path)
    assert (await other.fetch(f"blobs/{blob['digest']}")).content == b"blob"


@clause("Deleting Manifests", "if the repository does not exist, the response MUST be 404")
async def test_nothing_to_delete(repository: Repository) -> None:
    absent = Digest.of(b"not here")
    for path in ("manifests/v1", f"manifests/{absent}", f"blobs/{absent}"):
        answer = await repository.call("DELETE", path)
        assert (answer.status_code, error_codes(answer)) == (404, ["NAME_UNKNOWN"])
    await repository.push_blob(b"so that it exists")
    await assert_gone(repository, "manifests/v1", f"manifests/{absent}", f"blobs/{absent}")


@pytest.mark.parametrize("path", ["manifests/sha256:abc", "manifests/.a", "blobs/sha256:abc", "blobs/v1"])
@clause("Endpoints", "DELETE of what is no reference fails with 404, 400 or 405 (end-9, end-10)")
async def test_what_is_no_reference_cannot_be_deleted(repository: Repository, path: str) -> None:
    assert (await repository.call("DELETE", path)).status_code == 400


@ALGORITHMS
@clause("Deleting Blobs", "MUST be 202; a blob that is not found MUST be 404")
async def test_deleted_blob(repository: Repository, algorithm: str) -> None:
    content = b"content of a layer"
    blob = await repository.push_blob(content, algorithm=algorithm)
    path = f"blobs/{blob['digest']}"
    await assert_there(repository, path)
    await delete(repository, path)
    await assert_gone(repository, path)
    answer = await repository.put("v1", image(blob, blob))
    assert (answer.status_code, error_codes(answer)) == (404, ["MANIFEST_BLOB_UNKNOWN"])
    await repository.push_blob(content, algorithm=algorithm)
    assert (await repository.fetch(path)).content == content


@clause("Deleting Blobs", "a registry MAY refuse; here while a manifest in the repository names the blob")
async def test_blob_that_is_needed_is_kept(repository: Repository) -> None:
    blob = await repository.push_blob(b"in two manifests")
    first = await repository.push(image(blob, blob), "v1")
    second = await repository.push(image(blob), "v2")
    await assert_refused(repository, f"blobs/{blob['digest']}")
    await delete(repository, f"manifests/{first.digest}")
    await assert_refused(repository, f"blobs/{blob['digest']}")
    await delete(repository, f"manifests/{second.digest}")
    await delete(repository, f"blobs/{blob['digest']}")
    await assert_gone(repository, f"blobs/{blob['digest']}")


@clause("Deleting Manifests", "a registry MAY refuse; here while an index in the repository names the manifest")
async def test_manifest_that_is_needed_is_kept(repository: Repository) -> None:
    child = await repository.push_image("child")
    inner = await repository.push(index(child.descriptor), media_type=media_types.OCI_INDEX)
    outer = await repository.push(index(inner.descriptor), "v1", media_types.OCI_INDEX)
    await delete(repository, "manifests/child")
    for needed in (child, inner):
        await assert_refused(repository, f"manifests/{needed.digest}")
    for unneeded in (outer, inner, child):
        await delete(repository, f"manifests/{unneeded.digest}")
        await assert_gone(repository, f"manifests/{unneeded.digest}")


@clause("Deleting Manifests", "a referrer does not need its subject, nor the subject its referrers")
async def test_subject_and_referrer_are_deleted_by_themselves(repository: Repository) -> None:
    for order in (0, 1):
        subject = await repository.push_image()
        referrer = await repository.push_artifact(subject=subject.descriptor)
        first, second = (subject, referrer)[order], (referrer, subject)[order]
        await delete(repository, f"manifests/{first.digest}")
        await assert_there(repository, f"manifests/{second.digest}")
        await delete(repository, f"manifests/{second.digest}")
        await assert_gone(repository, f"manifests/{first.digest}", f"manifests/{second.digest}")
