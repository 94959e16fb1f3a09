import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.api_scopes import ApiScope, covers, parse_api_scopes
from entrepot.access.claims import Claims
from entrepot.access.scopes import MAX_SCOPES, Scope, parse_scopes
from entrepot.errors import RequestInvalid, ScopeInvalid, TokenInvalid

NAMES = st.from_regex(r"[a-z0-9/._-]{1,40}", fullmatch=True)
ACTIONS = st.sets(st.sampled_from(["pull", "push", "delete", "*"]), max_size=4)


@given(kind=st.sampled_from(["repository", "registry"]), name=NAMES, actions=ACTIONS)
def test_a_scope_reads_back_as_it_was_printed(kind: str, name: str, actions: set[str]) -> None:
    scope = Scope(kind, name, frozenset(actions))
    assert Scope.parse(str(scope)) == scope


@given(text=st.text(max_size=60))
def test_any_text_is_a_scope_or_refused(text: str) -> None:
    with contextlib.suppress(ScopeInvalid):
        Scope.parse(text)


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ([], 0),
        ([""], 0),
        (["repository:a:pull"], 1),
        (["repository:a:pull repository:b:pull"], 2),
        (["repository:a:pull", "repository:b:pull"], 2),
        (["repository(plugin):a:pull"], 1),
    ],
)
def test_scopes_are_repeated_or_separated_by_spaces(texts: list[str], count: int) -> None:
    assert len(parse_scopes(texts)) == count


@pytest.mark.parametrize("text", ["repository", "repository:a", ":a:pull", "repository:a:PULL", "x" * 600, "r:a:p;q"])
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(ScopeInvalid):
        parse_scopes([text])


def test_too_many_scopes_are_refused() -> None:
    with pytest.raises(ScopeInvalid):
        parse_scopes(["repository:a:pull"] * (MAX_SCOPES + 1))


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"sub": "a", "cid": "b", "exp": 1},
        {"sub": "a", "cid": "b", "exp": "soon", "access": []},
        {"sub": "a", "cid": "b", "exp": 1, "access": [{"type": "repository"}]},
        {"sub": "a", "cid": "b", "exp": 1, "iat": 1, "access": "all"},
    ],
)
def test_claims_that_are_not_ours_are_refused(payload: dict[str, object]) -> None:
    with pytest.raises(TokenInvalid):
        Claims.read(payload)


def test_claims_read_back_as_they_were_written() -> None:
    scopes = (Scope("repository", "smm/api", frozenset({"pull", "push"})),)
    claims = Claims.read({"sub": "ft-x", "cid": "1", "exp": 5, "iat": 2, "access": Claims.access(scopes)})
    assert claims == Claims("ft-x", "1", scopes, 5.0, 2.0)


@pytest.mark.parametrize(
    ("held", "needed", "expected"),
    [
        ({ApiScope.ACCOUNTS_WRITE}, ApiScope.ACCOUNTS_WRITE, True),
        ({ApiScope.ACCOUNTS_WRITE}, ApiScope.ACCOUNTS_READ, True),
        ({ApiScope.ACCOUNTS_READ}, ApiScope.ACCOUNTS_WRITE, False),
        ({ApiScope.ACCOUNTS_WRITE}, ApiScope.PLANS_READ, False),
        ({ApiScope.ADMIN}, ApiScope.AUDIT_READ, True),
        ({ApiScope.AUDIT_READ, ApiScope.PLANS_WRITE}, ApiScope.ADMIN, False),
        (set(), ApiScope.USAGE_READ, False),
    ],
)
def test_writing_includes_reading_and_admin_everything(held: set[ApiScope], needed: ApiScope, expected: bool) -> None:
    assert covers(frozenset(held), needed) is expected


@pytest.mark.parametrize("texts", [[], ["account:write"], ["accounts:write", "x" * 1000]])
def test_unknown_api_scopes_are_refused(texts: list[str]) -> None:
    with pytest.raises(RequestInvalid, match="accounts:write"):
        parse_api_scopes(texts)
