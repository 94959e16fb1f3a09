from datetime import UTC, date, datetime, timedelta
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
        pytest.param(RULE | {"tags": {"newest": 0}}, "rules.smm.tags.newest: must be a whole number", id="newest"),
        pytest.param(RULE | {"tags": {"newest": True}}, "rules.smm.tags.newest: must be a whole", id="newest-bool"),
        pytest.param(RULE | {"tags": {"newest": {"by": "push"}}}, "rules.smm.tags.newest.count: must", id="no-count"),
        pytest.param(
            RULE | {"tags": {"newest": {"count": 1, "by": "age"}}}, "rules.smm.tags.newest.by: must be push", id="by"
        ),
        pytest.param(RULE | {"tags": {"newest": {"number": 1}}}, "rules.smm.tags.newest.number: not a", id="number-of"),
        pytest.param(RULE | {"tags": {"regex": "v(1"}}, "rules.smm.tags.regex: 'v(1' is no regex", id="regex"),
        pytest.param(RULE | {"tags": {"regex": "(?=v)"}}, "rules.smm.tags.regex: '(?=v)' is no regex", id="look-ahead"),
        pytest.param(RULE | {"tags": {"regex": r"(v)\1"}}, "rules.smm.tags.regex: ", id="back-reference"),
        pytest.param(RULE | {"tags": {"regex": "(a{999}){999}"}}, "rules.smm.tags.regex: ", id="huge-regex"),
        pytest.param(RULE | {"tags": {"regex": 1}}, "rules.smm.tags.regex: must be a regex", id="regex-number"),
        pytest.param(RULE | {"tags": {"since": "yesterday"}}, "rules.smm.tags.since: must be a date", id="since"),
        pytest.param(RULE | {"tags": {"since": "2026-02-30"}}, "rules.smm.tags.since: must be a date", id="no-date"),
        pytest.param(RULE | {"tags": {"since": "99999999d"}}, "rules.smm.tags.since: must be a date", id="since-ages"),
        pytest.param(RULE | {"tags": {"since": 90}}, "rules.smm.tags.since: must be a date", id="since-number"),
        pytest.param(RULE | {"platforms": []}, "rules.smm.platforms: must be a list", id="no-platforms"),
        pytest.param(RULE | {"platforms": ["linux"]}, "rules.smm.platforms[0]: must be a platform", id="only-os"),
        pytest.param(
            RULE | {"platforms": ["linux/x86_64"]}, "rules.smm.platforms[0]: x86_64 is called amd64", id="x86"
        ),
        pytest.param(RULE | {"platforms": {"rebuild": True}}, "rules.smm.platforms.keep: must be", id="keeps-nothing"),
        pytest.param(
            RULE | {"platforms": {"keep": ["linux/arm64"], "rebuild": "yes"}}, "rules.smm.platforms.rebuild:", id="yes"
        ),
        pytest.param(RULE | {"media_types": []}, "rules.smm.media_types: must be a list", id="no-media-types"),
        pytest.param(RULE | {"media_types": ["image"]}, "rules.smm.media_types[0]: must be images", id="singular"),
        pytest.param(RULE | {"media_types": ["a/***"]}, "rules.smm.media_types[0]: must be images", id="stars"),
        pytest.param(RULE | {"deletions": "delete"}, "rules.smm.deletions: must be keep, mirror, or", id="deletions"),
        pytest.param(RULE | {"deletions": 30}, "rules.smm.deletions: must be keep, mirror, or", id="days"),
        pytest.param(RULE | {"deletions": "0d"}, "rules.smm.deletions: must be keep, mirror, or", id="no-days"),
        pytest.param(RULE | {"deletions": "9999d"}, "rules.smm.deletions: must be keep", id="too-many-days"),
        pytest.param(RULE | {"target": "all"}, "rules.smm.target: several repositories", id="one-target"),
        pytest.param(RULE | {"target": "Public/{repository}"}, "rules.smm.target: repository name", id="target-case"),
        pytest.param(RULE | {"target": "{repo}/{repository}"}, "rules.smm.target: repository name", id="placeholder"),
        pytest.param(RULE | {"pull_through": "yes"}, "rules.smm.pull_through: must be true or false", id="switch"),
        pytest.param(
            RULE | {"pull_through": True, "target": "{repository}/{repository}"},
            "rules.smm.pull_through: where {repository} is but once",
            id="way-back",
        ),
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
    "fields",
    [
        {"tags": {"include": ["*"], "regex": r"v\d+", "newest": 10, "since": "90d"}},
        {"tags": {"include": ["*"], "newest": {"count": 3, "by": "version"}, "since": "2026-01-31T12:00:00+01:00"}},
        {"platforms": ["linux/amd64", "linux/arm/v7"]},
        {"platforms": {"keep": ["linux/amd64"], "rebuild": True}},
        {"media_types": ["images", "charts", "application/vnd.acme.*"]},
    ],
)
def test_what_a_rule_selects_reads_back_as_it_was_written(fields: dict[str, Any]) -> None:
    document = Rule.parse("smm", RULE | fields).to_document()
    assert {name: document[name] for name in fields} == fields
    assert Rule.parse("smm", document) == Rule.parse("smm", RULE | fields)


