"""Signatures under certificates: what holds, and what does not."""

import json
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from entrepot.errors import SignatureBroken
from entrepot.oci.manifest import Manifest
from entrepot.replication.trust.certificates import parse_certificates
from entrepot.replication.trust.notation import COSE, JWS, Roots, verify_envelope
from entrepot.replication.trust.strict import decode_base64url
from tests.support.content import Image
from tests.support.signatures import (
    DAY,
    ENVELOPES,
    EXPIRY,
    NOW,
    SCHEME,
    Certificate,
    cose,
    jws,
    make_certificate,
    payload_of,
)

MANIFEST = Manifest.parse(Image().manifest)
OTHER = Manifest.parse(Image().manifest)
ROOT = make_certificate("root", is_authority=True)
MIDDLE = make_certificate("middle", ROOT, is_authority=True, path_length=0)
LEAF = make_certificate("vendor", MIDDLE)
STRANGER = make_certificate("stranger", make_certificate("other root", is_authority=True))
Make = Callable[..., bytes]


def verify(content: bytes, kind: str, *trusted: Certificate) -> str:
    roots = tuple(one.certificate for one in trusted or (ROOT,))
    return str(verify_envelope(content, kind, MANIFEST, Roots(roots), NOW))


@pytest.fixture(params=[JWS, COSE])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def make(kind: str) -> Make:
    return ENVELOPES[kind]


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="p256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="p384"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), id="p521"),
        pytest.param(rsa.generate_private_key(65537, 2048), id="rsa2048"),
        pytest.param(rsa.generate_private_key(65537, 3072), id="rsa3072"),
    ],
)
def test_a_signature_under_a_trusted_root_holds(kind: str, make: Make, key: Any) -> None:
    leaf = make_certificate("vendor", MIDDLE, key=key)
    assert verify(make(leaf, payload_of(MANIFEST)), kind) == "notation certificate CN=vendor,C=CH"


@pytest.mark.parametrize("trusted", [ROOT, MIDDLE, LEAF], ids=["root", "middle", "leaf"])
def test_any_certificate_of_the_chain_may_be_the_trusted_one(kind: str, make: Make, trusted: Certificate) -> None:
    assert verify(make(LEAF, payload_of(MANIFEST)), kind, trusted)
    alone = make_certificate("alone")
    assert verify(make(alone, payload_of(MANIFEST)), kind, alone)


@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        pytest.param(STRANGER, "leads to no trusted certificate", id="stranger"),
        pytest.param(
            make_certificate("old", MIDDLE, valid=(NOW - 9 * DAY, NOW - DAY)), "expired on 2026-05-31", id="expired"
        ),
        pytest.param(
            make_certificate("new", MIDDLE, valid=(NOW + DAY, NOW + 9 * DAY)), "valid only from 2026-06-02", id="early"
        ),
        pytest.param(
            make_certificate("tls", MIDDLE, usages=[ExtendedKeyUsageOID.SERVER_AUTH]), "codeSigning alone", id="tls"
        ),
        pytest.param(
            make_certificate(
                "both", MIDDLE, usages=[ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH]
            ),
            "codeSigning alone",
            id="code-and-tls",
        ),
        pytest.param(make_certificate("mute", MIDDLE, digital_signature=False), "digitalSignature", id="key-usage"),
        pytest.param(MIDDLE, "trusted certificate", id="an-authority-itself"),
        pytest.param(
            make_certificate("deep", make_certificate("third", MIDDLE, is_authority=True)),
            "leads to no",
            id="path-length",
        ),
        pytest.param(make_certificate("sub", make_certificate("x", MIDDLE)), "leads to no", id="issued-by-a-leaf"),
        pytest.param(
            make_certificate(
                "odd", MIDDLE, extra=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")
            ),
            "unaccounted-for critical",
            id="unknown-critical-extension",
        ),
        pytest.param(
            make_certificate("rsa", MIDDLE, key=rsa.generate_private_key(65537, 2048)),
            None,
            id="control: this one holds",
        ),
    ],
)
def test_a_certificate_that_may_not_sign_is_refused(
    kind: str, make: Make, leaf: Certificate, problem: str | None
) -> None:
    content = make(leaf, payload_of(MANIFEST))
    if problem is None:
        assert verify(content, kind)
        return
    with pytest.raises(SignatureBroken, match=problem):
        verify(content, kind)


