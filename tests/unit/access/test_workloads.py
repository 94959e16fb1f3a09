from datetime import timedelta
from typing import Any

import pytest

from entrepot.access.api_scopes import ApiScope
from entrepot.access.workloads import ClaimPattern, Workload
from entrepot.errors import GlobInvalid


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("system:serviceaccount:web:signup", "system:serviceaccount:web:signup", True),
        ("system:serviceaccount:web:signup", "system:serviceaccount:web:signup2", False),
        ("system:serviceaccount:web:*", "system:serviceaccount:web:signup", True),
        ("system:serviceaccount:web:*", "system:serviceaccount:web:a:b", False),
        ("system:serviceaccount:*:signup", "system:serviceaccount:web:signup", True),
        ("system:serviceaccount:*:signup", "system:serviceaccount:web:x:signup", False),
        # A branch or environment that is named like a suffix must not reach across.
        ("repo:acme/*:ref:refs/heads/main", "repo:acme/web:ref:refs/heads/main", True),
        ("repo:acme/*:ref:refs/heads/main", "repo:acme/web:environment:x:ref:refs/heads/main", False),
        ("repo:acme/*:ref:refs/heads/main", "repo:acme/web/x:ref:refs/heads/main", False),
        ("repo:acme/web:**", "repo:acme/web:ref:refs/heads/main", True),
        ("repo:acme/web:**", "repo:acme/webs:ref:refs/heads/main", False),
        ("a", ["b", "a"], True),
        ("a", ["b"], False),
        ("a", [], False),
        ("true", True, False),
        ("1", 1, False),
        ("a", {"a": "a"}, False),
        ("**", None, False),
        ("**", "x" * 256, False),
    ],
)
def test_a_star_stays_between_colons_and_slashes(pattern: str, value: Any, expected: bool) -> None:
    assert ClaimPattern.parse("sub", pattern).matches({"sub": value}) is expected
    assert not ClaimPattern.parse("sub", pattern).matches({"other": value})


@pytest.mark.parametrize("pattern", ["", "***", "a\n", "\x00", "x" * 256])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(GlobInvalid, match="sub"):
        ClaimPattern.parse("sub", pattern)


def test_every_pattern_must_match() -> None:
    patterns = tuple(ClaimPattern.parse(*one) for one in (("sub", "a:*"), ("groups", "admins")))
    workload = Workload("w", patterns, frozenset({ApiScope.ADMIN}), None, False, None, timedelta(minutes=15))
    assert workload.matches({"sub": "a:b", "groups": ["users", "admins"]})
    assert not workload.matches({"sub": "a:b", "groups": ["users"]})
    assert not workload.matches({"sub": "b:b", "groups": ["admins"]})
