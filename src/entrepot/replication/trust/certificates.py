"""Chains of certificates that sign artifacts. Pure, over `cryptography`'s path validation.

Implements the Notary Project's "Signature Specification", section "Certificate Requirements", on top of RFC 5280 as
`cryptography.x509.verification` checks it: signatures, names, validity, path length, name constraints, critical
extensions. Whether a certificate was revoked is not asked.
"""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from entrepot.errors import SignatureBroken

# "... MUST NOT contain any of these" beside codeSigning.
_FOREIGN_USAGES = frozenset(
    {
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.EMAIL_PROTECTION,
        ExtendedKeyUsageOID.TIME_STAMPING,
        ExtendedKeyUsageOID.OCSP_SIGNING,
    }
)
_MAX_CHAIN = 8
_SHOWN_PROBLEM = 160


def parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in PEM blocks. Raises SignatureBroken when there is none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise SignatureBroken("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error


def parse_chain(certificates: list[bytes]) -> list[x509.Certificate]:
    """A chain in DER, the signer's own first. Raises SignatureBroken."""
    if not 0 < len(certificates) <= _MAX_CHAIN:
        raise SignatureBroken(f"it comes with {len(certificates)} certificates, not 1 to {_MAX_CHAIN}")
    try:
        chain = [x509.load_der_x509_certificate(content) for content in certificates]
        for certificate in chain:  # the library reads these late, and has an error of its own for each of them
            _ = certificate.public_key(), certificate.subject, certificate.extensions
    except Exception as error:
        raise SignatureBroken("its certificates cannot be read") from error
    return chain


def verify_chain(chain: list[x509.Certificate], trusted: tuple[x509.Certificate, ...], at: datetime) -> None:
    """Raises SignatureBroken unless `chain` leads to a trusted certificate, and may sign artifacts at that time."""
    own = ExtensionPolicy.permit_all()
    own = own.require_present(x509.KeyUsage, Criticality.CRITICAL, _verify_key_usage)
    own = own.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _verify_extended_usage)
    own = own.may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _verify_no_authority)
    authority = ExtensionPolicy.webpki_defaults_ca()
    authority = authority.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _verify_authority_usage)
    builder = PolicyBuilder().store(Store(list(trusted))).time(at).max_chain_depth(_MAX_CHAIN)
    verifier = builder.extension_policies(ee_policy=own, ca_policy=authority).build_client_verifier()
    try:
        verifier.verify(chain[0], chain[1:])
    except (VerificationError, ValueError, UnsupportedAlgorithm) as error:
        problem = _explain(chain[0], at) or f"leads to no trusted certificate ({str(error)[:_SHOWN_PROBLEM]})"
        raise SignatureBroken(f"its certificate {show_subject(chain[0])} {problem}") from error


def show_subject(certificate: x509.Certificate) -> str:
    """The subject's name, for people."""
    try:
        text = certificate.subject.rfc4514_string()
    except ValueError:
        text = "without a readable name"
    return "".join(character if character.isprintable() else "?" for character in text[:_SHOWN_PROBLEM])


def _explain(certificate: x509.Certificate, at: datetime) -> str | None:
    """The most likely problem in plain words, None when it is another."""
    if at > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}; sign anew with one that is valid"
    if at < certificate.not_valid_before_utc:
        return f"is valid only from {certificate.not_valid_before_utc:%Y-%m-%d} on"
    return None


def _verify_key_usage(_: Policy, __: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature:
        raise ValueError("its key usage is not digitalSignature")


def _verify_extended_usage(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and (ExtendedKeyUsageOID.CODE_SIGNING not in usage or _FOREIGN_USAGES & set(usage)):
        raise ValueError("its extended key usage is not codeSigning alone")


def _verify_authority_usage(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    allowed = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if usage is not None and not allowed & set(usage):
        raise ValueError("an authority's extended key usage does not allow codeSigning")


def _verify_no_authority(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("it is an authority's own certificate")
