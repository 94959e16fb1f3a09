from datetime import timedelta
from typing import Any

import pytest

from entrepot.access.decisions import grant_scopes, verify_allowed
from entrepot.access.plans import Plan, parse_plans
from entrepot.access.scopes import Action, Scope, parse_scopes
from entrepot.errors import PlanDenied, PlanInvalid, ScopeInsufficient
from entrepot.oci.reference import RepositoryName

API = RepositoryName("smm/api")
GRANT = {"repositories": ["smm/**"], "actions": ["pull"]}
FREE = Plan.parse("free", {"grants": [GRANT, {"repositories": ["dev/*"], "actions": ["pull", "push"]}]})


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param(None, "plans.free: must be a mapping", id="nothing"),
        pytest.param({}, "plans.free.grants: must be a list", id="no-grants"),
        pytest.param({"grants": []}, "plans.free.grants: must be a list", id="empty"),
        pytest.param({"grants": ["smm"]}, "plans.free.grants[0]: must be a mapping", id="text"),
        pytest.param(
            {"grants": [{"actions": ["pull"]}]}, "plans.free.grants[0].repositories: must", id="no-repository"
        ),
        pytest.param({"grants": [GRANT | {"actions": []}]}, "plans.free.grants[0].actions: must", id="no-action"),
        pytest.param({"grants": [GRANT | {"actions": ["read"]}]}, "plans.free.grants[0].actions[0]: 'read'", id="read"),
        pytest.param({"grants": [GRANT | {"repositories": [5]}]}, "plans.free.grants[0].repositories[0]", id="number"),
        pytest.param({"grants": [GRANT | {"repositories": ["A b"]}]}, "plans.free.grants[0].repos", id="glob"),
        pytest.param({"grants": [GRANT | {"tags": ["*"]}]}, "plans.free.grants[0].tags: must be", id="tags-list"),
        pytest.param({"grants": [GRANT | {"tags": {"newest": 1}}]}, "plans.free.grants[0].tags.newest: not", id="new"),
        pytest.param({"grants": [GRANT | {"tags": {"semver": "!"}}]}, "plans.free.grants[0].tags.semver: ", id="range"),
        pytest.param({"grants": [GRANT | {"tags": {"semver": 1.0}}]}, "plans.free.grants[0].tags.semver: ", id="float"),
        pytest.param({"grants": [GRANT | {"tags": {"include": []}}]}, "plans.free.grants[0].tags.include: ", id="none"),
        pytest.param(
            {"grants": [GRANT | {"tags": {"exclude": ["a b"]}}]}, "plans.free.grants[0].tags.exclude[0]", id="tag-glob"
        ),
        pytest.param({"grants": [GRANT], "limits": {}}, "plans.free.limits: must be a mapping", id="no-limit"),
        pytest.param({"grants": [GRANT], "limits": [5]}, "plans.free.limits: must be a mapping", id="limits-list"),
        pytest.param(
            {"grants": [GRANT], "limits": {"pulls_per_week": 5}}, "plans.free.limits.pulls_per_week: not a", id="week"
        ),
        pytest.param(
            {"grants": [GRANT], "limits": {"bytes_per_month": "much"}},
            "plans.free.limits.bytes_per_month: 'much'",
            id="much",
        ),
        pytest.param({"grants": [GRANT], "grant": 1}, "plans.free.grant: not a field here; known are", id="typo"),
        pytest.param({"grants": [GRANT], "credential_lifetime": "soon"}, "plans.free.credential_lifetime", id="soon"),
        pytest.param({"grants": [GRANT], "credential_lifetime": 90}, "plans.free.credential_lifetime", id="unitless"),
        pytest.param({"grants": [GRANT], "credential_lifetime": "0d"}, "plans.free.credential_lifetime", id="zero"),
        pytest.param({"grants": [GRANT], "credential_lifetime": "9999999999d"}, "plans.free.cred", id="for-ever"),
        pytest.param({"grants": [GRANT] * 101}, "plans.free.grants: has 101 entries", id="many"),
    ],
)
def test_a_malformed_plan_is_refused_with_its_place(document: Any, problem: str) -> None:
    with pytest.raises(PlanInvalid) as refusal:
        Plan.parse("free", document)
    assert str(refusal.value).startswith(problem)


