import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.globs import Glob
from entrepot.errors import GlobInvalid


@pytest.mark.parametrize(
    ("glob", "text", "expected"),
    [
        ("smm/api", "smm/api", True),
        ("smm/api", "smm/api2", False),
        ("smm/api", "xsmm/api", False),
        ("smm/*", "smm/api", True),
        ("smm/*", "smm/", True),
        ("smm/*", "smm", False),
        ("smm/*", "smm/a/b", False),
        ("smm/**", "smm/a/b", True),
        ("smm/**", "smm", False),
        ("**", "anything/at/all", True),
        ("*", "one", True),
        ("*", "one/two", False),
        ("*-rc*", "1.0-rc1", True),
        ("*-rc*", "1.0", False),
        ("**/api", "a/b/api", True),
        ("**/api", "api", False),
        ("a*b*c", "abc", True),
        ("a*b*c", "a/bc", False),
        ("a**c", "a/b/c", True),
        ("v*", "V1", False),
    ],
)
def test_a_star_stays_within_an_element_and_two_go_across(glob: str, text: str, expected: bool) -> None:
    assert Glob.parse(glob).matches(text) is expected


@pytest.mark.parametrize("text", ["", "a b", "a?", "[ab]", "a***", "a\n", "é", "x" * 256, "a:b", "a@b"])
def test_what_is_no_glob_is_refused(text: str) -> None:
    with pytest.raises(GlobInvalid):
        Glob.parse(text)


PATTERNS = st.lists(st.sampled_from(["a", "b", "/", "*", "**"]), min_size=1, max_size=8).map("".join)


@given(pattern=PATTERNS.filter(lambda text: "***" not in text), text=st.text("ab/", max_size=10))
def test_matching_agrees_with_a_regular_expression(pattern: str, text: str) -> None:
    words = re.findall(r"\*\*|\*|[^*]+", pattern)
    expression = "".join({"**": ".*", "*": "[^/]*"}.get(word, re.escape(word)) for word in words)
    assert Glob.parse(pattern).matches(text) is bool(re.fullmatch(expression, text, re.DOTALL))


def test_no_pattern_makes_matching_explode() -> None:
    # A backtracking matcher would need some 2^80 steps here.
    assert not Glob.parse("a*" * 80 + "b").matches("a" * 250)
    assert not Glob.parse("a**" * 80 + "b").matches("a/" * 120)


def test_a_glob_without_stars_is_literal() -> None:
    assert Glob.parse("smm/api").literal == "smm/api"
    assert Glob.parse("smm/*").literal is None


_WORDS = st.lists(st.sampled_from(["a", "b", "/", "*", "**"]), min_size=1, max_size=4).map("".join)
_GLOBS = _WORDS.filter(lambda text: "***" not in text).map(Glob.parse)
_TEXTS = ["".join(letters) for length in range(7) for letters in itertools.product("ab/", repeat=length)]


@given(_GLOBS, _GLOBS)
def test_globs_meet_where_some_text_fits_both(one: Glob, other: Glob) -> None:
    common = [text for text in _TEXTS if one.matches(text) and other.matches(text)]
    assert one.meets(other) is other.meets(one)
    # No two of these globs need a longer text than the two together have characters.
    if common or len(one.text) + len(other.text) <= 6:
        assert one.meets(other) is bool(common)


@given(_GLOBS, _GLOBS)
def test_a_glob_covers_only_what_fits_it(one: Glob, other: Glob) -> None:
    if one.covers(other):
        assert all(one.matches(text) for text in _TEXTS if other.matches(text))


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        ("**", "a/*", True),
        ("*", "a/*", False),
        ("*-rc*", "v1*-rc1", True),
        ("v*", "v1.*", True),
        ("v1", "v1", True),
        ("v1", "v*", False),
        ("*", "**", False),
        ("a*b", "ab", True),
    ],
)
def test_globs_that_cover_others(one: str, other: str, covers: bool) -> None:
    assert Glob.parse(one).covers(Glob.parse(other)) is covers
