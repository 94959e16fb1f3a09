"""Signatures by keys: what holds, and what does not."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from entrepot.errors import SignatureBroken
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.replication.trust.cosign import (
    BUNDLE,
    SIGN_PREDICATE,
    make_payload,
    make_statement,
    verify_bundle,
    verify_simple_signing,
)
from entrepot.replication.trust.keys import fingerprint, parse_public_key
from tests.support.content import Image
from tests.support.signatures import PrivateKey, bundle_of, public_pem, sign, text_of

MANIFEST = Manifest.parse(Image().manifest)
OTHER = Manifest.parse(Image().manifest)
KEY, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RSA_KEY = rsa.generate_private_key(65537, 2048)
PAYLOAD = make_payload(MANIFEST.digest, "vendor.example.com/smm/api")
GOOD = text_of(sign(KEY, PAYLOAD))
STATEMENT = make_statement(MANIFEST.digest)
KEYS = (KEY.public_key(),)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The payload, changed, to be signed by the right key."""
    document = json.loads(PAYLOAD)
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        pytest.param(KEY, None, id="p256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), None, id="p384-sha256-of-cosign-2"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384(), id="p384-sha384-of-cosign-3"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512(), id="p521"),
        pytest.param(Ed25519PrivateKey.generate(), None, id="ed25519"),
        pytest.param(RSA_KEY, None, id="rsa"),
    ],
)
def test_a_signature_by_a_trusted_key_holds(key: PrivateKey, algorithm: hashes.HashAlgorithm | None) -> None:
    trusted = parse_public_key(public_pem(key).encode())
    signed = verify_simple_signing(
        PAYLOAD, text_of(sign(key, PAYLOAD, algorithm)), MANIFEST.digest, (STRANGER.public_key(), trusted)
    )
    assert str(signed) == f"cosign key {fingerprint(trusted)}, as vendor.example.com/smm/api"
    assert verify_bundle(bundle_of(key, STATEMENT), MANIFEST, (trusted,)).by == signed.by


@pytest.mark.parametrize(
    ("payload", "signature", "problem"),
    [
        pytest.param(PAYLOAD, text_of(sign(STRANGER, PAYLOAD)), "another key", id="stranger"),
        pytest.param(PAYLOAD, text_of(sign(RSA_KEY, PAYLOAD)), "another key", id="rsa-signature-for-an-ecdsa-key"),
        pytest.param(PAYLOAD.replace(b"smm", b"ssm"), GOOD, "another key", id="changed-payload"),
        pytest.param(PAYLOAD, text_of(b"\x30\x06\x02\x01\x01\x02\x01"), "another key", id="malformed-der"),
        pytest.param(PAYLOAD, text_of(b"\x30" * 100_000), "another key", id="huge-der"),
        pytest.param(PAYLOAD, text_of(b"\x30\x06\x02\x01\x00\x02\x01\x00"), "another key", id="zeros"),
        pytest.param(PAYLOAD, "", "no signature beside", id="empty"),
        pytest.param(PAYLOAD, None, "no signature beside", id="none"),
        pytest.param(PAYLOAD, ["x"], "no signature beside", id="list"),
        pytest.param(PAYLOAD, "%%%", "not Base64", id="not-base64"),
        pytest.param(PAYLOAD, "\u1234", "not Base64", id="not-ascii"),
    ],
)
def test_a_signature_that_does_not_hold_is_refused(payload: bytes, signature: object, problem: str) -> None:
    with pytest.raises(SignatureBroken, match=problem):
        verify_simple_signing(payload, signature, MANIFEST.digest, KEYS)


OTHER_DIGEST = json.dumps({"docker-manifest-digest": str(MANIFEST.digest)})[1:-1]


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        pytest.param(make_payload(OTHER.digest, "x"), f"made for '{OTHER.digest}'", id="other-image"),
        pytest.param(b"not json", "not JSON", id="no-json"),
        pytest.param(b"[]", "no JSON object", id="list"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        pytest.param(b'{"critical": NaN}', "not JSON", id="nan"),
        pytest.param(b"{}", "has no critical", id="empty"),
        pytest.param(changed(lambda d: d["critical"].pop("image")), "has no image", id="no-image"),
        pytest.param(changed(lambda d: d["critical"].update(type="atomic container signature")), "of type", id="type"),
        pytest.param(
            changed(lambda d: d["critical"]["image"].update({"docker-manifest-digest": 7})),
            "has no docker",
            id="number",
        ),
        pytest.param(
            make_payload(OTHER.digest, "x").replace(b'"image":{', f'"image":{{{OTHER_DIGEST},'.encode()),
            "occurs twice",
            id="two-digests",
        ),
    ],
)
def test_what_the_right_key_signed_must_speak_of_the_manifest(payload: bytes, problem: str) -> None:
    with pytest.raises(SignatureBroken, match=problem):
        verify_simple_signing(payload, text_of(sign(KEY, payload)), MANIFEST.digest, KEYS)


