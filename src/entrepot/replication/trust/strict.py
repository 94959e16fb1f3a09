"""JSON and Base64 as signed content must be: one reading only. Pure.

A name that occurs twice means one thing to one reader and another to the next, which is how signed content is made to
say what nobody signed; so it is refused, as are NaN and Infinity, which are no JSON (RFC 8259).
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from entrepot.errors import SignatureBroken


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`. Raises SignatureBroken."""
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SignatureBroken(f"{what} is not JSON with one meaning ({str(error)[:80]})") from error
    if not isinstance(document, dict):
        raise SignatureBroken(f"{what} is no JSON object")
    return document


def get_text(fields: Mapping[str, Any], name: str, what: str) -> str:
    """The text in a field. Raises SignatureBroken."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise SignatureBroken(f"{what} has no {name}")
    return value


def get_object(fields: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """The object in a field. Raises SignatureBroken."""
    value = fields.get(name)
    if not isinstance(value, dict):
        raise SignatureBroken(f"{what} has no {name}")
    return value


def get_list(fields: Mapping[str, Any], name: str, what: str) -> list[Any]:
    """The list in a field. Raises SignatureBroken."""
    value = fields.get(name)
    if not isinstance(value, list):
        raise SignatureBroken(f"{what} has no {name}")
    return value


def decode_base64(text: str, what: str) -> bytes:
    """The bytes that standard Base64 spells. Raises SignatureBroken."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error) as error:
        raise SignatureBroken(f"{what} is not Base64") from error


def decode_base64url(text: str, what: str) -> bytes:
    """The bytes that Base64 for URLs without padding spells (RFC 7515, section 2). Raises SignatureBroken."""
    if "+" in text or "/" in text or "=" in text:
        raise SignatureBroken(f"{what} is not Base64 for URLs")
    return decode_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), what)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
