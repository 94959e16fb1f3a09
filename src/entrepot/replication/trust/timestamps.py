"""When a signature existed, by the word of a time stamping authority. Pure, over `rfc3161_client`.

Implements the Notary Project's "Trust Store and Trust Policy", section "Timestamping", as far as the token tells: an
RFC 3161 token over the signature, made by an authority that is trusted, whose certificates were valid then.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from rfc3161_client import TimeStampResponse, VerificationError, VerifierBuilder, decode_timestamp_response

from entrepot.errors import SignatureBroken

_GRANTED = b"\x30\x03\x02\x01\x00"
_SHORT_LENGTH = 0x80
_SHOWN_PROBLEM = 120


@dataclass(frozen=True, slots=True)
class Span:
    """Between when and when something was signed."""

    earliest: datetime
    latest: datetime


def verify_timestamp(token: bytes, signature: bytes, authorities: tuple[x509.Certificate, ...]) -> Span:
    """When `signature` existed, by a token of one of these authorities. Raises SignatureBroken."""
    try:
        response = decode_timestamp_response(_sequence(_GRANTED + token))
        VerifierBuilder(roots=list(authorities)).build().verify_message(response, signature)
        return _read_span(response)
    except (ValueError, TypeError, OverflowError, VerificationError, x509.ExtensionNotFound) as error:
        raise SignatureBroken(f"its time stamp does not hold ({str(error)[:_SHOWN_PROBLEM]})") from error


def _read_span(response: TimeStampResponse) -> Span:
    stated = response.tst_info
    accuracy = stated.accuracy
    margin = timedelta()
    if accuracy is not None:
        margin = timedelta(
            seconds=accuracy.seconds, milliseconds=accuracy.millis or 0, microseconds=accuracy.micros or 0
        )
    return Span(stated.gen_time - margin, stated.gen_time + margin)


def _sequence(content: bytes) -> bytes:
    """A response in DER, which the library reads, around a token (RFC 3161, section 2.4.2)."""
    length = len(content)
    if length < _SHORT_LENGTH:
        return b"\x30" + bytes([length]) + content
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return b"\x30" + bytes([_SHORT_LENGTH + len(size)]) + size + content
