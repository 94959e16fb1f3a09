"""What registries tell of pushes and deletions: ECR by EventBridge, others of pushes by calling us. Pure.

Sources: Amazon ECR User Guide, "Amazon ECR events and EventBridge", "Event for a completed image push" and "Event for
an image deletion"; Harbor, "Configure Webhook Notifications"; CNCF distribution, "Work with notifications".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrepot.errors import NameInvalid, RequestInvalid, TagInvalid
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.replication.listing import Spot

# SQS carries messages of up to this size.
MAX_MESSAGE_BYTES = 1024 * 1024
# More than one call tells of.
MAX_PUSHES = 1000


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
        spot = _spot_of(
            _text(detail, "repository-name"), _text(detail, "image-tag") if detail.get("image-tag") else None
        )
    except (NameInvalid, TagInvalid) as error:
        raise NotAPush("malformed", str(error)) from error
    is_deletion = action == "DELETE"
    if is_deletion:
        spot = Spot(spot.repository)
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


def parse_notice(document: Mapping[str, Any]) -> list[Spot]:
    """The pushes that a registry tells of in its own words, or a program in ours; none where it is something else.

    Raises RequestInvalid.
    """
    if "event_data" in document:
        found = _read_harbor(document)
    elif "events" in document:
        found = _read_distribution(document)
    else:
        found = _read_ours(document)
    if len(found) > MAX_PUSHES:
        raise RequestInvalid(f"it tells of {len(found)} pushes, at most {MAX_PUSHES} are allowed")
    try:
        return [_spot_of(repository, tag) for repository, tag in found]
    except (NameInvalid, TagInvalid, AttributeError, TypeError) as error:
        raise RequestInvalid(f"it names what is no repository or tag: {error}") from error


def _read_ours(document: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    pushes = document.get("pushes")
    if not isinstance(pushes, list) or set(document) != {"pushes"}:
        raise RequestInvalid(
            'write {"pushes": [{"repository": "smm/api", "tag": "v1"}]}, or send what Harbor or the CNCF distribution '
            "sends"
        )
    for number, push in enumerate(pushes):
        if not isinstance(push, dict) or not {"repository"} <= set(push) <= {"repository", "tag"}:
            raise RequestInvalid(f"pushes[{number}]: must have a repository, may have a tag, and nothing else")
    return [(push["repository"], push.get("tag")) for push in pushes]


def _read_harbor(document: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    if document.get("type") != "PUSH_ARTIFACT":
        return []
    try:
        data = document["event_data"]
        repository = data["repository"]["repo_full_name"]
        # What was pushed without a tag has its digest there.
        tags = [entry.get("tag") for entry in data["resources"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestInvalid("it has not the shape of Harbor's PUSH_ARTIFACT") from error
    return [(repository, None if isinstance(tag, str) and ":" in tag else tag) for tag in tags]


def _read_distribution(document: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    try:
        targets = [event["target"] for event in document["events"] if event["action"] == "push"]
        # Blobs and children of indexes are told of, too; what has a tag comes last.
        return [(target["repository"], target["tag"]) for target in targets if target.get("tag")]
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestInvalid("it has not the shape of the CNCF distribution's events") from error


def _spot_of(repository: str, tag: str | None) -> Spot:
    """Where to look: at the tag, or at all when there is none, or it speaks of another manifest."""
    name = RepositoryName.parse(repository)
    parsed = Tag.parse(tag) if tag else None
    return Spot(name.value, "" if parsed is None or subject_of(parsed) is not None else parsed.value)
