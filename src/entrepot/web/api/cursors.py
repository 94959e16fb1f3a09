"""Cursors of paged lists: opaque to clients, so that what they hold may change."""

import base64
import binascii
import re

from entrepot.errors import RequestInvalid

_CURSOR = re.compile(r"after:(\d{1,18})", re.ASCII)


def write_cursor(last_id: int) -> str:
    """The cursor of the page behind `last_id`."""
    return base64.urlsafe_b64encode(f"after:{last_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> int | None:
    """The id behind which a page begins, None for the first. Raises RequestInvalid."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise RequestInvalid("this cursor was not given out here; begin again without one")
    return int(match[1])
