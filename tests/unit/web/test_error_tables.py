import inspect

import pytest

from entrepot import errors
from entrepot.errors import EntrepotError
from entrepot.web.api.errors import ANSWERS as API
from entrepot.web.errors import find_answer
from entrepot.web.oci.errors import ANSWERS as OCI
from entrepot.web.token.errors import ANSWERS as TOKEN

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EntrepotError)]
# distribution-spec 1.1, "Error Codes", and the two of the CNCF distribution for what the spec has no code for.
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS", "UNKNOWN", "UNAVAILABLE",
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer_on_every_face(kind: type[EntrepotError]) -> None:
    error = kind.__new__(kind)
    for table in (OCI, TOKEN):
        status, code = find_answer(table, error)
        assert 400 <= status < 600
        assert code in CODES
    status, title = find_answer(API, error)
    assert 400 <= status < 600
    assert title
    # Only the root, and what happens to a run and never to a request, may fall through to "internal error".
    if kind is not EntrepotError and not issubclass(kind, errors.SourceError | errors.RunInterrupted):
        assert find_answer(OCI, error)[0] != 500
