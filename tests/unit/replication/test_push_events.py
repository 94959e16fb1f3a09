import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.replication.listing import Spot
from entrepot.replication.push_events import MAX_MESSAGE_BYTES, NotAPush, parse_push

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
