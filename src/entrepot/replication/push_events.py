"""What ECR tells of a push or a deletion, by EventBridge. Pure.

Source: Amazon ECR User Guide, "Amazon ECR events and EventBridge", "Event for a completed image push" and
"Event for an image deletion".
"""

import json
from dataclasses import dataclass
from typing import Any

from entrepot.errors import NameInvalid, TagInvalid
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.replication.listing import Spot

# SQS carries messages of up to this size.
MAX_MESSAGE_BYTES = 1024 * 1024


class NotAPush(Exception):
    """A message that is to be dropped; `outcome` is one word for the metrics."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Push:
    """A push to the registry of an account in a region, or a deletion there.

    What has no tag, or one that speaks of another manifest, is about something whose tags nobody knows yet: then the
    spot is the whole repository. So it is for a deletion, since only a list says what is gone.
    """

    account: str
    region: str
    spot: Spot
    is_deletion: bool = False


def parse_push(body: str) -> Push:
    """The push or deletion in a message. Raises NotAPush."""
    event = _parse_object(body)
    detail = event.get("detail")
    if (
        event.get("source") != "aws.ecr"
        or event.get("detail-type") != "ECR Image Action"
        or not isinstance(detail, dict)
    ):
        raise NotAPush("foreign", "it is no ECR Image Action")
    action = detail.get("action-type")
    if action not in ("PUSH", "DELETE") or detail.get("result") != "SUCCESS":
        raise NotAPush("ignored", "it is no completed push")
    try:
        repository = RepositoryName.parse(_text(detail, "repository-name"))
        tag = Tag.parse(_text(detail, "image-tag")) if detail.get("image-tag") else None
    except (NameInvalid, TagInvalid) as error:
        raise NotAPush("malformed", str(error)) from error
    is_deletion = action == "DELETE"
    is_of_tag = not is_deletion and tag is not None and subject_of(tag) is None
    spot = Spot(repository.value, str(tag) if is_of_tag else "")
    return Push(_text(event, "account"), _text(event, "region"), spot, is_deletion)


def _parse_object(body: str) -> dict[str, Any]:
    if len(body) > MAX_MESSAGE_BYTES:
        raise NotAPush("malformed", f"it has more than {MAX_MESSAGE_BYTES} characters")
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise NotAPush("malformed", "it is no JSON object")
    return event


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise NotAPush("malformed", f"it has no {name}")
    return value
