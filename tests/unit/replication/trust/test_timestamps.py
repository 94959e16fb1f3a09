"""Time stamps: what holds, and what does not."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from rfc3161_client import HashAlgorithm, TimestampRequestBuilder, decode_timestamp_response

from entrepot.errors import SignatureBroken
from entrepot.oci.manifest import Manifest
from entrepot.replication.trust.notation import JWS, Roots, verify_envelope
from entrepot.replication.trust.strict import decode_base64url
from entrepot.replication.trust.timestamps import verify_timestamp
from entrepot.storage.clock import utc_now
from tests.support.content import Image
from tests.support.signatures import DAY, jws, make_certificate, payload_of, text_of
from tests.support.stamps import Authority, make_authority

SIGNATURE = b"a signature"
LATER = utc_now() + 30 * DAY


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("stamps") / "authority")


def stamp(authority: Authority, signature: bytes, algorithm: HashAlgorithm = HashAlgorithm.SHA256) -> bytes:
    request = (
        TimestampRequestBuilder().data(signature).hash_algorithm(algorithm).cert_request(cert_request=True).build()
    )
    return bytes(decode_timestamp_response(authority.answer(request.as_bytes())).time_stamp_token())


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA256, HashAlgorithm.SHA512])
def test_a_stamp_says_when(authority: Authority, algorithm: HashAlgorithm) -> None:
    before = utc_now()
    span = verify_timestamp(stamp(authority, SIGNATURE, algorithm), SIGNATURE, (authority.root.certificate,))
    assert (span.latest - span.earliest).total_seconds() == 2  # one second to either side
    assert abs((span.latest - before).total_seconds()) < 30


def test_a_stamp_of_something_else_or_by_somebody_else_is_refused(authority: Authority, tmp_path: Path) -> None:
    token = stamp(authority, SIGNATURE)
    other = make_authority(tmp_path / "other")
    for signature, trusted in ((b"another", authority), (SIGNATURE, other)):
        with pytest.raises(SignatureBroken, match="its time stamp does not hold"):
            verify_timestamp(token, signature, (trusted.root.certificate,))


def test_a_stamp_that_was_changed_is_refused(authority: Authority) -> None:
    token = stamp(authority, SIGNATURE)
    changes = random.Random(7)
    variants = [b"", b"\x30", token[:-1], token[: len(token) // 2], hashlib.sha256(token).digest()]
    for _ in range(300):
        at = changes.randrange(len(token))
        variants.append(token[:at] + bytes([token[at] ^ (1 << changes.randrange(8))]) + token[at + 1 :])
    held = 0
    for variant in variants:
        try:
            verify_timestamp(variant, SIGNATURE, (authority.root.certificate,))
        except SignatureBroken:
            continue
        held += 1
    # What nothing depends on may change: the certificate of the authority's root comes along, and is not looked at.
    assert held < len(variants) / 2


def test_a_stamp_counts_only_where_the_certificate_was_valid_then(authority: Authority) -> None:
    manifest = Manifest.parse(Image().manifest)
    now = utc_now()
    for valid, is_good in (((now - DAY, now + DAY), True), ((now - 3 * DAY, now - DAY), False)):
        root = make_certificate("root", is_authority=True, valid=(now - 9 * DAY, now + 99 * DAY))
        leaf = make_certificate("vendor", root, valid=valid)
        envelope = json.loads(jws(leaf, payload_of(manifest)))
        token = stamp(authority, decode_base64url(envelope["signature"], "it"))
        envelope["header"]["io.cncf.notary.timestampSignature"] = text_of(token)
        content = json.dumps(envelope).encode()
        roots = Roots((root.certificate,), (authority.root.certificate,))
        if is_good:
            assert verify_envelope(content, JWS, manifest, roots, LATER)
        else:
            with pytest.raises(SignatureBroken, match="expired on"):
                verify_envelope(content, JWS, manifest, roots, LATER)
