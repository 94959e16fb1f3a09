"""Keys in files: which are taken, and what is said of others."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nacl.secret import SecretBox

from entrepot.errors import RuleInvalid
from entrepot.replication.trust.keys import is_signed
from entrepot.replication.trust.signers import open_signer
from entrepot.replication.trust.spec import SignSpec
from tests.support.signatures import PrivateKey, private_pem

P256 = ec.generate_private_key(ec.SECP256R1())


def encrypt(key: PrivateKey, password: bytes, **changes: Any) -> bytes:
    """As cosign does, at less cost."""
    salt, nonce = b"s" * 32, b"n" * 24
    secret = hashlib.scrypt(password, salt=salt, n=1024, r=8, p=1, dklen=32)
    content = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    sealed = SecretBox(secret).encrypt(content, nonce).ciphertext
    document = {
        "kdf": {"name": "scrypt", "params": {"N": 1024, "r": 8, "p": 1}, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(sealed).decode(),
    } | changes
    block = base64.encodebytes(json.dumps(document).encode()).decode()
    kind = "ENCRYPTED SIGSTORE PRIVATE KEY"
    return f"-----BEGIN {kind}-----\n{block}-----END {kind}-----\n".encode()


@pytest.mark.parametrize(
    ("content", "password", "key"),
    [
        pytest.param(private_pem(P256), "", P256, id="pem"),
        pytest.param(private_pem(P256, b"pw"), "pw", P256, id="encrypted-pem"),
        pytest.param(encrypt(P256, b"pw"), "pw", P256, id="cosign"),
        pytest.param(encrypt(P256, b""), "", P256, id="cosign-without-password"),
        pytest.param(encrypt(P256, b"pw").replace(b"SIGSTORE", b"COSIGN"), "pw", P256, id="cosign-1"),
        *[
            pytest.param(private_pem(key), "", key, id=type(key).__name__)
            for key in (rsa.generate_private_key(65537, 2048), Ed25519PrivateKey.generate())
        ],
    ],
)
async def test_a_key_file_signs(tmp_path: Path, content: bytes, password: str, key: PrivateKey) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "password").write_text(f"{password}\n")
    spec = SignSpec(str(tmp_path / "key"), str(tmp_path / "password") if password else None)
    async with open_signer(spec, "rules.smm.sign") as signer:
        assert signer.public_key == key.public_key()
        assert is_signed(key.public_key(), await signer.sign(b"message"), b"message")


X25519 = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("content", "password", "problem"),
    [
        pytest.param(b"", None, "holds no private key", id="empty"),
        pytest.param(b"nonsense", None, "holds no private key", id="nonsense"),
        pytest.param(private_pem(P256, b"pw"), None, "Password was not given", id="password-missing"),
        pytest.param(private_pem(P256, b"pw"), "other", "its password is another", id="password-wrong"),
        pytest.param(private_pem(P256), "pw", "Password was given", id="password-too-many"),
        pytest.param(encrypt(P256, b"pw"), "other", "encrypted with another password", id="cosign-password-wrong"),
        pytest.param(encrypt(P256, b"pw"), None, "encrypted with another password", id="cosign-password-missing"),
        pytest.param(encrypt(P256, b"pw", cipher={"name": "rot13"}), "pw", "holds no private key", id="other-cipher"),
        pytest.param(
            encrypt(P256, b"pw", kdf={"name": "scrypt", "params": {"N": 2**30, "r": 8, "p": 1}, "salt": ""}),
            "pw",
            "holds no private key",
            id="costly-derivation",
        ),
        pytest.param(private_pem(ec.generate_private_key(ec.SECP384R1())), None, "take P-256", id="curve"),
        pytest.param(private_pem(rsa.generate_private_key(65537, 1024)), None, "of another kind", id="short-rsa"),
        pytest.param(X25519, None, "kind that does not sign", id="no-signing-key"),
    ],
)
async def test_a_key_file_that_cannot_be_used_is_named_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, password: str | None, problem: str
) -> None:
    (tmp_path / "key").write_bytes(content)
    if password is not None:
        monkeypatch.setenv("SIGNING_PASSWORD", password)
    spec = SignSpec(str(tmp_path / "key"), None, "SIGNING_PASSWORD" if password is not None else None)
    with pytest.raises(RuleInvalid, match=problem) as refusal:
        async with open_signer(spec, "rules.smm.sign"):
            pass
    assert str(refusal.value).startswith(f"rules.smm.sign.key_file: {tmp_path}/key")


async def test_a_file_or_password_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(private_pem(P256))
    for spec, problem in (
        (SignSpec(str(tmp_path / "none")), "sign.key_file: .*No such file"),
        (SignSpec(str(tmp_path / "key"), password_file=str(tmp_path / "none")), "sign.password_file: .*No such file"),
        (SignSpec(str(tmp_path / "key"), password_env="NO_SUCH_VARIABLE"), "sign.password_env: .*NO_SUCH_VARIABLE"),
    ):
        with pytest.raises(RuleInvalid, match=problem):
            async with open_signer(spec, "rules.smm.sign"):
                pass