@pytest.mark.parametrize("since", [date(2026, 1, 31), datetime(2026, 1, 31, 12, tzinfo=UTC)])
def test_dates_as_yaml_reads_them_are_kept_as_text(since: date) -> None:
    rule = Rule.parse("smm", RULE | {"tags": {"since": since}})
    assert rule.to_document()["tags"]["since"] == since.isoformat()


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({"since": "90d"}, r"^rules.smm.tags.since: source 'internal' does not tell when .* Use semver"),
        ({"newest": 10}, r"^rules.smm.tags.newest: source 'internal' .* Use \{count: 10, by: version\}$"),
        ({"newest": {"count": 10, "by": "version"}, "regex": ".*"}, None),
    ],
)
def test_what_a_source_does_not_tell_cannot_be_asked_for(tags: dict[str, Any], problem: str | None) -> None:
    rule = Rule.parse("smm", RULE | {"tags": tags})
    rule.verify_source(parse_source("internal", {"type": "ecr", "account": "123456789012", "region": "eu-west-1"}))
    for document in (SOURCE, {"type": "archive", "path": "/mnt/usb"}):
        source = parse_source("internal", document)
        if problem is None:
            rule.verify_source(source)
        else:
            with pytest.raises(RuleInvalid, match=problem):
                rule.verify_source(source)


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


@pytest.mark.parametrize(
    ("target", "repositories", "name", "origin"),
    [
        ("{repository}", ["smm/*"], "smm/api", "smm/api"),
        ("{repository}", ["smm/*"], "other/api", None),
        ("public/{repository}", ["smm/*"], "public/smm/api", "smm/api"),
        ("public/{repository}", ["smm/*"], "smm/api", None),
        ("public/{repository}/x", ["smm/*"], "public/smm/api/x", "smm/api"),
        ("public/{repository}/x", ["smm/*"], "public/smm/api", None),
        ("public/{repository}", ["*"], "public/", None),
        ("one", ["smm/api"], "one", "smm/api"),
        ("one", ["smm/api"], "other", None),
    ],
)
def test_a_target_leads_back(target: str, repositories: list[str], name: str, origin: str | None) -> None:
    rule = Rule.parse("smm", RULE | {"target": target, "repositories": repositories})
    assert rule.origin_of(RepositoryName(name)) == (None if origin is None else RepositoryName(origin))


@pytest.mark.parametrize("pulls", [True, False])
def test_pull_through_is_kept(*, pulls: bool) -> None:
    rule = Rule.parse("smm", RULE | {"pull_through": pulls})
    assert rule.pull_through is pulls
    assert Rule.parse("smm", rule.to_document()) == rule


def test_a_target_name_that_grows_too_long_is_refused() -> None:
    rule = Rule.parse("smm", RULE | {"target": "public/{repository}"})
    with pytest.raises(RuleInvalid, match=r"^rules.smm.target: for s+: repository name of 257 characters"):
        rule.target_of(RepositoryName("s" * 250))
