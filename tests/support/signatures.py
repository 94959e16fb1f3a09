"""Signatures as cosign and notation make them, and as nobody should."""

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import cosign_tags
from entrepot.replication.trust import cosign, notation
from tests.support.content import descriptor
from tests.support.hostile import HostileRegistry

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SCHEME = "io.cncf.notary.signingScheme"
EXPIRY = "io.cncf.notary.expiry"


def sign(key: PrivateKey, message: bytes, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
    """A signature as cosign makes it; with SHA-256 unless it says otherwise."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(message)
    algorithm = algorithm or hashes.SHA256()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), algorithm)
    return key.sign(message, ec.ECDSA(algorithm))


def public_pem(key: PrivateKey) -> str:
    """The public half, as in cosign.pub."""
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def private_pem(key: PrivateKey, password: bytes = b"") -> bytes:
    """A key file as OpenSSL writes it."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def text_of(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode()


def bundle_of(key: PrivateKey, statement: bytes, **changes: Any) -> bytes:
    """A bundle around a statement; `changes` replace fields of its envelope."""
    message = cosign.pre_authentication(changes.get("payloadType", cosign.STATEMENT), statement)
    document = json.loads(cosign.make_bundle(statement, sign(key, message), b""))
    document["dsseEnvelope"] |= changes
    return json.dumps(document).encode()


def put_simple_signing(
    registry: HostileRegistry, repository: str, signed: list[tuple[bytes, str]], subject: Digest
) -> str:
    """Serve payloads and their signatures under cosign's tag; answers the manifest's digest."""
    layers = []
    for payload, signature in signed:
        registry.blobs[str(Digest.of(payload))] = payload
        layers.append(descriptor(cosign.SIMPLE_SIGNING, payload) | {"annotations": {cosign.SIGNATURE: signature}})
    registry.blobs[str(Digest.of(b"{}"))] = b"{}"
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": layers,
    }
    tag = cosign_tags(subject)[0].value
    if tag in registry.tags[repository]:
        registry.tags[repository].remove(tag)
    return registry.put_manifest(repository, json.dumps(document).encode(), media_types.OCI_MANIFEST, tag)


def sign_simply(registry: HostileRegistry, repository: str, subject: Digest, key: PrivateKey) -> str:
    """Serve a good signature of a manifest; answers the digest of the signature's manifest."""
    payload = cosign.make_payload(subject, f"vendor.example.com/{repository}")
    return put_simple_signing(registry, repository, [(payload, text_of(sign(key, payload)))], subject)


def put_referrer(
    registry: HostileRegistry, repository: str, subject: Manifest, content: bytes, media_type: str, **changes: Any
) -> str:
    """Serve a referrer with one layer; answers its digest."""
    for blob in (content, b"{}"):
        registry.blobs[str(Digest.of(blob))] = blob
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": media_type,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [descriptor(media_type, content)],
        "subject": {"mediaType": subject.media_type, "digest": str(subject.digest), "size": subject.size},
    }
    content = json.dumps(document | changes).encode()
    return registry.put_manifest(repository, content, media_types.OCI_MANIFEST)


@dataclass
class Certificate:
    """A certificate with its key, and those above it."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    certificate: x509.Certificate
    above: "list[x509.Certificate]" = field(default_factory=list)

    @property
    def pem(self) -> str:
        """Itself, in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def chain(self) -> list[bytes]:
        """Itself and those above, in DER."""
        return [one.public_bytes(serialization.Encoding.DER) for one in (self.certificate, *self.above)]


def make_certificate(
    name: str,
    issuer: Certificate | None = None,
    *,
    is_authority: bool = False,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    usages: list[x509.ObjectIdentifier] | None = None,
    digital_signature: bool = True,
    valid: tuple[datetime, datetime] = (NOW - 10 * DAY, NOW + 10 * DAY),
    path_length: int | None = None,
    extra: x509.ExtensionType | None = None,
) -> Certificate:
    """A certificate, signed by its issuer or itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"), x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer else key
    flags = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
            "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(
            x509.KeyUsage(
                digital_signature=digital_signature and not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                **flags,
            ),
            critical=True,
        )
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    else:
        usages = [ExtendedKeyUsageOID.CODE_SIGNING] if usages is None else usages
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    above = [issuer.certificate, *issuer.above] if issuer else []
    return Certificate(key, builder.sign(signer, hashes.SHA256()), above)


_NAMES = {"PS256": -37, "PS384": -38, "PS512": -39, "ES256": -7, "ES384": -35, "ES512": -36}
_HASHES: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
_RSA_HASHES: dict[int, hashes.HashAlgorithm] = {2048: hashes.SHA256(), 3072: hashes.SHA384(), 4096: hashes.SHA512()}


def _algorithm(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[str, hashes.HashAlgorithm]:
    chosen = _RSA_HASHES[key.key_size] if isinstance(key, rsa.RSAPrivateKey) else _HASHES[key.key_size]
    kind = "PS" if isinstance(key, rsa.RSAPrivateKey) else "ES"
    return f"{kind}{chosen.digest_size * 8}", chosen


def _sign_raw(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, message: bytes) -> bytes:
    _, algorithm = _algorithm(key)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PSS(padding.MGF1(algorithm), algorithm.digest_size), algorithm)
    half = (key.key_size + 7) // 8
    return b"".join(part.to_bytes(half) for part in decode_dss_signature(key.sign(message, ec.ECDSA(algorithm))))


def payload_of(manifest: Manifest, **changes: Any) -> bytes:
    """What notation signs."""
    target = {"mediaType": manifest.media_type, "digest": str(manifest.digest), "size": manifest.size}
    return json.dumps({"targetArtifact": target | changes}).encode()


def _url64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def jws(by: Certificate, payload: bytes, *, chain: list[bytes] | None = None, **changes: Any) -> bytes:
    """A JWS envelope; `changes` replace protected headers, None takes one away."""
    headers = {
        "alg": _algorithm(by.key)[0],
        "crit": [SCHEME],
        "cty": "application/vnd.cncf.notary.payload.v1+json",
        SCHEME: "notary.x509",
        "io.cncf.notary.signingTime": NOW.isoformat(),
    } | changes
    protected = json.dumps({name: value for name, value in headers.items() if value is not None}).encode()
    signed = f"{_url64(protected)}.{_url64(payload)}"
    return json.dumps(
        {
            "payload": _url64(payload),
            "protected": _url64(protected),
            "header": {"x5c": [text_of(one) for one in by.chain if chain is None] or [text_of(o) for o in chain or []]},
            "signature": _url64(_sign_raw(by.key, signed.encode())),
        }
    ).encode()


def cose(by: Certificate, payload: bytes, *, chain: list[bytes] | None = None, **changes: Any) -> bytes:
    """A COSE envelope; `changes` replace protected headers, by the names that JWS has for them."""
    numbers = {"alg": 1, "crit": 2, "cty": 3}
    headers: dict[Any, Any] = {
        "alg": _NAMES[_algorithm(by.key)[0]],
        "crit": [SCHEME],
        "cty": "application/vnd.cncf.notary.payload.v1+json",
        SCHEME: "notary.x509",
    } | changes
    protected = cbor2.dumps({numbers.get(name, name): value for name, value in headers.items() if value is not None})
    signature = _sign_raw(by.key, cbor2.dumps(["Signature1", protected, b"", payload]))
    certificates = by.chain if chain is None else chain
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {33: certificates}, payload, signature]))


ENVELOPES = {notation.JWS: jws, notation.COSE: cose}
