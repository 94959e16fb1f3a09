"""Workflow "Content Discovery", referrers."""

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.registry import service
from tests.conformance.clauses import clause
from tests.conformance.repository import EMPTY_TYPE, Repository, describe, error_codes, image, index, next_link
from tests.support.content import CONFIG_TYPE

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALGORITHMS = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
SBOM, NOTE = "application/spdx+json", "application/vnd.example.note.v1"
MAX_ANSWER_BYTES = 4 * 1024 * 1024


async def list_referrers(repository: Repository, subject: object, query: str = "") -> list[dict[str, Any]]:
    """The descriptors, all on one page."""
    answer = await ask(repository, f"referrers/{subject}{query}")
    assert next_link(answer) is None
    entries: list[dict[str, Any]] = answer.json()["manifests"]
    return entries


async def ask(repository: Repository, path: str) -> httpx.Response:
    """One page."""
    answer = await repository.call("GET", path)
    assert answer.status_code == 200
    assert_form(answer)
    return answer


def assert_form(answer: httpx.Response) -> None:
    """An image index."""
    assert answer.headers["content-type"] == media_types.OCI_INDEX
    document = answer.json()
    assert document == {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": document["manifests"]}


async def list_pages(repository: Repository, path: str) -> list[httpx.Response]:
    """Every page."""
    pages = await repository.pages(path)
    for page in pages:
        assert_form(page)
    return pages


def digests(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["digest"] for entry in entries]


@ALGORITHMS
@clause("Listing Referrers", "MUST NOT be 404; a query that results in no matching referrers MUST be an empty list")
async def test_nothing_refers_to_what_nobody_knows(repository: Repository, algorithm: str) -> None:
    digest = Digest.of(b"not here", algorithm)
    assert await list_referrers(repository.named(f"{repository.name}/never/existed"), digest) == []
    pushed = await repository.push_image()
    assert await list_referrers(repository, digest) == []
    assert await list_referrers(repository, pushed.digest) == []
    assert await list_referrers(repository, digest, f"?artifactType={NOTE}") == []


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "v1", "sha256:" + "A" * 64])
@clause("Listing Referrers", "a <digest> with an invalid syntax MUST be 400")
async def test_invalid_digest_is_400(repository: Repository, digest: str) -> None:
    await repository.push_image("v1")
    answer = await repository.call("GET", f"referrers/{digest}")
    assert (answer.status_code, error_codes(answer)) == (400, ["DIGEST_INVALID"])


@ALGORITHMS
@clause("Listing Referrers", "each descriptor is of an image manifest or index in <name> whose subject is <digest>")
async def test_referrers_are_those_of_this_subject_here(repository: Repository, algorithm: str) -> None:
    subject = await repository.push_image(algorithm=algorithm)
    one = await repository.push_artifact("tagged", subject=subject.descriptor)
    other = await repository.push_image()
    await repository.push_artifact(subject=other.descriptor)
    await repository.push_artifact(annotations={"subject": str(subject.digest)})
    await repository.push_index(annotations={"child": "of the subject"})
    elsewhere = repository.named(f"{repository.name}/other")
    await elsewhere.push_artifact(subject=subject.descriptor)
    assert digests(await list_referrers(repository, subject.digest)) == [str(one.digest)]


# What is pushed -> the artifact type that the descriptor shows, None for no such field.
SHOWN = {
    "its own": ({"artifactType": NOTE, "config": EMPTY_TYPE}, NOTE),
    "config's, for want of one": ({"config": CONFIG_TYPE}, CONFIG_TYPE),
    "config's, where it is empty": ({"artifactType": "", "config": SBOM}, SBOM),
    "the empty config's": ({"config": EMPTY_TYPE}, EMPTY_TYPE),
    "an index's own": ({"artifactType": SBOM}, SBOM),
    "none of an index": ({}, None),
    "none of an index where it is empty": ({"artifactType": ""}, None),
}


@pytest.mark.parametrize("annotations", [None, {"org.example": 'ä "b" \\ 😀', "": ""}], ids=["plain", "annotated"])
@pytest.mark.parametrize(("fields", "shown"), SHOWN.values(), ids=SHOWN)
@clause(
    "Listing Referrers", "descriptors MUST include artifactType, or else an image's config mediaType; omit an index's"
)
@clause("Listing Referrers", "the descriptors MUST include annotations from the image manifest or index")
async def test_fields_of_a_descriptor(
    repository: Repository, fields: dict[str, str], shown: str | None, annotations: dict[str, str] | None
) -> None:
    subject = await repository.push_image()
    fields = dict(fields)
    config_type = fields.pop("config", None)
    more = {**fields, "annotations": annotations, "subject": subject.descriptor}
    if config_type is None:
        content, media_type = index(**more), media_types.OCI_INDEX
    else:
        await repository.push_blob(b"{}")
        content, media_type = image(describe(b"{}", config_type), **more), media_types.OCI_MANIFEST
    await repository.push(content, media_type=media_type)
    expected = describe(content, media_type)
    if shown is not None:
        expected["artifactType"] = shown
    if annotations is not None:
        expected["annotations"] = annotations
    assert await list_referrers(repository, subject.digest) == [expected]


