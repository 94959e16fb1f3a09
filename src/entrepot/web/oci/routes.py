"""From the path of a request to what it names.

Spec: distribution-spec 1.1, "Endpoints". Names are matched on the path as the client sent it, so an encoded slash
cannot smuggle one name for another; nothing in these paths needs percent-encoding, except that some clients do it to
the colon of a digest.
"""

import re
from dataclasses import dataclass

from entrepot.errors import NameInvalid, PathUnknown, UploadUnknown
from entrepot.oci.reference import RepositoryName

_ROUTE = re.compile(
    r"/v2/(?P<name>.+?)/(?:"
    r"manifests/(?P<manifest>[^/]+)"
    r"|(?P<uploads>blobs/uploads/?)"
    r"|blobs/uploads/(?P<upload>[^/]+)"
    r"|blobs/(?P<blob>[^/]+)"
    r"|(?P<tags>tags/list)"
    r"|referrers/(?P<referrers>[^/]+)"
    r")"
)
_UPLOAD_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ENCODED_COLON = re.compile("%3a", re.IGNORECASE)
# A longer path cannot hold a valid name and reference.
_MAX_PATH = 512


@dataclass(frozen=True, slots=True)
class Route:
    """What a path names. `kind` is also the name of the route in metrics; `item` is not parsed yet."""

    kind: str
    name: RepositoryName
    item: str


def find_route(raw_path: str) -> Route:
    """The route of a path below `/v2/`. Raises PathUnknown, NameInvalid or UploadUnknown."""
    if len(raw_path) > _MAX_PATH:
        raise NameInvalid(f"the path has {len(raw_path)} characters; at most {_MAX_PATH} can be right")
    if "%" in raw_path:
        raw_path = _ENCODED_COLON.sub(":", raw_path)
    match = _ROUTE.fullmatch(raw_path)
    if match is None or match.lastgroup is None:
        raise PathUnknown("this is not a path of the distribution spec; see /v2/")
    kind, item = match.lastgroup, match[match.lastgroup]
    if kind == "upload" and not _UPLOAD_ID.fullmatch(item):
        raise UploadUnknown("this is not an upload that was begun here")
    return Route(kind, RepositoryName.parse(match["name"]), item)
