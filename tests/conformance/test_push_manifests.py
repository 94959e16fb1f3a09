"""Workflow "Push", manifests: what is kept, what is refused, what they may hold."""

import base64
import json

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES
from tests.conformance.clauses import clause
from tests.conformance.repository import (
    EMPTY,
    EMPTY_TYPE,
    Repository,
    describe,
    error_codes,
    image,
    index,
)
from tests.support.content import CONFIG_TYPE, LAYER_TYPE

pytestmark = pytest.mark.asyncio(loop_scope="session")

ABSENT = describe(b"not here")
ALGORITHMS = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


async def assert_kept(repository: Repository, reference: str, content: bytes, media_type: str) -> None:
    """A GET has these very bytes."""
    answer = await repository.call("GET", f"manifests/{reference}")
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, content, media_type)


async def assert_refused(repository: Repository, content: bytes, media_type: str, status: int, code: str) -> None:
    """Neither as a tag nor by its digest is it taken, and nothing of it can be pulled."""
    digest = Digest.of(content)
    for reference in ("refused", str(digest)):
        answer = await repository.put(reference, content, media_type)
        assert (answer.status_code, error_codes(answer)) == (status, [code])
        assert (await repository.call("GET", f"manifests/{reference}")).status_code == 404


@ALGORITHMS
@pytest.mark.parametrize("by", ["tag", "digest"])
@clause("Pushing Manifests", "a successful upload MUST be 201 with the Location of a pullable manifest")
@clause("Pushing Manifests", "Docker-Content-Digest MUST be equal to the digest that the client provided")
async def test_push(repository: Repository, by: str, algorithm: str) -> None:
    layer = await repository.push_blob(b"layer", algorithm=algorithm)
    content = image(layer, layer)
    digest = str(Digest.of(content, algorithm))
    if by == "digest":
        answer = await repository.put(digest, content)
    else:
        query = "" if algorithm == "sha256" else f"?digest={digest}"
        answer = await repository.put("v1", content, query=query)
    assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, digest)
    assert "oci-subject" not in answer.headers
    assert (await repository.call("GET", answer.headers["location"])).content == content
    await assert_kept(repository, digest, content, media_types.OCI_MANIFEST)
    assert await repository.tags() == ([] if by == "digest" else ["v1"])


BYTES = {
    "indented": json.dumps(json.loads(index()), indent=3).encode(),
    "with white space around": b"\n\t " + index() + b"\r\n\n",
    "keys in another order": b'{"manifests":[],"mediaType":"%s","schemaVersion":2}' % media_types.OCI_INDEX.encode(),
    "escaped and not": '{"schemaVersion":2,"manifests":[],"annotations":{"a":"\\u00e9é\\/ 😀"}}'.encode(),
    "numbers as written": b'{"schemaVersion":2,"manifests":[],"x":[1.0,1e2,-0,123456789012345678901234567890]}',
    "keys twice": b'{"schemaVersion":2,"manifests":[],"x":1,"x":2}',
    "custom fields": index(org_example={"a": [None, True, {}]}),
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
@clause("Pushing Manifests", "the registry MUST store the manifest in the exact byte representation of the client")
async def test_bytes_are_kept_as_they_are(repository: Repository, content: bytes) -> None:
    for reference in ("v1", str(Digest.of(content)), str(Digest.of(content, "sha512"))):
        assert (await repository.put(reference, content, media_types.OCI_INDEX)).status_code == 201
        await assert_kept(repository, reference, content, media_types.OCI_INDEX)


@clause("Pushing Manifests", "clients SHOULD set Content-Type; all manifests SHOULD include a mediaType field")
async def test_type_is_taken_from_the_manifest_when_the_header_is_missing(repository: Repository) -> None:
    answer = await repository.call("PUT", "manifests/v1", content=index())
    assert answer.status_code == 201
    await assert_kept(repository, "v1", index(), media_types.OCI_INDEX)


@clause("Pushing Manifests", "Content-Type MUST be set to the value of the mediaType field")
async def test_type_that_differs_from_the_field_is_refused(repository: Repository) -> None:
    await repository.push(index(), "other", media_types.OCI_INDEX)
    content = index(annotations={"is": "an index of OCI"})
    await assert_refused(repository, content, media_types.DOCKER_LIST, 400, "MANIFEST_INVALID")


INVALID = {
    "no JSON": b"{",
    "no object": b"[]",
    "no UTF-8": b'{"schemaVersion":2,"manifests":[],"x":"\xff"}',
    "schema 1": b'{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[],"manifests":[]}',
    "no version": b'{"manifests":[]}',
    "no list": b'{"schemaVersion":2}',
    "descriptor without digest": index({"mediaType": media_types.OCI_MANIFEST, "size": 2}),
    "descriptor with an invalid digest": index({**ABSENT, "digest": "sha256:abc"}),
    "descriptor of another size": index({**ABSENT, "size": -1}),
    "subject that is no descriptor": index(subject="sha256:abc"),
    "nothing": b"",
}


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID)
@clause("Error Codes", "MANIFEST_INVALID: manifest invalid")
async def test_what_is_no_manifest_is_refused(repository: Repository, content: bytes) -> None:
    await repository.push(index(), "other", media_types.OCI_INDEX)
    await assert_refused(repository, content, media_types.OCI_INDEX, 400, "MANIFEST_INVALID")


