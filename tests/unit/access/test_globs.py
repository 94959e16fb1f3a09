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