def test_a_chain_that_was_changed_is_refused(kind: str, make: Make) -> None:
    for chain, problem in (
        ([LEAF.chain[0], ROOT.chain[0]], "leads to no"),
        ([STRANGER.chain[0], *LEAF.chain[1:]], "does not hold"),
        ([], "comes with 0 certificates"),
        ([LEAF.chain[0]] * 9, "comes with 9 certificates"),
        ([b"\x30\x03nonsense"], "cannot be read"),
    ):
        with pytest.raises(SignatureBroken, match=problem):
            verify(make(LEAF, payload_of(MANIFEST), chain=chain), kind)


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        pytest.param({"alg": "none"}, "algorithm is 'none'", id="alg-none"),
        pytest.param({"alg": "HS256"}, "algorithm is 'HS256'", id="alg-symmetric"),
        pytest.param({"alg": "PS256"}, "but its key takes ES256", id="alg-of-another-key"),
        pytest.param({"alg": "ES384"}, "but its key takes ES256", id="alg-of-another-curve"),
        pytest.param({"cty": "text/plain"}, "payload is 'text/plain'", id="content-type"),
        pytest.param({"cty": None}, "payload is 'None'", id="no-content-type"),
        pytest.param(
            {"crit": [SCHEME, "io.cncf.notary.verificationPlugin"]}, "verificationPlugin', which", id="plugin"
        ),
        pytest.param({"crit": [SCHEME, 7]}, "depends on '7', which is not judged", id="critical-number"),
        pytest.param({"crit": [SCHEME, EXPIRY]}, "which it does not have", id="critical-but-missing"),
        pytest.param({"crit": []}, "signing scheme", id="scheme-not-critical"),
        pytest.param({SCHEME: "notary.x509.signingAuthority"}, "signing scheme", id="other-scheme"),
        pytest.param({SCHEME: None, "crit": []}, "signing scheme is 'None'", id="no-scheme"),
        pytest.param({EXPIRY: "nonsense"}, "no point in time", id="expiry-nonsense"),
        pytest.param({EXPIRY: "2027-01-01T00:00:00"}, "no point in time", id="expiry-without-zone"),
    ],
)
def test_headers_that_are_not_as_they_must_be_are_refused(
    kind: str, make: Make, headers: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SignatureBroken, match=problem):
        verify(make(LEAF, payload_of(MANIFEST), **headers), kind)


def test_a_signature_that_expired_is_refused(kind: str, make: Make) -> None:
    def moment(days: int) -> Any:
        at = NOW + timedelta(days=days)
        return at.isoformat() if kind == JWS else at

    headers = {"crit": [SCHEME, EXPIRY]}
    assert verify(make(LEAF, payload_of(MANIFEST), **headers, **{EXPIRY: moment(1)}), kind)
    for critical in (headers, {}):
        with pytest.raises(SignatureBroken, match="expired on 2026-05-31"):
            verify(make(LEAF, payload_of(MANIFEST), **critical, **{EXPIRY: moment(-1)}), kind)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        pytest.param(payload_of(OTHER), "made for 'sha256:", id="other-image"),
        pytest.param(payload_of(MANIFEST, size=1), "of another digest, size", id="other-size"),
        pytest.param(payload_of(MANIFEST, mediaType="text/plain"), "of another digest, size", id="other-type"),
        pytest.param(payload_of(MANIFEST, digest=None), "made for 'None'", id="no-digest"),
        pytest.param(b"{}", "has no targetArtifact", id="empty"),
        pytest.param(b"nonsense", "not JSON", id="no-json"),
        pytest.param(payload_of(OTHER)[:-1] + b"," + payload_of(MANIFEST)[1:], "occurs twice", id="two-targets"),
    ],
)
def test_the_payload_must_speak_of_the_manifest(kind: str, make: Make, payload: bytes, problem: str) -> None:
    with pytest.raises(SignatureBroken, match=problem):
        verify(make(LEAF, payload), kind)


