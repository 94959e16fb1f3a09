import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import DigestInvalid, NameInvalid, TagInvalid
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, parse_reference, subject_of

# distribution-spec 1.1, "Pulling manifests", to the letter.
NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"


@given(st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name) <= 255 and name.isascii()))
def test_accepts_every_name_of_the_spec(name: str) -> None:
    assert str(RepositoryName.parse(name)) == name


@given(st.from_regex(TAG, fullmatch=True))
def test_accepts_every_tag_of_the_spec(tag: str) -> None:
    assert str(Tag.parse(tag)) == tag
    assert parse_reference(tag) == Tag(tag)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("a//b", id="empty element"),
        pytest.param("/a", id="leading slash"),
        pytest.param("a/", id="trailing slash"),
        pytest.param("a/../b", id="parent"),
        pytest.param("..", id="only dots"),
        pytest.param("A/b", id="upper case"),
        pytest.param("a%2fb", id="encoded slash"),
        pytest.param("a b", id="space"),
        pytest.param("a\n", id="line feed"),
        pytest.param("a___b", id="three underscores"),
        pytest.param("-a", id="leading separator"),
        pytest.param("a.", id="trailing separator"),
        pytest.param("a..b", id="two dots"),
        pytest.param("a" * 256, id="256 characters"),
        pytest.param("é", id="not ASCII"),
    ],
)
def test_refuses_other_names(name: str) -> None:
    with pytest.raises(NameInvalid):
        RepositoryName.parse(name)


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a" * 129, "a/b", "a b", "a\n", "é", "a%20"])
def test_refuses_other_tags(tag: str) -> None:
    with pytest.raises(TagInvalid):
        parse_reference(tag)


def test_longest_name_and_tag_are_accepted() -> None:
    assert RepositoryName.parse("a" * 255)
    assert Tag.parse("a" * 128)


def test_colon_tells_digest_from_tag() -> None:
    digest = Digest.of(b"x")
    assert parse_reference(str(digest)) == digest
    with pytest.raises(DigestInvalid):
        parse_reference("sha256:abc")


@given(st.text(max_size=300))
def test_long_or_strange_names_never_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(NameInvalid):
        assert str(RepositoryName.parse(text)) == text


@pytest.mark.parametrize(
    ("tag", "subject"),
    [
        ("sha256-" + "a" * 64, "sha256:" + "a" * 64),
        ("sha256-" + "a" * 64 + ".sig", "sha256:" + "a" * 64),
        ("sha256-" + "a" * 65, None),
        ("sha256-" + "a" * 63 + ".sig", None),
        ("sha512-" + "a" * 64, None),
        ("sha256-" + "A" * 64, None),
        ("sha256-" + "a" * 64 + ".sig1", None),
        ("v1", None),
    ],
)
def test_some_tags_speak_of_a_digest(tag: str, subject: str | None) -> None:
    found = subject_of(Tag.parse(tag))
    assert (None if found is None else str(found)) == subject
