from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entrepot.errors import RuleInvalid
from entrepot.oci.reference import RepositoryName
from entrepot.replication.rules import Rule, parse_rule_file
from entrepot.replication.source_specs import parse_source

SOURCE = {"type": "oci", "url": "https://registry.example.com", "username": "reader", "password_file": "/run/secret"}
GONE = datetime(2026, 11, 1, tzinfo=UTC)
RULE = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["v*"], "exclude": ["*-dev"]}}


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param(without(RULE, "source"), "rules.smm.source: must be", id="no-source"),
        pytest.param(without(RULE, "repositories"), "rules.smm.repositories: must be a list", id="no-repositories"),
        pytest.param(RULE | {"repositories": []}, "rules.smm.repositories: must be a list", id="empty"),
        pytest.param(RULE | {"repositories": "smm/*"}, "rules.smm.repositories: must be a list", id="text"),
        pytest.param(RULE | {"repositories": ["ok", 1]}, "rules.smm.repositories[1]: must be text", id="number"),
        pytest.param(RULE | {"repositories": ["a b"]}, "rules.smm.repositories[0]: glob", id="bad-glob"),
        pytest.param(RULE | {"repositories": ["SMM/api"]}, "rules.smm.repositories[0]: repository name", id="case"),
        pytest.param(without(RULE, "tags"), "rules.smm.tags: say which", id="no-tags"),
        pytest.param(RULE | {"tags": {}}, "rules.smm.tags: say which", id="no-include"),
        pytest.param(RULE | {"tags": {"semver": ">>1"}}, "rules.smm.tags.semver: semver range", id="semver"),
        pytest.param(RULE | {"tags": {"include": ["*"], "newest": 3}}, "rules.smm.tags.newest: not supp", id="newest"),
        pytest.param(RULE | {"deletions": "delete"}, "rules.smm.deletions: must be keep, mirror, or", id="deletions"),
        pytest.param(RULE | {"deletions": 30}, "rules.smm.deletions: must be keep, mirror, or", id="days"),
        pytest.param(RULE | {"deletions": "0d"}, "rules.smm.deletions: must be keep, mirror, or", id="no-days"),
        pytest.param(RULE | {"deletions": "9999d"}, "rules.smm.deletions: must be keep", id="too-many-days"),
        pytest.param(RULE | {"target": "all"}, "rules.smm.target: several repositories", id="one-target"),
        pytest.param(RULE | {"target": "Public/{repository}"}, "rules.smm.target: repository name", id="target-case"),
        pytest.param(RULE | {"target": "{repo}/{repository}"}, "rules.smm.target: repository name", id="placeholder"),
        pytest.param(RULE | {"taget": "x"}, "rules.smm.taget: not a field here; known are", id="typo"),
    ],
)
def test_a_malformed_rule_is_refused_with_its_place(document: object, problem: str) -> None:
    with pytest.raises(RuleInvalid) as refusal:
        Rule.parse("smm", document)
    assert str(refusal.value).startswith(problem)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param(None, "the file: must be a mapping", id="empty"),
        pytest.param({}, "the file: names neither", id="nothing"),
        pytest.param({"rule": {}}, "rule: not a field here", id="unknown"),
        pytest.param({"rules": []}, "rules: must be a mapping", id="list"),
        pytest.param({"rules": {"Smm": RULE}}, "rules.Smm: a name takes", id="name"),
        pytest.param({"sources": {"a/b": SOURCE}}, "sources.a/b: a name takes", id="source-name"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(document: object, problem: str) -> None:
    with pytest.raises(RuleInvalid) as refusal:
        parse_rule_file(document)
    assert str(refusal.value).startswith(problem)


def test_a_file_reads_back_as_it_was_written() -> None:
    file = parse_rule_file({"sources": {"internal": SOURCE}, "rules": {"smm": RULE}})
    source, rule = file.sources[0], file.rules[0]
    assert parse_source("internal", source.to_document()) == source
    assert Rule.parse("smm", rule.to_document()) == rule


@pytest.mark.parametrize(
    ("text", "due_at"),
    [("keep", None), ("mirror", GONE), ("30d", GONE + timedelta(days=30)), ("12h", GONE + timedelta(hours=12))],
)
def test_what_is_gone_is_kept_as_long_as_the_rule_says(text: str, due_at: datetime | None) -> None:
    rule = Rule.parse("smm", RULE | {"deletions": text})
    assert rule.deletions.due_at(GONE) == due_at
    assert rule.to_document().get("deletions", "keep") == text
    assert Rule.parse("smm", rule.to_document()) == rule


@pytest.mark.parametrize(
    ("tag", "is_selected"),
    [("v1.0", True), ("v", True), ("v1.0-dev", False), ("latest", False)],
)
def test_tags_are_included_unless_excluded(tag: str, is_selected: bool) -> None:
    assert Rule.parse("smm", RULE).tags.selects(tag) is is_selected


def test_repositories_without_globs_need_no_listing() -> None:
    rule = Rule.parse("smm", RULE | {"repositories": ["smm/web", "smm/api", "smm/api"]})
    assert rule.literal_repositories() == [RepositoryName("smm/api"), RepositoryName("smm/web")]
    assert Rule.parse("smm", RULE).literal_repositories() is None


def test_a_target_renames() -> None:
    rule = Rule.parse("smm", RULE | {"target": "public/{repository}"})
    assert rule.target_of(RepositoryName("smm/api")) == RepositoryName("public/smm/api")


def test_a_target_name_that_grows_too_long_is_refused() -> None:
    rule = Rule.parse("smm", RULE | {"target": "public/{repository}"})
    with pytest.raises(RuleInvalid, match=r"^rules.smm.target: for s+: repository name of 257 characters"):
        rule.target_of(RepositoryName("s" * 250))
