"""Signatures of the Notary Project, as notation makes them, judged. Pure.

Implements its "Signature Specification" 1.1 with both envelopes, JWS (RFC 7515, JSON flattened) and COSE (RFC 9052,
COSE_Sign1), and of "Trust Store and Trust Policy" what can be told from the envelope alone: integrity, authenticity and
expiry. A certificate must be valid now, or have been when a trusted authority stamped the signature. Revocation and
verification plugins are not judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from entrepot.errors import SignatureBroken
from entrepot.oci.manifest import Manifest
from entrepot.replication.trust.certificates import parse_chain, show_subject, verify_chain
from entrepot.replication.trust.cosign import Signed
from entrepot.replication.trust.strict import (
    decode_base64,
    decode_base64url,
    get_list,
    get_object,
    get_text,
    parse_object,
)
from entrepot.replication.trust.timestamps import verify_timestamp

SIGNATURE: Final = "application/vnd.cncf.notary.signature"
JWS: Final = "application/jose+json"
COSE: Final = "application/cose"
_PAYLOAD: Final = "application/vnd.cncf.notary.payload.v1+json"
_SCHEME: Final = "io.cncf.notary.signingScheme"
_EXPIRY: Final = "io.cncf.notary.expiry"
_TIMESTAMP: Final = "io.cncf.notary.timestampSignature"
_UNDERSTOOD: Final = frozenset({_SCHEME, _EXPIRY})

# "Signature Algorithm Requirements": the key alone decides, and the header must say the same. COSE: RFC 8152 and 8230.
_RSA: Final[dict[int, tuple[str, int, hashes.HashAlgorithm]]] = {
    2048: ("PS256", -37, hashes.SHA256()),
    3072: ("PS384", -38, hashes.SHA384()),
    4096: ("PS512", -39, hashes.SHA512()),
}
_CURVES: Final[dict[str, tuple[str, int, hashes.HashAlgorithm]]] = {
    "secp256r1": ("ES256", -7, hashes.SHA256()),
    "secp384r1": ("ES384", -35, hashes.SHA384()),
    "secp521r1": ("ES512", -36, hashes.SHA512()),
}
_COSE_ALGORITHM, _COSE_CRITICAL, _COSE_CONTENT_TYPE, _COSE_CHAIN = 1, 2, 3, 33
_COSE_SIGN1 = 18
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class _Envelope:
    """What both kinds of envelope say; `algorithm` as they name it, `headers` those that are signed."""

    algorithm: object
    critical: list[Any]
    content_type: object
    headers: Mapping[Any, Any]
    payload: bytes
    signed: bytes
    signature: bytes
    chain: list[bytes]
    timestamp: bytes | None


@dataclass(frozen=True, slots=True)
class Roots:
    """Certificates that may sign, and those of authorities whose time stamps are believed."""

    signers: tuple[x509.Certificate, ...] = ()
    timestamps: tuple[x509.Certificate, ...] = ()


def verify_envelope(content: bytes, media_type: str, manifest: Manifest, roots: Roots, now: datetime) -> Signed:
    """Who signed `content`, an envelope which must speak of `manifest`. Raises SignatureBroken."""
    envelope = _parse_cose(content) if media_type == COSE else _parse_jws(content)
    chain = parse_chain(envelope.chain)
    _verify_signature(envelope, chain[0])
    _verify_certificates(envelope, chain, roots, now)
    _verify_headers(envelope, now)
    artifact = get_object(parse_object(envelope.payload, "the payload"), "targetArtifact", "the payload")
    stated = artifact.get("digest"), artifact.get("size"), artifact.get("mediaType")
    if stated != (str(manifest.digest), manifest.size, manifest.media_type):
        raise SignatureBroken(f"it was made for {str(stated[0])[:80]!r}, of another digest, size or media type")
    return Signed(f"notation certificate {show_subject(chain[0])}")


def _verify_certificates(envelope: _Envelope, chain: list[x509.Certificate], roots: Roots, now: datetime) -> None:
    try:
        verify_chain(chain, roots.signers, now)
    except SignatureBroken:
        if envelope.timestamp is None or not roots.timestamps:
            raise
        span = verify_timestamp(envelope.timestamp, envelope.signature, roots.timestamps)
        for moment in (span.earliest, span.latest):
            verify_chain(chain, roots.signers, moment)


def _verify_signature(envelope: _Envelope, certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    known = None
    if isinstance(key, rsa.RSAPublicKey):
        known = _RSA.get(key.key_size)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        known = _CURVES.get(key.curve.name)
    if known is None:
        raise SignatureBroken("its certificate holds a key of a kind or size that must not sign artifacts")
    if envelope.algorithm not in known[:2] or isinstance(envelope.algorithm, bool):
        raise SignatureBroken(f"its algorithm is {str(envelope.algorithm)[:40]!r}, but its key takes {known[0]}")
    algorithm = known[2]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            key.verify(envelope.signature, envelope.signed, pss, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(_der_of(envelope.signature, key), envelope.signed, ec.ECDSA(algorithm))
    except (InvalidSignature, ValueError) as error:
        raise SignatureBroken("it does not hold: it was changed, or made with another key") from error


def _der_of(signature: bytes, key: ec.EllipticCurvePublicKey) -> bytes:
    """An ECDSA signature as `cryptography` takes it. Source: RFC 7518, section 3.4; RFC 9053, section 2.1."""
    half = (key.key_size + 7) // 8
    if len(signature) != 2 * half:
        raise SignatureBroken(f"its signature has {len(signature)} bytes, not {2 * half}")
    return encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))


def _verify_headers(envelope: _Envelope, now: datetime) -> None:
    if envelope.content_type != _PAYLOAD:
        raise SignatureBroken(f"its payload is {str(envelope.content_type)[:80]!r}, not {_PAYLOAD}")
    for name in envelope.critical:
        if not isinstance(name, str) or name not in _UNDERSTOOD:
            raise SignatureBroken(f"it depends on {str(name)[:80]!r}, which is not judged here")
        if name not in envelope.headers:
            raise SignatureBroken(f"it depends on {name}, which it does not have")
    if _SCHEME not in envelope.critical or envelope.headers[_SCHEME] != "notary.x509":
        scheme = envelope.headers.get(_SCHEME)
        raise SignatureBroken(f"its signing scheme is {str(scheme)[:80]!r}; notary.x509 is judged here")
    if _EXPIRY in envelope.headers:
        expiry = _moment(envelope.headers[_EXPIRY])
        if now >= expiry:
            raise SignatureBroken(f"it expired on {expiry:%Y-%m-%d %H:%M}; sign anew")


def _moment(value: object) -> datetime:
    """A time in a header: RFC 3339 in JWS, tag 1 in COSE. Raises SignatureBroken."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise SignatureBroken("its expiry is no point in time")
    return moment.astimezone(UTC)


