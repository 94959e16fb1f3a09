"""What the platform tells of a customer: free fields, within limits."""

import json
import math
import unicodedata
from typing import Any

from entrepot.errors import IdentityInvalid

MAX_IDENTITY_BYTES = 4096
_MAX_DEPTH = 4


def verify_identity(identity: dict[str, Any]) -> None:
    """Raises IdentityInvalid unless it is small, shallow, and prints cleanly."""
    _verify_value(identity, "identity", _MAX_DEPTH)
    size = len(json.dumps(identity, ensure_ascii=False).encode())
    if size > MAX_IDENTITY_BYTES:
        raise IdentityInvalid(f"identity has {size} bytes; at most {MAX_IDENTITY_BYTES} are kept")


def _verify_value(value: object, where: str, depth: int) -> None:
    if depth < 0:
        raise IdentityInvalid(f"{where} is nested too deeply")
    if isinstance(value, str):
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
            raise IdentityInvalid(f"{where} holds control characters")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _verify_value(key, f"{where}, a key", 0)
            _verify_value(inner, f"{where}.{key[:40]}", depth - 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _verify_value(inner, f"{where}[{number}]", depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise IdentityInvalid(f"{where} is no number that JSON has")
    elif value is not None and not isinstance(value, bool | int | float):
        raise IdentityInvalid(f"{where} is not JSON")
