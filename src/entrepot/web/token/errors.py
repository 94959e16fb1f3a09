"""From errors to answers of the token service: the one table of this face.

The bodies have the shape of the distribution spec, because registry clients print those.
"""

from entrepot import errors
from entrepot.errors import EntrepotError

ANSWERS: dict[type[EntrepotError], tuple[int, str]] = {
    errors.EntrepotError: (500, "UNKNOWN"),
    errors.Invalid: (400, "UNSUPPORTED"),
    errors.Unsupported: (405, "UNSUPPORTED"),
    errors.TooLarge: (413, "SIZE_INVALID"),
    errors.NotFound: (404, "UNSUPPORTED"),
    errors.Conflict: (409, "DENIED"),
    errors.Unauthenticated: (401, "UNAUTHORIZED"),
    errors.Denied: (403, "DENIED"),
    errors.TooManyRequests: (429, "TOOMANYREQUESTS"),
    errors.Unavailable: (503, "UNAVAILABLE"),
    errors.ClientGone: (400, "UNSUPPORTED"),
}