@clause("Listing Referrers", "a referrer by any digest is listed with the digest it was pushed by")
async def test_referrers_by_sha512(repository: Repository) -> None:
    subject = (await repository.push_image(algorithm="sha512")).descriptor
    content = index(subject=subject)
    pushed = await repository.push(content, media_type=media_types.OCI_INDEX, algorithm="sha512")
    assert await list_referrers(repository, subject["digest"]) == [pushed.descriptor]


@clause("image-spec, annotations.md: Rules", "annotations MUST be a map whose values MUST be strings")
async def test_what_is_no_annotation_is_not_shown(repository: Repository) -> None:
    """Clients that know the rule could not read the list."""
    subject = await repository.push_image()
    for annotations, shown in (
        ({"a": "text", "b": 1, "c": None, "d": ["x"], "e": {"f": "g"}}, {"a": "text"}),
        ({"a": 1}, None),
        (["a"], None),
    ):
        pushed = await repository.push_artifact(subject=subject.descriptor, annotations=annotations)
        entries = {entry["digest"]: entry for entry in await list_referrers(repository, subject.digest)}
        assert entries[str(pushed.digest)].get("annotations") == shown


@clause("Listing Referrers", "MUST be 200: no manifest that was accepted keeps the others from being listed")
async def test_the_deepest_manifest_that_is_accepted_is_listed(repository: Repository) -> None:
    subject = await repository.push_image()
    expected = set()
    for place in ("annotations", "custom"):
        accepted, refused = 1, 100_000
        while refused - accepted > 1:
            depth = (accepted + refused) // 2
            nested = f'"{place}":{{"a":{"[" * depth}{"]" * depth}}}'
            content = index(subject=subject.descriptor)[:-1] + f",{nested}}}".encode()
            answer = await repository.put(str(Digest.of(content)), content, media_types.OCI_INDEX)
            if answer.status_code == 201:
                accepted = depth
                expected.add(str(Digest.of(content)))
            else:
                assert (answer.status_code, error_codes(answer)) == (400, ["MANIFEST_INVALID"])
                refused = depth
    assert {entry["digest"] for entry in await list_referrers(repository, subject.digest)} == expected


class TestFilter:
    """`?artifactType=`."""

    @pytest.fixture
    async def subject(self, repository: Repository) -> Digest:
        subject = await repository.push_image()
        for artifact_type in (SBOM, SBOM, NOTE):
            await repository.push_artifact(artifactType=artifact_type, subject=subject.descriptor)
        await repository.push_image(subject=subject.descriptor)
        await repository.push_index(subject=subject.descriptor)
        return subject.digest

    @pytest.mark.parametrize(("artifact_type", "count"), [(SBOM, 2), (NOTE, 1), (CONFIG_TYPE, 1), ("x/y", 0), ("", 5)])
    @clause("Listing Referrers", "the registry SHOULD support filtering on artifactType")
    @clause("Listing Referrers", "a filter that is applied MUST be told: OCI-Filters-Applied: artifactType")
    async def test_filter(self, repository: Repository, subject: Digest, artifact_type: str, count: int) -> None:
        answer = await ask(repository, f"referrers/{subject}?artifactType={quote(artifact_type, safe='')}")
        found = [entry.get("artifactType") for entry in answer.json()["manifests"]]
        assert len(found) == count
        if artifact_type:
            assert set(found) <= {artifact_type}
            assert answer.headers["oci-filters-applied"] == "artifactType"
        else:
            assert "oci-filters-applied" not in answer.headers

    @clause("Listing Referrers", "without a filter nothing is said of filters")
    async def test_no_filter(self, repository: Repository, subject: Digest) -> None:
        answer = await ask(repository, f"referrers/{subject}")
        assert len(answer.json()["manifests"]) == 5
        assert "oci-filters-applied" not in answer.headers

    @clause(
        "Listing Referrers", "a path of the format ?artifactType=<artifactType>: its `+` is itself in RFC 3986, 2.2"
    )
    async def test_plus_sign_as_it_stands(self, repository: Repository, subject: Digest) -> None:
        answer = await ask(repository, f"referrers/{subject}?artifactType={SBOM}")
        assert len(answer.json()["manifests"]) == 2


