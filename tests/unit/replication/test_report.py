from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from entrepot.errors import EntrepotError, SignatureRefused, SourceLied, SourceUnreachable, StorageFull, TagImmutable
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.companions import Companion
from entrepot.replication.differences import Item
from entrepot.replication.events import (
    BlobAdvanced,
    BlobEnded,
    BlobFound,
    BlobMounted,
    BlobResumed,
    BlobStarted,
    CompanionCopied,
    CompanionFailed,
    ItemFailed,
    ItemFinished,
    ItemLeftOut,
    ItemStarted,
    Listed,
    ManifestSigned,
    RepositoryFailed,
)
from entrepot.replication.report import MAX_ARTIFACTS, MAX_FAILURES, MAX_SKIPPED, Report
from entrepot.replication.trust.cosign import Signed

NAME = RepositoryName("smm/api")
ITEM = Item(NAME, NAME, Tag("v1"), Digest.of(b"manifest"), None)
OTHER = Item(NAME, NAME, Tag("v2"), Digest.of(b"other"), None)
AWAY = SourceUnreachable("away")
BLOB = Descriptor("application/octet-stream", Digest.of(b"blob"), 4)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def artifact(item: Item = ITEM, **values: Any) -> dict[str, Any]:
    return {
        "origin": str(item.origin),
        "target": str(item.target),
        "tag": str(item.tag),
        "digest": str(item.digest),
        "bytes": 0,
        "seconds": 0.0,
        "side": None,
        "problem": None,
        "is_temporary": None,
        "signed_by": None,
    } | values


def test_a_run_is_counted() -> None:
    clock = Clock()
    report = Report(monotonic=clock)
    for event in (Listed([ITEM]), ItemStarted(ITEM), BlobStarted(NAME, BLOB, ITEM), BlobResumed(BLOB, 2)):
        report.note(event)
    clock.now += 2
    for event in (
        BlobAdvanced(BLOB, 3),
        BlobAdvanced(BLOB, 1),
        BlobEnded(BLOB, is_complete=True),
        BlobEnded(BLOB, is_complete=False),
        BlobMounted(BLOB),
        BlobFound(BLOB),
        CompanionCopied(ITEM.route, Companion(ITEM.digest, Digest.of(b"signature"))),
        ManifestSigned(ITEM.route, ITEM.digest),
        ItemFinished(ITEM, Signed("key 1")),
    ):
        report.note(event)
    assert report.is_good
    assert report.to_document() == {
        "tags": {"new": 1, "changed": 0, "same": 0},
        "tags_copied": 1,
        "blobs_copied": 1,
        "blobs_mounted": 1,
        "blobs_present": 1,
        "bytes": 4,
        "bytes_resumed": 2,
        "referrers_copied": 1,
        "signed": 1,
        "tags_deleted": 0,
        "referrers_deleted": 0,
        "left_out": 0,
        "refused": 0,
        "failed": 0,
        "seconds": 2.0,
        "bytes_per_second": 2,
    }
    assert report.take_artifacts() == [artifact(outcome="copied", bytes=4, seconds=2.0, signed_by="key 1")]
    assert report.take_artifacts() == []


def test_the_numbers_of_a_run_go_on_where_its_last_try_ended() -> None:
    clock = Clock()
    first = Report(monotonic=clock)
    for event in (Listed([ITEM, OTHER]), ItemFinished(ITEM), BlobAdvanced(BLOB, 6), ItemFailed(OTHER, AWAY)):
        first.note(event)
    clock.now += 3
    second = Report(before=first.to_document(), monotonic=clock)
    assert second.is_good
    second.note(Listed([OTHER]))
    second.note(ItemFinished(OTHER))
    clock.now += 1
    document = second.to_document()
    assert (document["tags_copied"], document["bytes"], document["seconds"]) == (2, 6, 4.0)
    assert document["failed"] == 0
    assert "failures" not in document


def test_progress_tells_what_is_under_way_how_fast_and_how_long_it_takes() -> None:
    clock = Clock()
    report = Report(monotonic=clock)
    items = [replace(ITEM, tag=Tag(f"v{number}")) for number in range(4)]
    report.note(Listed([*items, replace(ITEM, tag=Tag("old"), here=ITEM.digest)]))
    assert report.to_document(is_running=True)["progress"]["seconds_left"] is None
    report.note(BlobStarted(NAME, BLOB, ITEM))
    report.note(BlobAdvanced(BLOB, 3))
    report.note(ItemFinished(items[0]))
    clock.now += 2
    assert report.to_document(is_running=True)["progress"] == {
        "tags_due": 4,
        "tags_done": 1,
        "bytes_per_second": 2,
        "seconds_left": 6,
        "blobs": [{"repository": "smm/api", "digest": str(BLOB.digest), "size": 4, "done": 3}],
    }
    clock.now += 100
    report.to_document(is_running=True)
    clock.now += 5
    assert report.to_document(is_running=True)["progress"]["bytes_per_second"] == 0