def test_the_identity_is_shown_without_what_could_deceive() -> None:
    payload = changed(lambda d: d["critical"]["identity"].update({"docker-reference": "a\x1b[31m" + "b" * 999}))
    signed = verify_simple_signing(payload, text_of(sign(KEY, payload)), MANIFEST.digest, KEYS)
    assert signed.identity is not None
    assert signed.identity.startswith("a?[31m")
    assert len(signed.identity) == 200


def statement(**changes: Any) -> bytes:
    return json.dumps(json.loads(STATEMENT) | changes).encode()


@pytest.mark.parametrize(
    ("bundle", "problem"),
    [
        pytest.param(bundle_of(STRANGER, STATEMENT), "another key", id="stranger"),
        pytest.param(bundle_of(RSA_KEY, STATEMENT), "another key", id="rsa-signature-for-an-ecdsa-key"),
        pytest.param(bundle_of(KEY, make_statement(OTHER.digest)), "made for something else", id="other-image"),
        pytest.param(
            bundle_of(KEY, statement(predicateType="https://cosign.sigstore.dev/attestation/v1")),
            "attests .*, which is no signature",
            id="attestation",
        ),
        pytest.param(bundle_of(KEY, statement(_type="https://in-toto.io/Statement/v9")), "statement is of", id="type"),
        pytest.param(bundle_of(KEY, statement(subject=[])), "made for something else", id="no-subject"),
        pytest.param(bundle_of(KEY, statement(subject={})), "has no subject", id="subject-mapping"),
        pytest.param(bundle_of(KEY, statement(subject=["x", {"digest": 7}])), "something else", id="subject-nonsense"),
        pytest.param(bundle_of(KEY, STATEMENT, payloadType="text/plain"), "holds 'text/plain'", id="payload-type"),
        pytest.param(bundle_of(KEY, STATEMENT, payload=text_of(statement(x=1))), "another key", id="other-payload"),
        pytest.param(bundle_of(KEY, STATEMENT, payload=7), "has no payload", id="payload-number"),
        pytest.param(bundle_of(KEY, STATEMENT, signatures=[]), "another key", id="no-signature"),
        pytest.param(bundle_of(KEY, STATEMENT, signatures=["x"]), "has no sig", id="signature-text"),
        pytest.param(bundle_of(KEY, STATEMENT, signatures=[{"sig": ""}] * 11), "11 signatures", id="too-many"),
        pytest.param(b"{}", "of type nothing", id="empty"),
        pytest.param(json.dumps({"mediaType": BUNDLE}).encode(), "has no dsseEnvelope", id="nothing-in-it"),
        pytest.param(
            json.dumps({"mediaType": BUNDLE, "dsseEnvelope": {}, "messageSignature": {}}).encode(),
            "two kinds",
            id="two-kinds",
        ),
    ],
)
def test_a_bundle_that_does_not_hold_is_refused(bundle: bytes, problem: str) -> None:
    with pytest.raises(SignatureBroken, match=problem):
        verify_bundle(bundle, MANIFEST, KEYS)


def test_a_bundle_may_sign_the_manifest_itself() -> None:
    def bundle(signature: bytes) -> bytes:
        return json.dumps({"mediaType": BUNDLE, "messageSignature": {"signature": text_of(signature)}}).encode()

    assert verify_bundle(bundle(sign(KEY, MANIFEST.content)), MANIFEST, KEYS).by.startswith("cosign key sha256:")
    with pytest.raises(SignatureBroken, match="another key"):
        verify_bundle(bundle(sign(KEY, OTHER.content)), MANIFEST, KEYS)


def test_whatever_is_changed_in_a_bundle_it_is_refused_or_holds() -> None:
    content = bundle_of(KEY, STATEMENT)
    changes = random.Random(13)
    refused = 0
    for _ in range(600):
        at = changes.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ (1 << changes.randrange(8))]) + content[at + 1 :]
        try:
            verify_bundle(changed, MANIFEST, KEYS)
        except SignatureBroken:
            refused += 1
    assert refused > 400


def test_what_is_signed_is_always_the_same() -> None:
    assert make_payload(MANIFEST.digest, "x") == make_payload(Digest.parse(str(MANIFEST.digest)), "x")
    assert json.loads(STATEMENT)["predicateType"] == SIGN_PREDICATE


def pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", id="nonsense"),
        pytest.param(pem(rsa.generate_private_key(65537, 1024)), id="short-rsa"),
        pytest.param(pem(ec.generate_private_key(ec.SECP256K1())), id="other-curve"),
        pytest.param(pem(X25519PrivateKey.generate()), id="key-that-cannot-sign"),
    ],
)
def test_a_key_that_nothing_can_be_judged_by_is_refused(content: bytes) -> None:
    with pytest.raises(SignatureBroken):
        parse_public_key(content)