@pytest.mark.parametrize("wrong", [ABSENT["digest"], describe(b"not here", algorithm="sha512")["digest"]])
@pytest.mark.parametrize("by", ["tag", "digest"])
@clause("Pushing Manifests", "the manifest has the digest that the client provided, or is refused")
async def test_manifest_of_another_digest_is_refused(repository: Repository, by: str, wrong: str) -> None:
    await repository.push(index(), "other", media_types.OCI_INDEX)
    reference, query = ("v1", f"?digest={wrong}") if by == "tag" else (wrong, "")
    content = index(annotations={"is": "another one"})
    answer = await repository.put(reference, content, media_types.OCI_INDEX, query)
    assert (answer.status_code, error_codes(answer)) == (400, ["DIGEST_INVALID"])
    for absent in (reference, Digest.of(content), Digest.of(content, "sha512")):
        assert (await repository.call("GET", f"manifests/{absent}")).status_code == 404


@clause("Push", "a manifest MAY be rejected for naming a blob or manifest that is not there")
@clause("Push", "when it is, that MUST result in MANIFEST_BLOB_UNKNOWN errors")
async def test_manifest_that_names_what_is_missing_is_refused(repository: Repository) -> None:
    there = await repository.push_blob(b"there")
    child = (await repository.push_image()).descriptor
    for content, media_type in (
        (image(there, ABSENT), media_types.OCI_MANIFEST),
        (image(ABSENT, there), media_types.OCI_MANIFEST),
        (image(ABSENT, ABSENT), media_types.OCI_MANIFEST),
        (index(child, ABSENT), media_types.OCI_INDEX),
        (index({**there, "mediaType": media_types.OCI_MANIFEST}), media_types.OCI_INDEX),
        (image(there, child), media_types.OCI_MANIFEST),
    ):
        await assert_refused(repository, content, media_type, 404, "MANIFEST_BLOB_UNKNOWN")


@clause("Push", "what another repository holds does not exist in this one")
async def test_blobs_of_other_repositories_do_not_count(repository: Repository) -> None:
    pushed = await repository.push_image()
    other = repository.named(f"{repository.name}/other")
    answer = await other.put("v1", pushed.content)
    assert (answer.status_code, error_codes(answer)) == (404, ["MANIFEST_BLOB_UNKNOWN"])


@clause("Pushing Manifests", "registries SHOULD support manifests of at least 4 megabytes, and MAY answer 413 beyond")
async def test_large_manifests(repository: Repository) -> None:
    short = index(annotations={"padding": ""})
    for size in (4_000_000, MAX_MANIFEST_BYTES):
        content = index(annotations={"padding": "x" * (size - len(short))})
        assert len(content) == size
        await repository.push(content, "large", media_types.OCI_INDEX)
        await assert_kept(repository, "large", content, media_types.OCI_INDEX)
    await assert_refused(repository, content + b" ", media_types.OCI_INDEX, 413, "MANIFEST_INVALID")


