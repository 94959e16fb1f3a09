"""How an identity reads."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.accounts.identity import MAX_DESCRIPTION_CHARACTERS, describe

VALUES = st.one_of(st.text(max_size=300), st.integers(), st.booleans(), st.none(), st.lists(st.text(max_size=20)))


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        pytest.param({}, '{"id": "user-4711"}', id="nothing is known"),
        pytest.param(
            {"email": "ada@example.com", "country": "GB", "name": "Ada Lovelace", "company": "Analytical Engines"},
            '{"id": "user-4711", "name": "Ada Lovelace", "company": "Analytical Engines", "email": "ada@example.com", '
            '"country": "GB"}',
            id="what people look for comes first",
        ),
        pytest.param({"name": "Jörg"}, '{"id": "user-4711", "name": "Jörg"}', id="as it is written"),
        pytest.param({"id": "another"}, '{"id": "user-4711"}', id="the platform's id is the one"),
        pytest.param(
            {"a": "x" * 2000, "b": 1}, '{"id": "user-4711", "b": 1, "left_out": 1}', id="what does not fit is counted"
        ),
    ],
)
def test_it_reads_well(identity: dict[str, object], text: str) -> None:
    assert describe("user-4711", identity) == text


@given(external_id=st.one_of(st.none(), st.text(max_size=255)), identity=st.dictionaries(st.text(max_size=40), VALUES))
def test_it_is_one_short_line_of_json(external_id: str | None, identity: dict[str, object]) -> None:
    text = describe(external_id, identity)
    assert len(text) <= MAX_DESCRIPTION_CHARACTERS
    document = json.loads(text)
    assert document.get("id") == external_id or external_id is None or "left_out" in document
    assert len(text.splitlines()) <= 1 or any(not character.isascii() for character in text)
