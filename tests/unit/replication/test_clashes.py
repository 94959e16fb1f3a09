from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import RuleInvalid
from entrepot.replication.clashes import tags_may_meet, verify_apart
from entrepot.replication.rules import Rule

ANY = {"include": ["*"]}


def rule(name: str, repositories: list[str], tags: dict[str, Any] = ANY, target: str = "{repository}") -> Rule:
    document = {"source": f"of-{name}", "repositories": repositories, "tags": tags, "target": target}
    return Rule.parse(name, document)


APART = [
    pytest.param(rule("a", ["smm/api"]), rule("b", ["smm/web"]), id="other repositories"),
    pytest.param(rule("a", ["smm/*"]), rule("b", ["smm/a/*", "other/**"]), id="a star stays within an element"),
    pytest.param(rule("a", ["smm/*"]), rule("b", ["smm/*"], target="b/{repository}"), id="other targets"),
    pytest.param(rule("a", ["api"], {"include": ["v1*"]}), rule("b", ["api"], {"include": ["v2*"]}), id="other tags"),
    pytest.param(
        rule("a", ["api"], {"include": ["*"], "exclude": ["latest"]}),
        rule("b", ["api"], {"include": ["latest"]}),
        id="an excluded tag",
    ),
    pytest.param(
        rule("a", ["api"], {"include": ["v*"], "exclude": ["*-rc*"]}),
        rule("b", ["api"], {"include": ["*-rc*"]}),
        id="an excluded glob",
    ),
    pytest.param(
        rule("a", ["api"], {"semver": ">=1.0 <2.0"}), rule("b", ["api"], {"semver": ">=2.0"}), id="other versions"
    ),
    pytest.param(rule("a", ["api"], {"semver": ">=1.0"}), rule("b", ["api"], {"include": ["latest"]}), id="no version"),
]

MEETING = [
    pytest.param(rule("a", ["smm/api"]), rule("b", ["smm/api"]), id="same"),
    pytest.param(rule("a", ["smm/*"]), rule("b", ["*/api"]), id="globs"),
    pytest.param(rule("a", ["api"], target="smm/{repository}"), rule("b", ["smm/**"]), id="through the target"),
    pytest.param(rule("a", ["api"], {"include": ["v1*"]}), rule("b", ["api"], {"include": ["*-rc"]}), id="tags"),
    pytest.param(rule("a", ["api"], {"semver": ">=1 <3"}), rule("b", ["api"], {"semver": "2.x"}), id="versions"),
    pytest.param(rule("a", ["api"], {"semver": ">=1"}), rule("b", ["api"], {"include": ["v1.2"]}), id="a version"),
]


@pytest.mark.parametrize(("one", "other"), APART)
def test_rules_that_never_write_the_same_tag_live_together(one: Rule, other: Rule) -> None:
    verify_apart([one, other], {"a", "b"})
    verify_apart([other, one], {"a"})


@pytest.mark.parametrize(("one", "other"), MEETING)
def test_rules_that_would_write_the_same_tag_are_refused(one: Rule, other: Rule) -> None:
    with pytest.raises(RuleInvalid, match=r"^rules.a.target: rule 'b' would write the same tags"):
        verify_apart([one, other], {"a", "b"})
    with pytest.raises(RuleInvalid, match=r"^rules.b.target: rule 'a' would write the same tags"):
        verify_apart([one, other], {"b"})


def test_what_is_not_changed_is_not_judged() -> None:
    verify_apart([rule("a", ["api"]), rule("b", ["api"]), rule("c", ["web"])], {"c"})


@given(
    st.lists(st.sampled_from(["*", "v*", "v1*", "*-rc", "v1-rc", "*1*"]), min_size=1, max_size=2),
    st.lists(st.sampled_from(["*-rc", "v*", "v1"]), max_size=2),
    st.lists(st.sampled_from(["*", "v*", "v2*", "*-rc", "v1", "*c"]), min_size=1, max_size=2),
    st.lists(st.sampled_from(["*-rc", "v*", "v1"]), max_size=2),
)
def test_tags_that_both_select_are_always_found(
    include: list[str], exclude: list[str], other_include: list[str], other_exclude: list[str]
) -> None:
    def tags(includes: list[str], excludes: list[str]) -> Any:
        return rule("a", ["api"], {"include": includes} | ({"exclude": excludes} if excludes else {})).tags

    ours, theirs = tags(include, exclude), tags(other_include, other_exclude)
    meeting = [
        tag for tag in ("v1", "v2", "v1-rc", "v2-rc", "x", "x-rc", "1") if ours.selects(tag) and theirs.selects(tag)
    ]
    if meeting:
        assert tags_may_meet(ours, theirs)
