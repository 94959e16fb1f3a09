import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import ManifestInvalid
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest, read_annotations
from entrepot.replication.platforms import REBUILT_FROM, Platforms
from tests.support.content import Image, descriptor, image_for, platform_index

IMAGES = {name: image_for(name) for name in ("linux/amd64", "linux/arm64/v8", "linux/arm/v7", "windows/amd64")}
ATTESTATIONS = {name: Image() for name in IMAGES}
INDEX = Manifest.parse(platform_index(IMAGES, ATTESTATIONS))


def names(manifest: Manifest, digests: frozenset[Digest]) -> set[str]:
    return {str(child.platform) for child in manifest.children if child.digest in digests}


@pytest.mark.parametrize(
    ("keep", "platform", "is_taken"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64", "linux/amd64/v2", True),
        ("linux/amd64/v2", "linux/amd64", False),
        ("linux/amd64/v1", "linux/amd64", True),
        ("linux/amd64", "windows/amd64", False),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm", "linux/arm/v6", True),
        ("linux/arm/v7", "linux/arm", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm", "linux/arm64", False),
        ("linux/s390x", "linux/s390x", True),
        ("linux/amd64", None, True),
        ("linux/amd64", "unknown/unknown", True),
        ("linux/amd64", "linux", True),
    ],
)
def test_a_platform_is_kept_with_its_variants(keep: str, platform: str | None, is_taken: bool) -> None:
    assert Platforms((keep,)).takes(platform) is is_taken


def test_attestations_stay_with_what_they_speak_of() -> None:
    kept = Platforms(("linux/amd64", "linux/arm64")).kept(INDEX)
    assert kept == {
        source[name].digest for source in (IMAGES, ATTESTATIONS) for name in ("linux/amd64", "linux/arm64/v8")
    }
    assert Platforms(("linux/riscv64",)).kept(INDEX) == frozenset()


def test_what_names_no_platform_is_kept() -> None:
    chart = Image()
    entries = [descriptor(media_types.OCI_MANIFEST, chart.manifest)]
    index = Manifest.parse(
        json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}).encode()
    )
    assert Platforms(("linux/amd64",)).kept(index) == {chart.digest}


def test_an_index_is_rebuilt_with_what_is_kept_and_says_of_what() -> None:
    platforms = Platforms(("linux/arm64", "linux/amd64"), rebuild=True)
    rebuilt = platforms.rebuilt(INDEX)
    assert names(rebuilt, frozenset(child.digest for child in rebuilt.children)) == {
        "linux/amd64",
        "linux/arm64/v8",
        "unknown/unknown",
    }
    assert len(rebuilt.children) == 4
    assert read_annotations(rebuilt.content)[REBUILT_FROM] == str(INDEX.digest)
    assert platforms.is_rebuilt(rebuilt, INDEX.digest)
    assert not platforms.is_rebuilt(rebuilt, rebuilt.digest)
    assert not Platforms(("linux/amd64",), rebuild=True).is_rebuilt(rebuilt, INDEX.digest)
    assert not platforms.is_rebuilt(INDEX, INDEX.digest)


def test_the_order_of_platforms_makes_no_other_index() -> None:
    one, other = (Platforms(keep, rebuild=True) for keep in (("a/b", "linux/amd64"), ("linux/amd64", "a/b")))
    assert one.rebuilt(INDEX).content == other.rebuilt(INDEX).content


def test_annotations_and_all_else_of_an_index_stay() -> None:
    document = json.loads(INDEX.content) | {"annotations": {"team": "smm"}, "artifactType": "a/b", "subject": None}
    del document["subject"]
    rebuilt = Platforms(("linux/amd64",), rebuild=True).rebuilt(Manifest.parse(json.dumps(document).encode()))
    assert read_annotations(rebuilt.content)["team"] == "smm"
    assert rebuilt.artifact_type == "a/b"
    assert rebuilt.children[0] == INDEX.children[0]


@given(keep=st.sets(st.sampled_from(["linux/amd64", "linux/arm64", "linux/arm", "windows/amd64"]), min_size=1))
def test_nothing_more_is_left_out_of_what_was_rebuilt(keep: set[str]) -> None:
    platforms = Platforms(tuple(keep), rebuild=True)
    rebuilt = platforms.rebuilt(INDEX)
    assert platforms.kept(rebuilt) == {child.digest for child in rebuilt.children}


def test_an_index_nested_too_deeply_is_refused() -> None:
    depth = 200_000
    content = INDEX.content.replace(b'{"schemaVersion"', b'{"x": ' + b"[" * depth + b"]" * depth + b', "schemaVersion"')
    index = Manifest(INDEX.media_type, Digest.of(content), content, children=INDEX.children)
    with pytest.raises(ManifestInvalid, match="nested too deeply"):
        Platforms(("linux/amd64",)).kept(index)
