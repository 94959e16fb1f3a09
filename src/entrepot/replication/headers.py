"""The response headers that a registry client must understand, parsed from what a source sends.

Implements RFC 9110, section 11.6.1 (WWW-Authenticate), and RFC 8288 (Link) as far as distribution-spec 1.1, "Listing
Tags", uses it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_PARAMETER = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9-]*)[ \t]+)?(?P<key>[A-Za-z][A-Za-z0-9_-]*)[ \t]*=[ \t]*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))'
)
_SCHEME_ALONE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_LINK = re.compile(r"<([^<>]*)>([^<>]*)")
_REL_NEXT = re.compile(r';[ \t]*rel[ \t]*=[ \t]*"?next"?[ \t]*(?:[;,]|$)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Challenge:
    """How a registry wants to be asked: a scheme in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in all WWW-Authenticate headers of one response; what cannot be read is left out."""
    challenges: list[Challenge] = []
    for header in headers:
        for match in _PARAMETER.finditer(header):
            if match["scheme"]:
                challenges.append(Challenge(match["scheme"].lower(), {}))
            if challenges:
                value = re.sub(r"\\(.)", r"\1", match["quoted"]) if match["quoted"] is not None else match["bare"]
                challenges[-1].parameters[match["key"].lower()] = value
        if _SCHEME_ALONE.fullmatch(header.strip()):
            challenges.append(Challenge(header.strip().lower(), {}))
    return challenges


def find_next_page(headers: Iterable[str]) -> str | None:
    """The URL reference of the next page, None when this page is the last."""
    for header in headers:
        for target, parameters in _LINK.findall(header):
            if _REL_NEXT.search(parameters):
                return str(target)
    return None
