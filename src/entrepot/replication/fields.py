"""Fields of a replication.yaml, and what may stand in them. Pure; every error begins with the place in the file."""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from entrepot.errors import RuleInvalid

_MAX_TEXT = 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_SETTINGS_PREFIX = "ENTREPOT_"


def parse_variable(value: object, where: str) -> str | None:
    """The name of an environment variable. Raises RuleInvalid."""
    text = parse_text(value, where)
    if text is None:
        return None
    if not _VARIABLE.fullmatch(text):
        raise RuleInvalid(f"{where}: must be the name of an environment variable")
    if text.upper().startswith(_SETTINGS_PREFIX):
        raise RuleInvalid(f"{where}: {_SETTINGS_PREFIX}... holds settings of ours; use another name")
    return text


def parse_text(value: object, where: str) -> str | None:
    """A line of text, None when the field is not there. Raises RuleInvalid."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise RuleInvalid(f"{where}: must be text of at most {_MAX_TEXT} characters")
    return value


def parse_path(value: object, where: str) -> str | None:
    """An absolute path. Raises RuleInvalid."""
    text = parse_text(value, where)
    if text is not None and not text.startswith("/"):
        raise RuleInvalid(f"{where}: must be an absolute path, since a run may happen in any process")
    return text


def parse_mapping(value: object, where: str, *, not_yet: frozenset[str] = frozenset()) -> Mapping[str, Any]:
    """A mapping without the fields in `not_yet`. Raises RuleInvalid."""
    if not isinstance(value, Mapping):
        raise RuleInvalid(f"{where}: must be a mapping")
    for name in value:
        if name in not_yet:
            raise RuleInvalid(f"{where}.{name}: not supported by this version")
    return value


def verify_known(fields: Mapping[str, Any], where: str, known: AbstractSet[str]) -> None:
    """Raises RuleInvalid when there is a field that is not in `known`."""
    for name in fields:
        if name not in known:
            place = name if where == "the file" else f"{where}.{name}"
            raise RuleInvalid(f"{place}: not a field here; known are {', '.join(sorted(known))}")
