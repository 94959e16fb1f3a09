import json
from typing import Any

import pytest

from entrepot.oci import media_types
from entrepot.oci.manifest import Manifest
from entrepot.replication.kinds import Kinds, find_listed_kind, kind_of
from tests.support.content import CONFIG_TYPE, Image, descriptor, index_of

HELM = media_types.HELM_CONFIG
DOCKER = "application/vnd.docker.container.image.v1+json"
WASM = "application/vnd.wasm.config.v0+json"
EMPTY = "application/vnd.oci.empty.v1+json"


def manifest(config_type: str, **fields: Any) -> Manifest:
    document = json.loads(Image().manifest) | {"config": descriptor(config_type, b"{}")} | fields
    return Manifest.parse(json.dumps(document).encode())


INDEX = Manifest.parse(index_of(Image()))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (manifest(CONFIG_TYPE), "images"),
        (manifest(DOCKER), "images"),
        (INDEX, "images"),
        (manifest(HELM), "charts"),
        (manifest(WASM), "artifacts"),
        (manifest(EMPTY, artifactType="application/spdx+json"), "artifacts"),
        (manifest(CONFIG_TYPE, artifactType="application/spdx+json"), "artifacts"),
        (manifest(EMPTY, artifactType=HELM), "charts"),
        (Manifest.parse(json.dumps(json.loads(INDEX.content) | {"artifactType": "a/b"}).encode()), "artifacts"),
    ],
)
def test_words_stand_for_kinds(what: Manifest, expected: str) -> None:
    taken = {word for word in ("images", "charts", "artifacts") if Kinds.parse([word], "x").takes(kind_of(what))}
    assert taken == {expected}


@pytest.mark.parametrize(
    ("text", "kind", "is_taken"),
    [
        (HELM, HELM, True),
        ("application/vnd.cncf.*", HELM, True),
        ("*/*", HELM, True),
        ("application/vnd.cncf.helm.config.v1+json", WASM, False),
        ("application/vnd.wasm.*+json", WASM, True),
        (CONFIG_TYPE, media_types.OCI_INDEX, False),
        ("application/vnd.oci.image.*", media_types.OCI_INDEX, True),
    ],
)
def test_media_types_are_matched_whole_or_by_glob(text: str, kind: str, is_taken: bool) -> None:
    assert Kinds.parse([text], "x").takes(kind) is is_taken


@pytest.mark.parametrize(
    ("manifest_type", "artifact_type", "kind"),
    [
        (media_types.OCI_MANIFEST, HELM, HELM),
        (media_types.OCI_MANIFEST, CONFIG_TYPE, CONFIG_TYPE),
        (media_types.OCI_INDEX, None, media_types.OCI_INDEX),
        (media_types.OCI_MANIFEST, None, None),
        (media_types.OCI_MANIFEST, EMPTY, None),
        (None, None, None),
        (7, ["x"], None),
    ],
)
def test_what_ecr_lists_is_enough_where_it_says_what_the_manifest_would(
    manifest_type: object, artifact_type: object, kind: str | None
) -> None:
    assert find_listed_kind(manifest_type, artifact_type) == kind