def test_what_somebody_decided_against_is_refused_rather_than_failed() -> None:
    report = Report(monotonic=Clock())
    report.note(ItemFailed(ITEM, TagImmutable("stays")))
    assert not report.is_good
    assert not report.may_help_to_try_again
    document = report.to_document()
    assert (document["refused"], document["failed"]) == (1, 1)
    refusal = {"side": "destination", "problem": "stays", "is_temporary": False}
    assert report.take_artifacts() == [artifact(outcome="refused", **refusal)]


def test_only_so_many_artifacts_are_listed_and_fewer_that_were_here() -> None:
    report = Report(monotonic=Clock())
    items = [replace(ITEM, tag=Tag(f"v{number}"), here=ITEM.digest) for number in range(MAX_ARTIFACTS * 2)]
    report.note(Listed(items))
    for _ in range(MAX_ARTIFACTS):
        report.note(ItemFinished(ITEM))
    outcomes = Counter(entry["outcome"] for entry in report.take_artifacts())
    assert outcomes == {"skipped": MAX_SKIPPED, "copied": MAX_ARTIFACTS - MAX_SKIPPED}
    assert report.to_document()["tags_copied"] == MAX_ARTIFACTS


def test_what_could_not_be_kept_is_not_lost() -> None:
    report = Report(monotonic=Clock())
    report.note(ItemFinished(ITEM))
    taken = report.take_artifacts()
    report.note(ItemFinished(OTHER))
    report.give_back(taken)
    assert [entry["tag"] for entry in report.take_artifacts()] == ["v1", "v2"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SourceLied("wrong"), {"kind": "failed", "side": "source", "problem": "wrong", "is_temporary": False}),
        (SourceUnreachable("away"), {"kind": "failed", "side": "source", "problem": "away", "is_temporary": True}),
        (StorageFull("full"), {"kind": "failed", "side": "destination", "problem": "full", "is_temporary": True}),
        (
            SignatureRefused("unsigned"),
            {"kind": "refused", "side": "source", "problem": "unsigned", "is_temporary": False},
        ),
    ],
)
def test_a_failure_says_which_side_and_whether_to_try_again(error: EntrepotError, expected: dict[str, Any]) -> None:
    report = Report()
    report.note(ItemFailed(ITEM, error))
    report.note(RepositoryFailed(NAME, error))
    report.note(CompanionFailed(ITEM.route, "tag x.sig", error))
    report.note_end(error)
    assert not report.is_good
    assert report.may_help_to_try_again is expected["is_temporary"]
    document = report.to_document()
    places = ["smm/api:v1", "smm/api", "smm/api, tag x.sig"]
    assert document["failures"] == [{"what": place} | expected for place in places]
    assert document["refused"] == (expected["kind"] == "refused")
    assert document["problem"] == expected


def test_a_report_stays_small_when_everything_fails() -> None:
    report = Report()
    for _ in range(MAX_FAILURES * 2):
        report.note(ItemFailed(ITEM, SourceLied("wrong")))
    assert report.to_document()["failed"] == MAX_FAILURES * 2
    assert len(report.to_document()["failures"]) == MAX_FAILURES


def test_what_a_rule_leaves_out_is_no_failure_and_has_its_reason() -> None:
    report = Report(monotonic=Clock())
    other = replace(ITEM, tag=Tag("moved"))
    for event in (Listed([other]), ItemLeftOut(ITEM, "a chart"), ItemStarted(other), ItemLeftOut(other, "moved")):
        report.note(event)
    assert (report.is_good, report.may_help_to_try_again) == (True, False)
    document = report.to_document(is_running=True)
    assert (document["left_out"], document["failed"], document["refused"]) == (2, 0, 0)
    assert document["progress"]["tags_due"] == document["progress"]["tags_done"] == 1
    assert [(one["outcome"], one["tag"], one["problem"]) for one in report.take_artifacts()] == [
        ("skipped", str(ITEM.tag), "a chart"),
        ("skipped", "moved", "moved"),
    ]


def test_of_very_many_that_are_left_out_the_first_are_listed() -> None:
    report = Report(monotonic=Clock())
    for number in range(MAX_SKIPPED + 50):
        report.note(ItemLeftOut(replace(ITEM, tag=Tag(f"v{number}")), "a chart"))
    assert report.to_document()["left_out"] == MAX_SKIPPED + 50
    assert len(report.take_artifacts()) == MAX_SKIPPED