@clause("Pushing Manifests", "a manifest that is there already can be pushed once more, with the same answer")
async def test_manifest_can_be_pushed_again(repository: Repository) -> None:
    pushed = await repository.push_image("v1")
    for reference in ("v1", str(pushed.digest), "v2"):
        answer = await repository.put(reference, pushed.content)
        assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, str(pushed.digest))
    assert await repository.tags() == ["v1", "v2"]


@clause("Pushing Manifests", "a tag names what was pushed under it last; what it named stays, by digest")
async def test_tag_moves(repository: Repository) -> None:
    old, new = await repository.push_image("v1"), await repository.push_index("v1")
    await assert_kept(repository, "v1", new.content, new.media_type)
    await assert_kept(repository, str(old.digest), old.content, old.media_type)
    await repository.push(old.content, "v1")
    await assert_kept(repository, "v1", old.content, old.media_type)


class TestTagParameters:
    """`?tag=` beside a digest, which came after 1.1."""

    @ALGORITHMS
    @clause("After 1.1: Pushing Manifests", "?tag=<tag> beside a digest pushes the tags too, each told by OCI-Tag")
    async def test_tags_are_pushed_with_the_digest(self, repository: Repository, algorithm: str) -> None:
        content = index(annotations={"for": algorithm})
        digest = Digest.of(content, algorithm)
        answer = await repository.put(str(digest), content, media_types.OCI_INDEX, "?tag=v1&tag=v1.0&tag=latest")
        assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, str(digest))
        assert sorted(answer.headers.get_list("oci-tag", split_commas=True)) == ["latest", "v1", "v1.0"]
        assert await repository.tags() == ["latest", "v1", "v1.0"]
        for tag in ("v1", "v1.0", "latest"):
            answer = await repository.call("GET", f"manifests/{tag}")
            assert (answer.content, answer.headers["docker-content-digest"]) == (content, str(digest))

    @pytest.mark.parametrize("query", ["?tag=v1&tag=.wrong", "?tag=", "?" + "&".join(f"tag=v{i}" for i in range(101))])
    @clause("After 1.1: Pushing Manifests", "a tag MUST match the grammar; a registry MAY limit how many come at once")
    async def test_all_tags_or_none(self, repository: Repository, query: str) -> None:
        await repository.push(index(), "other", media_types.OCI_INDEX)
        content = index(annotations={"is": "new"})
        answer = await repository.put(str(Digest.of(content)), content, media_types.OCI_INDEX, query)
        assert answer.status_code == 400
        assert await repository.tags() == ["other"]
        assert (await repository.call("GET", f"manifests/{Digest.of(content)}")).status_code == 404


class TestSubject:
    """Section "Pushing Manifests with Subject"."""

    @pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
    @ALGORITHMS
    @clause("Pushing Manifests with Subject", "the response MUST have OCI-Subject: <subject digest>")
    @clause("Push", "a manifest MUST be accepted though its subject does not exist")
    async def test_subject_is_told(self, repository: Repository, algorithm: str, *, there: bool) -> None:
        subject = describe(b"missing", media_types.OCI_MANIFEST, algorithm)
        if there:
            subject = (await repository.push_image(algorithm=algorithm)).descriptor
        config = await repository.push_blob(b"{}")
        for content, media_type in (
            (image(config, subject=subject), media_types.OCI_MANIFEST),
            (index(subject=subject), media_types.OCI_INDEX),
        ):
            for reference in ("v1", str(Digest.of(content)), str(Digest.of(content, "sha512"))):
                answer = await repository.put(reference, content, media_type)
                assert (answer.status_code, answer.headers["oci-subject"]) == (201, subject["digest"])
                await assert_kept(repository, reference, content, media_type)

    @clause("Push", "a manifest and its referrers can be pushed in either order")
    async def test_subject_may_come_after_its_referrer(self, repository: Repository) -> None:
        layer = await repository.push_blob(b"layer")
        content = image(layer, layer)
        referrer = await repository.push_artifact(subject=describe(content, media_types.OCI_MANIFEST))
        pushed = await repository.push(content, "v1")
        answer = await repository.call("GET", f"referrers/{pushed.digest}")
        assert [entry["digest"] for entry in answer.json()["manifests"]] == [str(referrer.digest)]


