from typing import Any

import pytest

from entrepot.errors import EntrepotError, SignatureRefused, SourceLied, SourceUnreachable, StorageFull
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
    BlobStarted,
    CompanionCopied,
    CompanionFailed,
    ItemFailed,
    ItemFinished,
    Listed,
    ManifestSigned,
    RepositoryFailed,
)
from entrepot.replication.report import MAX_FAILURES, Report

NAME = RepositoryName("smm/api")
ITEM = Item(NAME, NAME, Tag("v1"), Digest.of(b"manifest"), None)
BLOB = Descriptor("application/octet-stream", Digest.of(b"blob"), 4)


def test_a_run_is_counted() -> None:
    report = Report()
    for event in (
        Listed([ITEM]),
        BlobStarted(NAME, BLOB),
        BlobAdvanced(BLOB, 3),
        BlobAdvanced(BLOB, 1),
        BlobEnded(BLOB, is_complete=True),
        BlobEnded(BLOB, is_complete=False),
        BlobMounted(BLOB),
        BlobFound(BLOB),
        CompanionCopied(ITEM.route, Companion(ITEM.digest, Digest.of(b"signature"))),
        ManifestSigned(ITEM.route, ITEM.digest),
        ItemFinished(ITEM),
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
        "referrers_copied": 1,
        "signed": 1,
        "refused": 0,
        "failed": 0,
    }


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
