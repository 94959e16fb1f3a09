"""Public keys, and whether a signature was made with one. Pure, over `cryptography`.

Which hash goes with which key is what cosign does with keys in files: SHA-256 by its version 2, the hash that fits the
curve by its version 3.
"""

import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from entrepot.errors import SignatureBroken

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | Ed25519PublicKey

# Below 2048 a key can be broken; above 8192 it only costs time.
_LEAST_RSA_BITS, _MOST_RSA_BITS = 2048, 8192
_CURVE_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_SHOWN_HEX = 16


def parse_public_key(pem: bytes) -> PublicKey:
    """The key in a PEM block "PUBLIC KEY". Raises SignatureBroken when it is none that signatures can be judged by."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureBroken("holds no public key in PEM (-----BEGIN PUBLIC KEY-----)") from error
    return verify_usable(key)


def verify_usable(key: object) -> PublicKey:
    """`key`, if it is of a kind and size that is used here. Raises SignatureBroken."""
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_HASHES:
        return key
    if isinstance(key, rsa.RSAPublicKey) and _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS:
        return key
    raise SignatureBroken(
        f"is a key of another kind than ECDSA P-256, P-384 or P-521, Ed25519, or RSA of {_LEAST_RSA_BITS} to "
        f"{_MOST_RSA_BITS} bits"
    )


def fingerprint(key: PublicKey) -> str:
    """`sha256:` and the first digits of the SHA-256 of the key's SubjectPublicKeyInfo, to show it by."""
    content = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(content).hexdigest()[:_SHOWN_HEX]}"


def curve_hash(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    """The hash that is as long as the curve is strong."""
    return _CURVE_HASHES[key.curve.name]


def is_signed(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` was made over `message` with the private half of `key`."""
    if isinstance(key, Ed25519PublicKey):
        return _holds(lambda: key.verify(signature, message))
    if isinstance(key, rsa.RSAPublicKey):
        return _holds(lambda: key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256()))
    algorithms = {algorithm.name: algorithm for algorithm in (curve_hash(key), hashes.SHA256())}
    return any(
        _holds(lambda algorithm=algorithm: key.verify(signature, message, ec.ECDSA(algorithm)))  # type: ignore[misc]
        for algorithm in algorithms.values()
    )


def find_signer(keys: tuple[PublicKey, ...], signature: bytes, message: bytes) -> PublicKey | None:
    """The key whose private half signed `message`, None when it is none of these."""
    return next((key for key in keys if is_signed(key, signature, message)), None)


def _holds(verify: Callable[[], None]) -> bool:
    try:
        verify()
    except (InvalidSignature, ValueError):  # ValueError: not even shaped like a signature
        return False
    return True
