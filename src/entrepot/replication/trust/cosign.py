"""Signatures that cosign makes with keys, judged and written. Pure.

Implements cosign's specs/SIGNATURE_SPEC.md and SIMPLE_SIGNING.md (the payload below a tag `sha256-<hex>.sig`), and as
far as keys go the sigstore bundle 0.3 that cosign 3 attaches as a referrer: DSSE 1.0 around an in-toto statement 1, or
a signature of the manifest itself. What only matters without keys is passed over: certificates, transparency log
entries and time stamps. cosign does the same when told `--insecure-ignore-tlog`.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from entrepot.errors import SignatureBroken
from entrepot.oci.digest import CANONICAL, Digest
from entrepot.oci.manifest import Manifest
from entrepot.replication.trust.keys import PublicKey, find_signer, fingerprint
from entrepot.replication.trust.strict import decode_base64, get_list, get_object, get_text, parse_object

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLES: Final = frozenset({BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3"})
STATEMENT: Final = "application/vnd.in-toto+json"
# What a statement says that is a signature and no attestation. cosign 3 takes any statement for a signature; but who
# attests, say, that an image failed a scan does not ask for it to be published.
SIGN_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_SIMPLE_TYPE: Final = "cosign container image signature"
_MAX_SIGNATURES = 10
_SHOWN_IDENTITY = 200


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed, and what name they say they signed it under: that is shown, and nothing depends on it."""

    by: str
    identity: str | None = None

    def __str__(self) -> str:
        return self.by if self.identity is None else f"{self.by}, as {self.identity}"


def verify_simple_signing(payload: bytes, signature: object, subject: Digest, keys: tuple[PublicKey, ...]) -> Signed:
    """Who signed `payload`, which must speak of `subject`; `signature` is the layer's annotation.

    Raises SignatureBroken.
    """
    if not isinstance(signature, str) or not signature:
        raise SignatureBroken("the payload has no signature beside it")
    key = _find_key(keys, decode_base64(signature, "the signature"), payload)
    critical = get_object(parse_object(payload, "the payload"), "critical", "the payload")
    if critical.get("type") != _SIMPLE_TYPE:
        raise SignatureBroken(f"the payload is of type {_shown(critical.get('type'))}, not {_SIMPLE_TYPE!r}")
    digest = get_text(get_object(critical, "image", "the payload"), "docker-manifest-digest", "the payload")
    if digest != str(subject):
        raise SignatureBroken(f"it was made for {_shown(digest)}")
    identity = critical.get("identity")
    reference = identity.get("docker-reference") if isinstance(identity, dict) else None
    return Signed(f"cosign key {fingerprint(key)}", _printable(reference) if isinstance(reference, str) else None)


def verify_bundle(content: bytes, manifest: Manifest, keys: tuple[PublicKey, ...]) -> Signed:
    """Who signed the sigstore bundle in `content`, which must speak of `manifest`. Raises SignatureBroken."""
    bundle = parse_object(content, "the bundle")
    if bundle.get("mediaType") not in BUNDLES:
        raise SignatureBroken(f"the bundle is of type {_shown(bundle.get('mediaType'))}, not {BUNDLE}")
    if "dsseEnvelope" in bundle and "messageSignature" in bundle:
        raise SignatureBroken("the bundle holds two kinds of signature")
    if "messageSignature" in bundle:
        message = get_object(bundle, "messageSignature", "the bundle")
        signature = decode_base64(get_text(message, "signature", "the bundle"), "the signature")
        key = _find_key(keys, signature, manifest.content)
    else:
        key = _verify_envelope(get_object(bundle, "dsseEnvelope", "the bundle"), manifest.digest, keys)
    return Signed(f"cosign key {fingerprint(key)}")


def _verify_envelope(envelope: dict[str, Any], subject: Digest, keys: tuple[PublicKey, ...]) -> PublicKey:
    payload_type = get_text(envelope, "payloadType", "the envelope")
    payload = decode_base64(get_text(envelope, "payload", "the envelope"), "the envelope's payload")
    signatures = get_list(envelope, "signatures", "the envelope")
    if len(signatures) > _MAX_SIGNATURES:
        raise SignatureBroken(f"the envelope has {len(signatures)} signatures, at most {_MAX_SIGNATURES} are looked at")
    message = pre_authentication(payload_type, payload)
    for entry in signatures:
        text = get_text(entry if isinstance(entry, dict) else {}, "sig", "the envelope")
        key = find_signer(keys, decode_base64(text, "the signature"), message)
        if key is not None:
            break
    else:
        raise _another_key()
    if payload_type != STATEMENT:
        raise SignatureBroken(f"the envelope holds {_shown(payload_type)}, not {STATEMENT}")
    statement = parse_object(payload, "the statement")
    if statement.get("predicateType") != SIGN_PREDICATE:
        raise SignatureBroken(f"it attests {_shown(statement.get('predicateType'))}, which is no signature")
    if statement.get("_type") != _STATEMENT_TYPE:
        raise SignatureBroken(f"the statement is of type {_shown(statement.get('_type'))}, not {_STATEMENT_TYPE}")
    for entry in get_list(statement, "subject", "the statement"):
        digests = entry.get("digest") if isinstance(entry, dict) else None
        if isinstance(digests, dict) and digests.get(subject.algorithm) == subject.hex:
            return key
    raise SignatureBroken("it was made for something else")


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature signs. Source: DSSE 1.0, protocol.md, "Signature Definition" (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def make_payload(subject: Digest, reference: str) -> bytes:
    """The payload to sign for a tag `sha256-<hex>.sig`; always the same for the same arguments."""
    document = {
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": str(subject)},
            "type": _SIMPLE_TYPE,
        },
        "optional": None,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def make_statement(subject: Digest) -> bytes:
    """The statement to sign for a bundle."""
    document = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"digest": {subject.algorithm: subject.hex}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def make_bundle(statement: bytes, signature: bytes, public_key: bytes) -> bytes:
    """The bundle around a signed statement; `public_key` is the key's SubjectPublicKeyInfo, of which a hint is made."""
    hint = base64.b64encode(hashlib.new(CANONICAL, public_key).digest()).decode()
    document = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": STATEMENT,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _find_key(keys: tuple[PublicKey, ...], signature: bytes, message: bytes) -> PublicKey:
    key = find_signer(keys, signature, message)
    if key is None:
        raise _another_key()
    return key


def _another_key() -> SignatureBroken:
    return SignatureBroken("it was made with another key, or for other bytes")


def _shown(value: object) -> str:
    return repr(_printable(value)) if isinstance(value, str) else "nothing"


def _printable(text: str) -> str:
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_SHOWN_IDENTITY])
