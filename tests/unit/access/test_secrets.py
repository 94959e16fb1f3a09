import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.keys import Keys
from entrepot.access.names import account_name, parse_external_id
from entrepot.access.secrets import API_KEY_PREFIX, CREDENTIAL_PREFIX, Secret, is_same_hash
from entrepot.errors import IdentityInvalid

KEYS = Keys.derive(b"a secret of this installation")


@pytest.mark.parametrize("prefix", [CREDENTIAL_PREFIX, API_KEY_PREFIX])
def test_a_new_secret_is_well_formed(prefix: str) -> None:
    secret = Secret.generate(prefix)
    assert re.fullmatch(rf"{prefix}_[0-9A-Za-z]{{36}}", secret.reveal())
    assert secret.is_wellformed(prefix)
    assert not secret.is_wellformed({"entp": "entk", "entk": "entp"}[prefix])


def test_secrets_are_never_the_same() -> None:
    assert len({Secret.generate("entp").reveal() for _ in range(1000)}) == 1000


@given(at=st.integers(min_value=5, max_value=40), character=st.sampled_from("0Aaz"))
def test_a_typo_is_known_without_a_lookup(at: int, character: str) -> None:
    text = Secret.generate("entp").reveal()
    wrong = text[:at] + character + text[at + 1 :]
    assert Secret(wrong).is_wellformed("entp") is (wrong == text)


@given(text=st.text(max_size=60))
def test_any_text_may_be_taken_for_a_secret(text: str) -> None:
    secret = Secret(text)
    assert not secret.is_wellformed("entp")
    assert len(secret.hash(KEYS.secrets)) == 32


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret.generate("entp")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{[secret]}"):
        assert secret.reveal() not in shown
    assert "KEYS" not in repr(KEYS)
    assert repr(KEYS.secrets) not in repr(KEYS)


def test_a_hash_depends_on_secret_and_key() -> None:
    one, other = Secret.generate("entp"), Secret.generate("entp")
    assert is_same_hash(one.hash(b"k"), Secret(one.reveal()).hash(b"k"))
    assert not is_same_hash(one.hash(b"k"), other.hash(b"k"))
    assert not is_same_hash(one.hash(b"k"), one.hash(b"l"))


def test_keys_differ_by_purpose_and_installation() -> None:
    again, other = Keys.derive(b"a secret of this installation"), Keys.derive(b"another")
    assert again == KEYS
    purposes = [
        (keys.names, keys.secrets, keys.refresh, keys.signing(0), keys.signing(1), keys.signing(2))
        for keys in (KEYS, other)
    ]
    assert len({*purposes[0], *purposes[1]}) == 12
    assert all(len(key) == 32 for key in purposes[0])


@given(external_id=st.text(min_size=1, max_size=255))
def test_an_account_name_is_valid_everywhere(external_id: str) -> None:
    try:
        parsed = parse_external_id(external_id)
    except IdentityInvalid:
        return
    name = account_name(KEYS.names, parsed)
    # Docker user names, Harbor robots and Kubernetes names (RFC 1123 labels) all take this.
    assert re.fullmatch(r"ft-[a-z2-7]{20}", name)
    assert name == account_name(KEYS.names, parse_external_id(parsed))
    assert name != account_name(Keys.derive(b"another").names, parsed)


def test_an_external_id_has_one_form() -> None:
    assert parse_external_id("e\u0301") == parse_external_id("\u00e9")


@pytest.mark.parametrize("text", ["", "x" * 256, "a\nb", "a\x00", " a", "a ", "\ud800", "\u00a0a", "\ue000"])
def test_an_external_id_that_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(IdentityInvalid):
        parse_external_id(text)
