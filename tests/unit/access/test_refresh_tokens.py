import re

from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.refresh_tokens import RefreshToken
from entrepot.access.secrets import Secret

KEY, SERVICE, HASH = b"k" * 32, "registry.example.com", b"h" * 32
NAMES = st.text(st.characters(categories=["L", "N"], include_characters="-._$+"), min_size=1, max_size=63)


@given(account=NAMES)
def test_what_is_written_is_read(account: str) -> None:
    token = RefreshToken.make(KEY, SERVICE, account, "9d3f5b0e-8a1c-4c6e-9a55-2f1f3a1d6f10", HASH)
    read = RefreshToken.parse(token.write())
    assert read == token
    assert read.is_proven(KEY, SERVICE, HASH)


def test_it_has_the_form_that_scanners_are_told() -> None:
    token = RefreshToken.make(KEY, SERVICE, "ft-sfc6463qukpncsjrz7lq", "9d3f5b0e-8a1c-4c6e-9a55-2f1f3a1d6f10", HASH)
    assert re.fullmatch(r"entr_[0-9A-Za-z_-]{56,}", token.write().reveal())
    assert repr(token.write()) == "***"


def test_everything_in_it_is_proven() -> None:
    token = RefreshToken.make(KEY, SERVICE, "ft-one", "id-1", HASH)
    assert not token.is_proven(b"x" * 32, SERVICE, HASH)
    assert not token.is_proven(KEY, "elsewhere", HASH)
    assert not token.is_proven(KEY, SERVICE, b"x" * 32)
    for changed in (RefreshToken("ft-two", "id-1", token.proof), RefreshToken("ft-one", "id-2", token.proof)):
        assert not changed.is_proven(KEY, SERVICE, HASH)
    # Moving a character from one name to the next says something else.
    moved = RefreshToken("ft-onei", "d-1", token.proof)
    assert not moved.is_proven(KEY, SERVICE, HASH)


@given(text=st.text(max_size=200))
def test_any_text_may_be_taken_for_one(text: str) -> None:
    assert RefreshToken.parse(Secret(text)) is None
    assert RefreshToken.parse(Secret(f"entr_{text}")) is None
