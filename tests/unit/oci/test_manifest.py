import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import ManifestInvalid, ManifestTooLarge
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES, MAX_REFERENCES, Manifest

CONFIG = Digest.of(b"config")
LAYER = Digest.of(b"layer", "sha512")


def descriptor(digest_: Digest, media_type: str = "application/octet-stream", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest_), "size": 5} | more


def image(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor(CONFIG),
        "layers": [descriptor(LAYER)],
        **more,
    }


def index(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [
            descriptor(
                CONFIG,
                media_types.OCI_MANIFEST,
                platform={"os": "linux", "architecture": "arm", "variant": "v7"},
            )
        ],
        **more,
    }


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


@pytest.mark.parametrize("media_type", sorted(media_types.MANIFESTS))
def test_image_names_its_config_and_layers(media_type: str) -> None:
    content = json.dumps(image(mediaType=media_type)).encode()
    manifest = Manifest.parse(content, media_type)
    assert [blob.digest for blob in manifest.blobs] == [CONFIG, LAYER]
    assert manifest.children == ()
    assert manifest.digest == Digest.of(content)
    assert not manifest.is_index


@pytest.mark.parametrize("media_type", sorted(media_types.INDEXES))
def test_index_names_its_children(media_type: str) -> None:
    manifest = Manifest.parse(json.dumps(index(mediaType=media_type)).encode(), f"{media_type}; charset=utf-8")
    assert [(child.digest, child.platform) for child in manifest.children] == [(CONFIG, "linux/arm/v7")]
    assert manifest.blobs == ()
    assert manifest.is_index


def test_media_type_may_stand_in_the_header_or_in_the_content() -> None:
    bare = json.dumps(without(image(), "mediaType")).encode()
    assert Manifest.parse(bare, media_types.OCI_MANIFEST).media_type == media_types.OCI_MANIFEST
    assert Manifest.parse(json.dumps(image()).encode()).media_type == media_types.OCI_MANIFEST


def test_digest_is_of_the_algorithm_asked_for() -> None:
    content = json.dumps(image()).encode()
    assert Manifest.parse(content, algorithm="sha512").digest == Digest.of(content, "sha512")


def test_subject_and_artifact_type_are_read() -> None:
    subject = descriptor(LAYER, media_types.OCI_MANIFEST)
    manifest = Manifest.parse(json.dumps(image(subject=subject, artifactType="application/x")).encode())
    assert manifest.subject is not None
    assert (manifest.subject.digest, manifest.artifact_type) == (LAYER, "application/x")


def test_foreign_layer_needs_urls_to_be_foreign() -> None:
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layers = [descriptor(LAYER, foreign, urls=["https://example.com/layer"]), descriptor(LAYER, foreign)]
    manifest = Manifest.parse(json.dumps(image(layers=layers)).encode())
    assert [blob.is_foreign for blob in manifest.blobs] == [False, True, False]


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        pytest.param([], "", id="not an object"),
        pytest.param(image(schemaVersion=1), "", id="schema 1"),
        pytest.param(without(image(), "schemaVersion"), "", id="no schemaVersion"),
        pytest.param(image(), media_types.OCI_INDEX, id="sent as another type"),
        pytest.param(image(mediaType="application/json"), "", id="foreign type"),
        pytest.param(without(image(), "mediaType"), "", id="no type at all"),
        pytest.param(without(image(), "mediaType"), "application/json", id="foreign header"),
        pytest.param(image(mediaType=7), "", id="type is a number"),
        pytest.param(without(image(), "config"), "", id="no config"),
        pytest.param(without(image(), "layers"), "", id="no layers"),
        pytest.param(image(layers={}), "", id="layers no list"),
        pytest.param(image(layers=["x"]), "", id="layer no object"),
        pytest.param(image(config=descriptor(CONFIG, size=-1)), "", id="negative size"),
        pytest.param(image(config=descriptor(CONFIG, size=True)), "", id="size is a boolean"),
        pytest.param(image(config=descriptor(CONFIG, size=2**63)), "", id="size beyond 63 bits"),
        pytest.param(image(config=descriptor(CONFIG, digest="md5:aa")), "", id="unknown algorithm"),
        pytest.param(image(config=without(descriptor(CONFIG), "digest")), "", id="no digest"),
        pytest.param(image(config=descriptor(CONFIG, "")), "", id="empty media type"),
        pytest.param(image(manifests=[]), "", id="image and index at once"),
        pytest.param(index(layers=[]), "", id="index and image at once"),
        pytest.param(index(config=descriptor(CONFIG)), "", id="index with config"),
        pytest.param(without(index(), "manifests"), "", id="index without manifests"),
        pytest.param(image(subject="x"), "", id="subject no descriptor"),
        pytest.param(image(artifactType=1), "", id="artifactType no text"),
        pytest.param(image(layers=[descriptor(LAYER)] * (MAX_REFERENCES + 1)), "", id="too many references"),
    ],
)
def test_refuses_what_is_no_manifest(document: object, content_type: str) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.parse(json.dumps(document).encode(), content_type)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"schemaVersion": 2' + b" " * 100]
)
def test_refuses_what_is_no_json_object(content: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.parse(content, media_types.OCI_MANIFEST)


def test_refuses_more_than_the_limit() -> None:
    with pytest.raises(ManifestTooLarge):
        Manifest.parse(b" " * (MAX_MANIFEST_BYTES + 1), media_types.OCI_MANIFEST)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("schemaVersion", "mediaType", "config", "layers", "manifests", "subject"), _json),
    ),
    st.sampled_from([image(), index()]),
)
def test_strange_documents_never_fail_in_another_way(changes: dict[str, Any], document: dict[str, Any]) -> None:
    with contextlib.suppress(ManifestInvalid):
        Manifest.parse(json.dumps(document | changes).encode())