def test_an_envelope_that_was_changed_is_refused() -> None:
    good = json.loads(jws(LEAF, payload_of(MANIFEST)))
    headers = decode_base64url(good["protected"], "it").decode()
    for changes, problem in (
        ({"payload": json.loads(jws(LEAF, payload_of(OTHER)))["payload"]}, "does not hold"),
        ({"signature": json.loads(jws(STRANGER, payload_of(MANIFEST)))["signature"]}, "does not hold"),
        ({"signature": ""}, "signature has 0 bytes, not 64"),
        ({"signature": "A" * 86}, "does not hold"),
        ({"signature": "++//"}, "not Base64 for URLs"),
        ({"header": {}}, "has no x5c"),
        ({"header": {"x5c": [7]}}, "is not Base64"),
        ({"protected": "e30"}, "has no alg"),
        ({"protected": 7}, "has no protected"),
    ):
        with pytest.raises(SignatureBroken, match=problem):
            verify(json.dumps(good | changes).encode(), JWS)
    assert "alg" in headers
    twice = json.dumps(good)[:-1] + ', "payload": "' + good["payload"] + '"}'
    with pytest.raises(SignatureBroken, match="occurs twice"):
        verify(twice.encode(), JWS)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff", id="break"),
        pytest.param(b"\x9f" * 100_000, id="deep"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(35, "(((")), id="bad-regular-expression"),
        pytest.param(cbor2.dumps(7), id="number"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(98, [b"", {}, b"", b""])), id="other-tag"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [b"", {}, b""])), id="short"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [b"", {}, None, b""])), id="detached"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [b"", {}, b"", b""])), id="no-header"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps(7), {}, b"", b""])), id="header-number"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [b"\xa2\x01\x26\x01\x26", {}, b"", b""])), id="header-twice"),
        pytest.param(cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps({2: []}), {33: 7}, b"", b""])), id="no-chain"),
    ],
)
def test_what_is_no_cose_is_refused(content: bytes) -> None:
    with pytest.raises(SignatureBroken):
        verify(content, COSE)


def test_a_cose_envelope_that_was_changed_is_refused() -> None:
    good, other = (cbor2.loads(cose(LEAF, payload_of(manifest))).value for manifest in (MANIFEST, OTHER))
    for at in (2, 3):
        mixed = [*good[:at], other[at], *good[at + 1 :]]
        with pytest.raises(SignatureBroken, match="does not hold"):
            verify(cbor2.dumps(cbor2.CBORTag(18, mixed)), COSE)


def test_whatever_is_changed_it_is_refused_or_holds(kind: str, make: Make) -> None:
    content = make(LEAF, payload_of(MANIFEST))
    changes = random.Random(11)
    refused = 0
    for _ in range(600):
        at = changes.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ (1 << changes.randrange(8))]) + content[at + 1 :]
        try:
            verify(changed, kind)
        except SignatureBroken:
            refused += 1
    # A chain's root may change without harm: the one that is trusted is used in its place.
    assert refused > 400


def test_keys_that_the_specification_does_not_know_are_refused(kind: str, make: Make) -> None:
    leaf = make_certificate("p256", MIDDLE)
    small = make_certificate("small", MIDDLE, key=rsa.generate_private_key(65537, 2056))
    content = make(leaf, payload_of(MANIFEST), chain=small.chain)
    with pytest.raises(SignatureBroken, match="kind or size that must not sign"):
        verify(content, kind)


def test_certificates_come_from_pem() -> None:
    assert len(parse_certificates((ROOT.pem + MIDDLE.pem).encode())) == 2
    for nonsense in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"):
        with pytest.raises(SignatureBroken, match="holds no certificate"):
            parse_certificates(nonsense)
