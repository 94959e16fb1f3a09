"""What the platform tells of a customer: free fields, within limits."""

import json
import math
import re
import unicodedata
from typing import Any

from entrepot.errors import IdentityInvalid

MAX_IDENTITY_BYTES = 4096
MAX_DESCRIPTION_CHARACTERS = 1024
# For `left_out`, whose number has a few digits.
_ROOM = 24
_READ_FIRST = ("name", "company", "email")
_MAX_DEPTH = 4
_MAX_LABELS = 32
_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MAX_LABEL_CHARACTERS = 200


def verify_identity(identity: dict[str, Any]) -> None:
    """Raises IdentityInvalid unless it is small, shallow, and prints cleanly."""
    _verify_value(identity, "identity", _MAX_DEPTH)
    size = len(json.dumps(identity, ensure_ascii=False).encode())
    if size > MAX_IDENTITY_BYTES:
        raise IdentityInvalid(f"identity has {size} bytes; at most {MAX_IDENTITY_BYTES} are kept")


def describe(external_id: str | None, identity: dict[str, Any]) -> str:
    """Who a customer is, on one line that people read and that parses as a JSON object.

    The names that people look for come first, then the others by name. It has at most 1024 characters, the most that
    Harbor keeps of a robot account's description; `left_out` counts the fields for which there was no room.
    """
    names = [name for name in _READ_FIRST if name in identity]
    names += sorted(identity.keys() - {*names, "id", "left_out"})
    wanted = [("id", external_id)] if external_id is not None else []
    wanted += [(name, identity[name]) for name in names]
    shown: dict[str, Any] = {}
    left_out = 0
    for name, value in wanted:
        if len(_on_one_line({**shown, name: value})) <= MAX_DESCRIPTION_CHARACTERS - _ROOM:
            shown[name] = value
        else:
            left_out += 1
    return _on_one_line(shown | ({"left_out": left_out} if left_out else {}))


def _on_one_line(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)


def verify_labels(labels: dict[str, str]) -> None:
    """Raises IdentityInvalid unless there are few labels, with short names and values."""
    if len(labels) > _MAX_LABELS:
        raise IdentityInvalid(f"{len(labels)} labels; at most {_MAX_LABELS} are kept")
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(name):
            raise IdentityInvalid(
                f"label {name[:80]!r}: a name has up to 63 letters, digits and . _ / -, a letter or digit first"
            )
        if not isinstance(value, str) or len(value) > _MAX_LABEL_CHARACTERS:
            raise IdentityInvalid(f"label {name}: a value is text of at most {_MAX_LABEL_CHARACTERS} characters")
        _verify_value(value, f"label {name}", 0)


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
