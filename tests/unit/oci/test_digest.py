import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import DigestInvalid
from entrepot.oci.digest import Digest

SHA256 = "a" * 64
SHA512 = "b" * 128


@pytest.mark.parametrize("text", [f"sha256:{SHA256}", f"sha512:{SHA512}"])
def test_prints_what_it_parsed(text: str) -> None:
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("sha256", id="no hex"),
        pytest.param(SHA256, id="no algorithm"),
        pytest.param(f"md5:{'a' * 32}", id="unknown algorithm"),
        pytest.param(f"SHA256:{SHA256}", id="upper-case algorithm"),
        pytest.param(f"sha256:{SHA256.upper()}", id="upper-case hex"),
        pytest.param(f"sha256:{SHA256[:-1]}", id="too short"),
        pytest.param(f"sha256:{SHA256}a", id="too long"),
        pytest.param(f"sha512:{SHA256}", id="length of the other algorithm"),
        pytest.param(f"sha256:{SHA256}\n", id="line feed behind"),
        pytest.param(f"sha256:{'٣' * 64}", id="digits of another script"),
        pytest.param(f"sha256:../../{'a' * 58}", id="path"),
    ],
)
def test_refuses_what_is_no_digest(text: str) -> None:
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@given(st.binary(max_size=2000), st.sampled_from(["sha256", "sha512"]))
def test_is_of_exactly_its_content(content: bytes, algorithm: str) -> None:
    digest = Digest.of(content, algorithm)
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
    assert Digest.parse(str(digest)) == digest
    assert digest.is_of(content)
    assert not digest.is_of(content + b"x")


@given(st.text(max_size=200))
def test_never_fails_in_another_way(text: str) -> None:
    with contextlib.suppress(DigestInvalid):
        assert str(Digest.parse(text)) == text
