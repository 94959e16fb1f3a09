"""The report of a run: what it did, in numbers, and what went wrong, in words."""

from typing import Any

from entrepot.errors import EntrepotError, SignatureRefused, SourceError, Unavailable
from entrepot.replication.differences import count_changes
from entrepot.replication.events import (
    BlobAdvanced,
    BlobEnded,
    BlobFound,
    BlobMounted,
    CompanionCopied,
    CompanionFailed,
    Event,
    ItemFailed,
    ItemFinished,
    Listed,
    ManifestSigned,
    RepositoryFailed,
)

# Failures that a report lists; more are only counted.
MAX_FAILURES = 100
# What each of these events adds one to.
_COUNTED: dict[type[Event], str] = {
    ItemFinished: "tags_copied",
    BlobMounted: "blobs_mounted",
    BlobFound: "blobs_present",
    CompanionCopied: "referrers_copied",
    ManifestSigned: "signed",
}


class Report:
    """Collects what a run tells of itself."""

    def __init__(self) -> None:
        self._tags: dict[str, int] = {}
        self._counts = {"tags_copied": 0, "blobs_copied": 0, "blobs_mounted": 0, "blobs_present": 0, "bytes": 0}
        self._counts |= {"referrers_copied": 0, "signed": 0, "refused": 0}
        self._failures: list[dict[str, Any]] = []
        self._failed = 0
        self._problem: dict[str, Any] | None = None

    def note(self, event: Event) -> None:
        """Count an event."""
        if type(event) in _COUNTED:
            self._counts[_COUNTED[type(event)]] += 1
        match event:
            case Listed(items):
                self._tags = {change.value: count for change, count in count_changes(items).items()}
            case BlobAdvanced(_, size):
                self._counts["bytes"] += size
            case BlobEnded(_, is_complete=True):
                self._counts["blobs_copied"] += 1
            case ItemFailed(item, error):
                self._counts["refused"] += isinstance(error, SignatureRefused)
                self._note_failure(f"{item.origin}:{item.tag}", error)
            case CompanionFailed(route, what, error):
                self._note_failure(f"{route.origin}, {what}", error)
            case RepositoryFailed(repository, error):
                self._note_failure(str(repository), error)
            case _:
                pass

    def note_end(self, error: EntrepotError) -> None:
        """The whole run ended with an error."""
        self._problem = _describe(error)

    @property
    def is_good(self) -> bool:
        """Whether everything that the rule means is here."""
        return self._problem is None and not self._failed

    def to_document(self) -> dict[str, Any]:
        """As it is kept, and shown by `replicate status --json`."""
        document: dict[str, Any] = {"tags": self._tags, **self._counts, "failed": self._failed}
        if self._failures:
            document["failures"] = self._failures
        if self._problem is not None:
            document["problem"] = self._problem
        return document

    def _note_failure(self, what: str, error: EntrepotError) -> None:
        self._failed += 1
        if len(self._failures) < MAX_FAILURES:
            self._failures.append({"what": what, **_describe(error)})


def _describe(error: EntrepotError) -> dict[str, Any]:
    """Whether it failed or was refused by policy, on which side, why, and whether the same run might succeed later."""
    is_source = isinstance(error, SourceError)
    return {
        "kind": "refused" if isinstance(error, SignatureRefused) else "failed",
        "side": "source" if is_source else "destination",
        "problem": str(error),
        "is_temporary": error.temporary if isinstance(error, SourceError) else isinstance(error, Unavailable),
    }
