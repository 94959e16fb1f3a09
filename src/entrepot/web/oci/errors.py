"""From errors to answers of the distribution spec: the one table of this face.

Spec: distribution-spec 1.1, "Error Codes".
"""

from entrepot import errors
from entrepot.errors import EntrepotError

# (HTTP status, error code), looked up over the error's MRO.
ANSWERS: dict[type[EntrepotError], tuple[int, str]] = {
    errors.EntrepotError: (500, "UNKNOWN"),
    errors.Invalid: (400, "UNSUPPORTED"),
    errors.DigestInvalid: (400, "DIGEST_INVALID"),
    errors.DigestMismatch: (400, "DIGEST_INVALID"),
    errors.NameInvalid: (400, "NAME_INVALID"),
    errors.TagInvalid: (400, "MANIFEST_INVALID"),
    errors.SizeInvalid: (400, "SIZE_INVALID"),
    errors.RangeInvalid: (416, "BLOB_UPLOAD_INVALID"),
    errors.RangeNotSatisfiable: (416, "SIZE_INVALID"),
    errors.ManifestInvalid: (400, "MANIFEST_INVALID"),
    errors.ManifestBlobUnknown: (404, "MANIFEST_BLOB_UNKNOWN"),
    errors.Unsupported: (405, "UNSUPPORTED"),
    errors.TooLarge: (413, "SIZE_INVALID"),
    errors.ManifestTooLarge: (413, "MANIFEST_INVALID"),
    errors.BlobTooLarge: (413, "BLOB_UPLOAD_INVALID"),
    errors.TooManyChunks: (413, "BLOB_UPLOAD_INVALID"),
    errors.NotFound: (404, "NAME_UNKNOWN"),
    errors.BlobUnknown: (404, "BLOB_UNKNOWN"),
    errors.ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    errors.UploadUnknown: (404, "BLOB_UPLOAD_UNKNOWN"),
    errors.Conflict: (409, "DENIED"),
    errors.PreconditionFailed: (412, "DENIED"),
    errors.UploadOffsetWrong: (416, "BLOB_UPLOAD_INVALID"),
    errors.Unauthenticated: (401, "UNAUTHORIZED"),
    errors.Denied: (403, "DENIED"),
    errors.ScopeInsufficient: (401, "UNAUTHORIZED"),
    errors.TooManyRequests: (429, "TOOMANYREQUESTS"),
    # The spec has no code for these; `UNAVAILABLE` is the CNCF distribution's.
    errors.Unavailable: (503, "UNAVAILABLE"),
    errors.StorageFull: (507, "UNAVAILABLE"),
    errors.ClientGone: (400, "BLOB_UPLOAD_INVALID"),
}
