import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import RequestInvalid
from entrepot.oci import media_types
from entrepot.replication.listing import Spot
from entrepot.replication.push_events import MAX_MESSAGE_BYTES, MAX_PUSHES, NotAPush, parse_notice, parse_push

EVENT: dict[str, Any] = {
    "version": "0",
    "id": "13cde686-328b-6117-af20-0e5566167482",
    "detail-type": "ECR Image Action",
    "source": "aws.ecr",
    "account": "123456789012",
    "time": "2019-11-16T01:54:34Z",
    "region": "us-west-2",
    "resources": [],
    "detail": {
        "result": "SUCCESS",
        "repository-name": "smm/api",
        "image-digest": "sha256:7f5b2640fe6fb4f46592dfd3410c4a79dac4f89e4782432e0378abcd1234",
        "action-type": "PUSH",
        "image-tag": "v1.4",
    },
}


def event(**detail: Any) -> dict[str, Any]:
    return EVENT | {"detail": EVENT["detail"] | detail}


@pytest.mark.parametrize(
    ("detail", "tag"),
    [
        ({}, "v1.4"),
        ({"image-tag": None}, ""),
        ({"image-tag": ""}, ""),
        ({"image-tag": f"sha256-{'a' * 64}.sig"}, ""),
        ({"image-tag": f"sha256-{'a' * 64}"}, ""),
        ({"image-tag": "sha256-abc"}, "sha256-abc"),
    ],
)
def test_a_push_says_where_it_went(detail: dict[str, Any], tag: str) -> None:
    push = parse_push(json.dumps(event(**detail)))
    assert (push.account, push.region, push.spot) == ("123456789012", "us-west-2", Spot("smm/api", tag))


def test_a_deletion_is_about_its_whole_repository() -> None:
    push = parse_push(json.dumps(event(**{"action-type": "DELETE"})))
    assert (push.spot, push.is_deletion) == (Spot("smm/api"), True)
    assert not parse_push(json.dumps(EVENT)).is_deletion


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("", "malformed"),
        ("push!", "malformed"),
        ("[]", "malformed"),
        ("[" * 100_000, "malformed"),
        (" " * (MAX_MESSAGE_BYTES + 1), "malformed"),
        ("{}", "foreign"),
        (json.dumps(EVENT | {"source": "aws.s3"}), "foreign"),
        (json.dumps(EVENT | {"detail-type": "ECR Image Scan"}), "foreign"),
        (json.dumps(EVENT | {"detail": "PUSH"}), "foreign"),
        (json.dumps(event(**{"action-type": "REPLICATE"})), "ignored"),
        (json.dumps(event(**{"action-type": ["PUSH"]})), "ignored"),
        (json.dumps(event(**{"action-type": "DELETE", "result": "FAILURE"})), "ignored"),
        (json.dumps(event(result="FAILURE")), "ignored"),
        (json.dumps(event(**{"repository-name": "SMM"})), "malformed"),
        (json.dumps(event(**{"repository-name": None})), "malformed"),
        (json.dumps(event(**{"image-tag": "a b"})), "malformed"),
        (json.dumps(event(**{"image-tag": 7})), "malformed"),
        (json.dumps(EVENT | {"account": 1}), "malformed"),
    ],
)
def test_what_is_no_push_is_said_to_be_none(body: str, outcome: str) -> None:
    with pytest.raises(NotAPush) as refusal:
        parse_push(body)
    assert refusal.value.outcome == outcome


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*EVENT, *EVENT["detail"]]), inner),
    )
)
def test_no_message_breaks_the_reader(document: Any) -> None:
    with pytest.raises(NotAPush):
        parse_push(json.dumps(document))


# Harbor 2, "Configure Webhook Notifications", its default payload.
HARBOR: dict[str, Any] = {
    "type": "PUSH_ARTIFACT",
    "occur_at": 1586922308,
    "operator": "admin",
    "event_data": {
        "resources": [
            {"digest": f"sha256:{'8' * 64}", "tag": "v1.4", "resource_url": "harbor.example.com/smm/api:v1.4"}
        ],
        "repository": {
            "date_created": 1586922308,
            "name": "api",
            "namespace": "smm",
            "repo_full_name": "smm/api",
            "repo_type": "private",
        },
    },
}


def harbor(tag: str) -> dict[str, Any]:
    data = HARBOR["event_data"]
    return HARBOR | {"event_data": data | {"resources": [data["resources"][0] | {"tag": tag}]}}


def target(media_type: str, **more: Any) -> dict[str, Any]:
    return {"action": "push", "target": {"mediaType": media_type, "repository": "smm/api", **more}}


@pytest.mark.parametrize(
    ("document", "spots"),
    [
        ({"pushes": []}, []),
        ({"pushes": [{"repository": "smm/api", "tag": "v1"}, {"repository": "smm/web"}]}, ["smm/api:v1", "smm/web:"]),
        ({"pushes": [{"repository": "smm/api", "tag": f"sha256-{'a' * 64}.sig"}]}, ["smm/api:"]),
        (HARBOR, ["smm/api:v1.4"]),
        (harbor(f"sha256:{'8' * 64}"), ["smm/api:"]),
        (HARBOR | {"type": "PULL_ARTIFACT"}, []),
        ({"events": []}, []),
        ({"events": [target(media_types.OCI_MANIFEST, tag="v1")]}, ["smm/api:v1"]),
        ({"events": [target(media_types.OCI_MANIFEST)]}, []),
        ({"events": [target(media_types.OCI_INDEX, tag="v2")]}, ["smm/api:v2"]),
        ({"events": [target("application/octet-stream")]}, []),
        ({"events": [target(media_types.OCI_MANIFEST, tag="v1") | {"action": "pull"}]}, []),
    ],
)
def test_a_notice_says_what_was_pushed(document: dict[str, Any], spots: list[str]) -> None:
    assert [f"{spot.repository}:{spot.tag}" for spot in parse_notice(document)] == spots


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"pushes": {}},
        {"pushes": [1]},
        {"pushes": [{"tag": "v1"}]},
        {"pushes": [{"repository": "smm/api", "digest": "x"}]},
        {"pushes": [{"repository": "SMM"}]},
        {"pushes": [{"repository": 1}]},
        {"pushes": [{"repository": "smm/api", "tag": "a b"}]},
        {"pushes": [{"repository": "smm/api", "tag": 1}]},
        {"pushes": [], "more": 1},
        {"pushes": [{"repository": "smm/api"}] * (MAX_PUSHES + 1)},
        {"type": "PUSH_ARTIFACT", "event_data": {}},
        {"type": "PUSH_ARTIFACT", "event_data": {"repository": {"repo_full_name": "smm/api"}, "resources": 1}},
        {"events": 1},
        {"events": [{}]},
        {"events": [{"action": "push", "target": 1}]},
        {"events": [{"action": "push", "target": {"tag": "v1", "mediaType": media_types.OCI_MANIFEST}}]},
    ],
)
def test_a_notice_that_nobody_understands_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid):
        parse_notice(document)