class TestContent:
    """What a manifest may hold. Source: image-spec 1.1."""

    @clause("Pushing Manifests", "the list of blobs MAY be empty")
    async def test_no_layers(self, repository: Repository) -> None:
        config = await repository.push_blob(b"{}", CONFIG_TYPE)
        await self.assert_accepted(repository, image(config))

    @clause(
        "image-spec, manifest.md: Guidance for an Empty Descriptor", "config and layer may be the empty JSON object"
    )
    async def test_artifact_of_nothing(self, repository: Repository) -> None:
        empty = await repository.push_blob(EMPTY, EMPTY_TYPE)
        await self.assert_accepted(repository, image(empty, empty, artifactType="application/vnd.example.note"))
        await self.assert_accepted(repository, image(empty, artifactType="application/vnd.example.note+json"))

    @clause("image-spec, manifest.md: Guidelines for Artifact Usage", "any media type may be that of config and layers")
    async def test_artifact_of_foreign_types(self, repository: Repository) -> None:
        config = await repository.push_blob(b"a: 1", "application/vnd.example.config.v1+yaml")
        layers = [await repository.push_blob(content, f"text/x-{content.decode()}") for content in (b"a", b"b", b"")]
        await self.assert_accepted(repository, image(config, *layers))

    @clause("image-spec, descriptor.md", "one descriptor may stand in several places, and have `data`, `urls` and more")
    async def test_descriptors_with_everything(self, repository: Repository) -> None:
        await repository.push_blob(b"layer")
        everything = describe(
            b"layer",
            data=base64.b64encode(b"layer").decode(),
            urls=["https://example.com/layer"],
            annotations={"a": "b"},
            artifactType="application/vnd.example",
            platform={"os": "linux", "architecture": "amd64"},
            org_example=[1],
        )
        await self.assert_accepted(repository, image(everything, everything, everything))

    @pytest.mark.parametrize("media_type", sorted(media_types.FOREIGN_LAYERS))
    @clause("image-spec, layer.md: Non-Distributable Layers", "they may be left where their urls lead")
    async def test_layers_that_lie_elsewhere(self, repository: Repository, media_type: str) -> None:
        config = await repository.push_blob(b"{}", CONFIG_TYPE)
        elsewhere = {**ABSENT, "mediaType": media_type, "urls": ["https://example.com/layer"]}
        await self.assert_accepted(repository, image(config, elsewhere))
        answer = await repository.put("v2", image(config, {**elsewhere, "urls": []}))
        assert (answer.status_code, error_codes(answer)) == (404, ["MANIFEST_BLOB_UNKNOWN"])

    @clause("image-spec, layer.md: Non-Distributable Layers", "they may be pushed all the same")
    async def test_layers_of_elsewhere_that_were_pushed(self, repository: Repository) -> None:
        media_type = f"{LAYER_TYPE.replace('layer', 'layer.nondistributable')}+gzip"
        layer = await repository.push_blob(b"layer", media_type)
        await self.assert_accepted(repository, image(layer, {**layer, "urls": ["https://example.com/layer"]}))

    @ALGORITHMS
    @clause("image-spec, image-index.md", "`manifests` may be empty, and hold manifests and indexes of any digest")
    async def test_indexes_of_everything(self, repository: Repository, algorithm: str) -> None:
        await self.assert_accepted(repository, index())
        one = await repository.push_image(algorithm=algorithm)
        two = await repository.push_image()
        artifact = await repository.push_artifact()
        inner = await repository.push(
            index(one.descriptor, {**two.descriptor, "platform": {"os": "linux", "architecture": "arm64"}}),
            media_type=media_types.OCI_INDEX,
            algorithm=algorithm,
        )
        outer = index(inner.descriptor, artifact.descriptor, inner.descriptor, artifactType="application/vnd.example")
        await self.assert_accepted(repository, outer)
        await self.assert_accepted(
            repository, index((await repository.push(outer, "x", media_types.OCI_INDEX)).descriptor)
        )

    async def assert_accepted(self, repository: Repository, content: bytes) -> None:
        media_type = json.loads(content)["mediaType"]
        for reference in ("accepted", str(Digest.of(content))):
            answer = await repository.put(reference, content, media_type)
            assert answer.status_code == 201, answer.text
            await assert_kept(repository, reference, content, media_type)