def _parse_jws(content: bytes) -> _Envelope:
    document = parse_object(content, "the envelope")
    protected, payload = (get_text(document, name, "the envelope") for name in ("protected", "payload"))
    headers = parse_object(decode_base64url(protected, "its protected header"), "its protected header")
    unprotected = get_object(document, "header", "the envelope")
    certificates = get_list(unprotected, "x5c", "the envelope")
    timestamp = unprotected.get(_TIMESTAMP)
    chain = [decode_base64(text if isinstance(text, str) else "!", "a certificate") for text in certificates]
    return _Envelope(
        algorithm=get_text(headers, "alg", "its protected header"),
        critical=get_list(headers, "crit", "its protected header"),
        content_type=headers.get("cty"),
        headers=headers,
        payload=decode_base64url(payload, "its payload"),
        signed=f"{protected}.{payload}".encode(),
        signature=decode_base64url(get_text(document, "signature", "the envelope"), "its signature"),
        chain=chain,
        timestamp=decode_base64(timestamp, "its time stamp") if isinstance(timestamp, str) else None,
    )


def _parse_cose(content: bytes) -> _Envelope:
    document = _parse_cbor(content)
    if not isinstance(document, cbor2.CBORTag) or document.tag != _COSE_SIGN1:
        raise SignatureBroken("the envelope is no COSE_Sign1")
    match document.value:  # inside a tag, the library makes tuples and frozen mappings
        case [bytes() as protected, Mapping() as unprotected, bytes() as payload, bytes() as signature]:
            pass
        case _:
            raise SignatureBroken("the envelope is no COSE_Sign1")
    headers = _parse_cbor(protected)
    if not isinstance(headers, Mapping) or not isinstance(headers.get(_COSE_CRITICAL), list):
        raise SignatureBroken("its protected header names nothing critical")
    chain = unprotected.get(_COSE_CHAIN)
    certificates = [one for one in (chain if isinstance(chain, list | tuple) else [chain]) if isinstance(one, bytes)]
    timestamp = unprotected.get(_TIMESTAMP)
    return _Envelope(
        algorithm=headers.get(_COSE_ALGORITHM),
        critical=headers[_COSE_CRITICAL],
        content_type=headers.get(_COSE_CONTENT_TYPE),
        headers=headers,
        payload=payload,
        # RFC 9052, section 4.4: Sig_structure, without data from outside.
        signed=cbor2.dumps(["Signature1", protected, b"", payload]),
        signature=signature,
        chain=certificates,
        timestamp=timestamp if isinstance(timestamp, bytes) else None,
    )


def _parse_cbor(content: bytes) -> Any:
    try:
        return cbor2.loads(content, max_depth=_MAX_DEPTH, allow_indefinite=False, allow_duplicate_keys=False)
    except Exception as error:
        # Among the tags that the library decodes are dates and regular expressions, which raise what they like.
        raise SignatureBroken(f"the envelope is not CBOR with one meaning ({type(error).__name__})") from error
