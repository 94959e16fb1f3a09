"""Fields of a document such as replication.yaml, read into values.

Everything raises RuleInvalid, whose message begins with the place within the document.
"""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from yarl import URL

from entrepot.errors import RuleInvalid

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_NAME = 63
_MAX_TEXT = 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_SETTINGS_PREFIX = "ENTREPOT_"


def parse_mapping(value: object, where: str) -> Mapping[str, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise RuleInvalid(f"{where}: must be a mapping")
    return value


def verify_known(fields: Mapping[str, Any], where: str, known: AbstractSet[str]) -> None:
    """Refuse a field that is not `known`: to pass over it would do other things than was written."""
    for name in fields:
        if name not in known:
            place = name if where == "the file" else f"{where}.{name}"
            raise RuleInvalid(f"{place}: not a field here; known are {', '.join(sorted(known))}")


def parse_name(name: str, where: str) -> str:
    """What a source or rule is called."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise RuleInvalid(
            f"{where}.{name[:80]}: a name takes lower-case letters and digits, with single . _ - between, "
            f"at most {_MAX_NAME}"
        )
    return name


def parse_text(value: object, where: str) -> str | None:
    """Text that can be shown, None where there is none."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise RuleInvalid(f"{where}: must be text of at most {_MAX_TEXT} characters")
    return value


def parse_path(value: object, where: str) -> str | None:
    """An absolute path, None where there is none."""
    text = parse_text(value, where)
    if text is not None and not text.startswith("/"):
        raise RuleInvalid(f"{where}: must be an absolute path, since a run may happen in any process")
    return text


def parse_variable(value: object, where: str) -> str | None:
    """The name of an environment variable, None where there is none."""
    text = parse_text(value, where)
    if text is None:
        return None
    if not _VARIABLE.fullmatch(text):
        raise RuleInvalid(f"{where}: must be the name of an environment variable")
    if text.upper().startswith(_SETTINGS_PREFIX):
        raise RuleInvalid(f"{where}: {_SETTINGS_PREFIX}... holds settings of ours; use another name")
    return text


def parse_origin(value: object, where: str) -> URL:
    """The URL of a server: a scheme, a host and maybe a port."""
    problem = f"{where}: must be http(s)://HOST[:PORT], without path, user or password"
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise RuleInvalid(problem)
    try:
        url = URL(value)
        is_origin = url.scheme in {"http", "https"} and bool(url.host) and url == url.origin()
    except ValueError as error:
        raise RuleInvalid(problem) from error
    if not is_origin:
        raise RuleInvalid(problem)
    return url.origin()


def find_origin(value: object, where: str) -> URL | None:
    """The URL of a server, None where there is none."""
    return None if value is None else parse_origin(value, where)


def without_nothing(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document without the fields that say nothing; URLs as text."""
    return {
        name: str(value) if isinstance(value, URL) else value for name, value in document.items() if value is not None
    }