@pytest.mark.parametrize("name", ["", "Free", "a/b", "x" * 64, "-a", "a b"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(PlanInvalid):
        Plan.parse(name, {"grants": [GRANT]})


@pytest.mark.parametrize("document", [None, [], {}, {"plans": {}}, {"plans": []}, {"plan": {}}])
def test_a_file_without_plans_is_refused(document: Any) -> None:
    with pytest.raises(PlanInvalid):
        parse_plans(document)


def test_a_plan_reads_back_as_it_was_written() -> None:
    limits = {"pulls_per_hour": 200, "pulls_per_day": 1000, "bytes_per_month": "500GB", "networks_per_hour": 5}
    plan = Plan.parse("free", {"grants": [GRANT], "credential_lifetime": "90d", "limits": limits})
    assert plan.credential_lifetime == timedelta(days=90)
    assert plan.limits is not None
    assert plan.to_document()["limits"] == limits
    assert Plan.parse("free", plan.to_document()) == plan


@pytest.mark.parametrize(
    ("repository", "action", "expected"),
    [
        ("smm/api", Action.PULL, True),
        ("smm/a/b", Action.PULL, True),
        ("smm/api", Action.PUSH, False),
        ("dev/x", Action.PUSH, True),
        ("dev/x", Action.DELETE, False),
        ("internal/api", Action.PULL, False),
        ("smm", Action.PULL, False),
    ],
)
def test_a_plan_allows_what_a_grant_covers_and_nothing_else(repository: str, action: Action, expected: bool) -> None:
    for _ in range(2):  # the second answer comes from memory
        assert FREE.allows(RepositoryName(repository), action) is expected


def test_a_plan_remembers_a_bounded_number_of_answers() -> None:
    plan = Plan.parse("free", {"grants": [GRANT]})
    for number in range(6000):
        assert plan.allows(RepositoryName(f"smm/r{number}"), Action.PULL)
    assert len(plan._memory) <= 4096


def test_the_plan_is_asked_before_the_token() -> None:
    scopes = (Scope("repository", "internal/api", frozenset({"pull"})),)
    with pytest.raises(PlanDenied, match="plan 'free' does not allow pull on 'internal/api'"):
        verify_allowed(FREE, scopes, RepositoryName("internal/api"), Action.PULL)


@pytest.mark.parametrize(
    "scopes",
    [
        (),
        (Scope("repository", "smm/web", frozenset({"pull"})),),
        (Scope("repository", "smm/api", frozenset({"push"})),),
        (Scope("registry", "smm/api", frozenset({"pull"})),),
    ],
)
def test_a_token_for_something_else_does_not_do(scopes: tuple[Scope, ...]) -> None:
    with pytest.raises(ScopeInsufficient):
        verify_allowed(FREE, scopes, API, Action.PULL)


def test_the_credential_itself_needs_no_scope() -> None:
    verify_allowed(FREE, None, API, Action.PULL)


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("repository:smm/api:pull", ["repository:smm/api:pull"]),
        ("repository:smm/api:pull,push", ["repository:smm/api:pull"]),
        ("repository:smm/api:*", ["repository:smm/api:pull"]),
        ("repository:dev/x:*", ["repository:dev/x:pull,push"]),
        ("repository:internal/api:pull", []),
        ("repository:SMM/api:pull", []),
        ("repository:../smm:pull", []),
        ("repository:smm/api:", []),
        ("registry:catalog:*", ["registry:catalog:*"]),
        ("registry:other:*", []),
        ("plugin:smm/api:pull", []),
    ],
)
def test_a_token_gets_what_the_plan_allows_of_what_was_asked(asked: str, granted: list[str]) -> None:
    assert [str(scope) for scope in grant_scopes(FREE, parse_scopes([asked]))] == granted


@pytest.mark.parametrize(
    ("tags", "allowed", "denied"),
    [
        pytest.param({}, ["1.0.0", "latest", "x"], [], id="all"),
        pytest.param({"semver": ">=1.0 <2.0"}, ["1.0", "v1.9.9"], ["2.0.0", "latest", "1.2.0-rc.1"], id="range"),
        pytest.param({"include": ["v*", "latest"]}, ["v1", "latest"], ["1", "dev"], id="globs"),
        pytest.param({"exclude": ["*-rc*"], "semver": "1.x"}, ["1.0.0"], ["1.0.0-rc1", "1.0-rc"], id="excluded"),
    ],
)
def test_tags_limit_a_grant(tags: dict[str, Any], allowed: list[str], denied: list[str]) -> None:
    plan = Plan.parse("free", {"grants": [GRANT | {"tags": tags}]})
    assert Plan.parse("free", plan.to_document()) == plan
    limits = plan.tag_limits(API, Action.PULL)
    assert limits is not None
    assert [limits.allow(tag) for tag in allowed + denied] == [True] * len(allowed) + [False] * len(denied)


def test_grants_add_up_and_one_without_tags_lets_all_pass() -> None:
    limited = GRANT | {"tags": {"include": ["v1"]}}
    both = Plan.parse("free", {"grants": [limited, GRANT | {"tags": {"include": ["v2"]}}]}).tag_limits(API, Action.PULL)
    assert both is not None
    assert (both.allow("v1"), both.allow("v2"), both.allow("v3")) == (True, True, False)
    assert Plan.parse("free", {"grants": [limited, GRANT]}).tag_limits(API, Action.PULL) is None