class TestPages:
    """When the list cannot be returned in one manifest."""

    @pytest.mark.parametrize("query", ["", f"?artifactType={quote(SBOM, safe='')}"], ids=["all", "filtered"])
    @clause("Listing Referrers", "a Link MUST be included when the list cannot be returned in a single manifest")
    @clause("Listing Referrers", "each response is an image index with different descriptors")
    async def test_many(self, repository: Repository, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
        monkeypatch.setattr(service, "_REFERRERS", 3)
        subject = await repository.push_image()
        pushed = [
            await repository.push_artifact(artifactType=artifact_type, subject=subject.descriptor)
            for artifact_type in (SBOM, NOTE) * 7
        ]
        pages = await list_pages(repository, f"referrers/{subject.digest}{query}")
        wanted = pushed[::2] if query else pushed
        assert [len(page.json()["manifests"]) for page in pages] == ([3, 3, 1] if query else [3, 3, 3, 3, 2])
        found = [digest for page in pages for digest in digests(page.json()["manifests"])]
        assert sorted(found) == sorted(str(one.digest) for one in wanted)
        assert all(page.headers.get("oci-filters-applied") == ("artifactType" if query else None) for page in pages)

    @pytest.mark.parametrize("letter", ["x", "é", "😀"], ids=["ASCII", "two bytes", "four bytes"])
    @clause("Listing Referrers", "a Link MUST be included when the list cannot be returned in a single manifest")
    @clause("Pushing Manifests", "clients and registries SHOULD expect manifests of 4 megabytes, and none larger")
    async def test_large(self, repository: Repository, letter: str) -> None:
        subject = await repository.push_image()
        text = letter * (500_000 // len(letter.encode()))
        pushed = [
            await repository.push_artifact(
                subject=subject.descriptor, annotations={"text": text, "number": str(number)}
            )
            for number in range(6)
        ]
        pages = await list_pages(repository, f"referrers/{subject.digest}")
        assert len(pages) > 1
        entries = [entry for page in pages for entry in page.json()["manifests"]]
        assert sorted(digests(entries)) == sorted(str(one.digest) for one in pushed)
        assert all(entry["annotations"]["text"] == text for entry in entries)
        assert max(len(page.content) for page in pages) <= MAX_ANSWER_BYTES


class TestClientsThatKnowNoReferrers:
    """Sections "Referrers Tag Schema" and "Enabling the Referrers API"."""

    @clause("Enabling the Referrers API", "MUST include manifests with a subject that are listed under the tag schema")
    @clause("Referrers Tag Schema", "the tag's content is the responsibility of clients: it is an index like any other")
    async def test_list_under_a_tag(self, repository: Repository) -> None:
        subject = await repository.push_image("v1")
        referrer = await repository.push_artifact(subject=subject.descriptor)
        stranger = await repository.push_artifact()
        tag = f"sha256-{subject.digest.hex}"
        by_hand = await repository.push(index(referrer.descriptor, stranger.descriptor), tag, media_types.OCI_INDEX)
        assert (await repository.call("GET", f"manifests/{tag}")).content == by_hand.content
        assert digests(await list_referrers(repository, subject.digest)) == [str(referrer.digest)]
        await repository.push(index(), tag, media_types.OCI_INDEX)
        assert digests(await list_referrers(repository, subject.digest)) == [str(referrer.digest)]
        assert (await repository.call("DELETE", f"manifests/{tag}")).status_code == 202
        assert digests(await list_referrers(repository, subject.digest)) == [str(referrer.digest)]


@clause("Listing Referrers", "each descriptor is of a manifest in <name>: pushed twice it is one, deleted it is none")
async def test_list_follows_changes(repository: Repository) -> None:
    subject = await repository.push_image("v1")
    fields = {"subject": subject.descriptor, "id": "always the same"}
    first = await repository.push_artifact("by-tag", **fields)
    assert (await repository.push_artifact(**fields)).digest == first.digest
    second = await repository.push_index(subject=subject.descriptor)
    assert set(digests(await list_referrers(repository, subject.digest))) == {str(first.digest), str(second.digest)}
    assert (await repository.call("DELETE", "manifests/by-tag")).status_code == 202
    assert len(await list_referrers(repository, subject.digest)) == 2
    assert (await repository.call("DELETE", f"manifests/{first.digest}")).status_code == 202
    assert digests(await list_referrers(repository, subject.digest)) == [str(second.digest)]


@clause("Listing Referrers", "MUST NOT be 404, also when the subject is gone; referrers of a referrer are listed too")
async def test_subject_that_was_deleted(repository: Repository) -> None:
    subject = await repository.push_image()
    referrer = await repository.push_artifact(subject=subject.descriptor)
    signature = await repository.push_artifact(subject=referrer.descriptor)
    assert (await repository.call("DELETE", f"manifests/{subject.digest}")).status_code == 202
    assert digests(await list_referrers(repository, subject.digest)) == [str(referrer.digest)]
    assert digests(await list_referrers(repository, referrer.digest)) == [str(signature.digest)]
