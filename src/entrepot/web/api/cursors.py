"""Cursors of paged lists: opaque to clients, so that what they hold may change."""

import base64
import binascii
import re

from entrepot.errors import RequestInvalid

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_PREFIX = "after:"


def write_cursor(last_id: int) -> str:
    """The cursor of the page behind `last_id`."""
    return write_text_cursor(str(last_id))


def read_cursor(cursor: str | None) -> int | None:
    """The id behind which a page begins, None for the first. Raises RequestInvalid."""
    if cursor is None:
        return None
    text = read_text_cursor(cursor)
    if not _NUMBER.fullmatch(text):
        raise not_ours()
    return int(text)


def write_text_cursor(last: str) -> str:
    """The cursor of the page behind `last`."""
    return base64.urlsafe_b64encode(f"{_PREFIX}{last}".encode()).decode().rstrip("=")


def read_text_cursor(cursor: str | None) -> str:
    """What a page begins behind, empty for the first. Raises RequestInvalid."""
    if cursor is None:
        return ""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        text = ""
    if not text.startswith(_PREFIX) or not text.isprintable():
        raise not_ours()
    return text.removeprefix(_PREFIX)


def not_ours() -> RequestInvalid:
    """Says that somebody made a cursor up."""
    return RequestInvalid("this cursor was not given out here; begin again without one")
