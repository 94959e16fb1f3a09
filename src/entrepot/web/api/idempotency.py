"""The header by which a request may be sent again without being carried out again.

Source: IETF draft "The Idempotency-Key HTTP Header Field", section 2; the key's text may also stand without quotes, as
most clients send it.
"""

import re
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse

from entrepot.accounts.answers import KeptAnswer
from entrepot.errors import RequestInvalid

# RFC 8941, section 3.3.3, without what would have to be escaped.
_KEY = re.compile(
    r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,255})', re.ASCII
)


def read_idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(description="Any text of up to 255 characters, new for each change: sent again, it is not done again."),
    ] = None,
) -> str | None:
    """The key's text, None when there is none. Raises RequestInvalid."""
    given = request.headers.getlist("idempotency-key")
    if idempotency_key is None or not given:
        return None
    match = _KEY.fullmatch(given[0])
    if match is None or len(given) > 1:
        raise RequestInvalid('Idempotency-Key: send one text of 1 to 255 ASCII characters, such as "8e03978e-40d5"')
    return match[1] or match[2]


IdempotencyKey = Annotated[str | None, Depends(read_idempotency_key)]


def answer_again(kept: KeptAnswer) -> JSONResponse:
    """The answer that an earlier request had, without what is shown once."""
    return JSONResponse(kept.body, kept.status, {"Idempotency-Replayed": "true"})
