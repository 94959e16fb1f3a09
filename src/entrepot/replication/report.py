"""The report of a run: what it did, in numbers, what became of each tag, and what went wrong, in words."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from entrepot.errors import Conflict, Denied, EntrepotError, SignatureRefused, SourceError, Unavailable
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.differences import Change, Item, Route, count_changes
from entrepot.replication.events import (
    BlobAdvanced,
    BlobEnded,
    BlobFound,
    BlobMounted,
    BlobResumed,
    BlobStarted,
    CompanionCopied,
    CompanionDeleted,
    CompanionFailed,
    DeletionFailed,
    Event,
    ItemFailed,
    ItemFinished,
    ItemLeftOut,
    ItemStarted,
    Listed,
    ManifestSigned,
    RepositoryFailed,
    TagDeleted,
)

# Failures that a report lists; more are only counted.
MAX_FAILURES = 100
# Tags of one try whose outcome is kept, and how many of them may be such as were here already, or are left out.
MAX_ARTIFACTS = 1000
MAX_SKIPPED = 100
_MAX_PROBLEM = 1000
_MAX_SIGNER = 400
# The present rate is that of the last seconds.
_RATE_SECONDS = 10.0
# What each of these events adds one to.
_COUNTED: dict[type[Event], str] = {
    ItemFinished: "tags_copied",
    BlobMounted: "blobs_mounted",
    BlobFound: "blobs_present",
    CompanionCopied: "referrers_copied",
    ManifestSigned: "signed",
    TagDeleted: "tags_deleted",
    CompanionDeleted: "referrers_deleted",
}
_COUNTS = (*_COUNTED.values(), "blobs_copied", "bytes", "bytes_resumed")

Artifact = dict[str, Any]
"""What became of a tag, as a row of `replication_artifacts` has it."""
_NO_ARTIFACT: Artifact = {
    "target": "",
    "tag": "",
    "digest": None,
    "bytes": 0,
    "seconds": 0.0,
    "side": None,
    "problem": None,
    "is_temporary": None,
    "signed_by": None,
}


class Report:
    """Collects what a run tells of itself.

    `before` is the report of the same run by its tries so far, whose numbers go on.
    """

    def __init__(
        self, *, before: Mapping[str, Any] | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        self._begun = monotonic()
        before = before or {}
        self._seconds_before = float(before.get("seconds", 0))
        self._tags: dict[str, int] = {}
        self._counts: dict[str, int] = {name: int(before.get(name, 0)) for name in _COUNTS}
        self._failures: list[dict[str, Any]] = []
        self._failed = self._refused = self._left_out = 0
        self._has_temporary = False
        self._problem: dict[str, Any] | None = None
        self._artifacts: list[Artifact] = []
        self._listed_artifacts = 0
        self._due = self._done = 0
        self._items: dict[tuple[RepositoryName, Tag], _Progress] = {}
        self._blobs: dict[Digest, _Blob] = {}
        self._rates: deque[tuple[float, int]] = deque([(self._begun, self._counts["bytes"])])

    def note(self, event: Event) -> None:
        """Count an event."""
        if type(event) in _COUNTED:
            self._counts[_COUNTED[type(event)]] += 1
        match event:
            case Listed(items):
                self._note_list(items)
            case ItemStarted(item):
                self._items[item.origin, item.tag] = _Progress(self._monotonic())
            case ItemFinished(item, signed):
                self._note_end(item, "copied", signed_by=None if signed is None else str(signed)[:_MAX_SIGNER])
            case ItemLeftOut(item, reason):
                self._note_left_out(item, reason)
            case ItemFailed(item, error):
                self._refused += is_refusal(error)
                failure = self._note_failure(f"{item.origin}:{item.tag}", error)
                self._note_end(item, failure.pop("kind"), **failure)
            case CompanionFailed(route, what, error):
                failure = self._note_failure(f"{route.origin}, {what}", error)
                self._add(failure.pop("kind"), origin=str(route.origin), target=str(route.target), **failure)
            case RepositoryFailed(repository, error):
                failure = self._note_failure(str(repository), error)
                self._add(failure.pop("kind"), origin=str(repository), **failure)
            case TagDeleted() | DeletionFailed():
                self._note_deletion(event)
            case _:
                self._note_blob(event)

    def note_end(self, error: EntrepotError) -> None:
        """The whole run ended with an error."""
        self._problem = _describe(error)
        self._has_temporary = self._has_temporary or self._problem["is_temporary"]

    @property
    def is_good(self) -> bool:
        """Whether everything that the rule means is here."""
        return self._problem is None and not self._failed

    @property
    def may_help_to_try_again(self) -> bool:
        """Whether something failed that the same run may bring over later."""
        return self._has_temporary

    def take_artifacts(self) -> list[Artifact]:
        """What became of tags since this was last asked."""
        taken, self._artifacts = self._artifacts, []
        return taken

    def give_back(self, artifacts: list[Artifact]) -> None:
        """What was taken could not be kept yet."""
        self._artifacts = artifacts + self._artifacts

    def to_document(self, *, is_running: bool = False) -> dict[str, Any]:
        """As it is kept, and shown by `replicate status --json`."""
        seconds = self._seconds_before + self._monotonic() - self._begun
        document: dict[str, Any] = {
            "tags": self._tags,
            **self._counts,
            "left_out": self._left_out,
            "refused": self._refused,
            "failed": self._failed,
            "seconds": round(seconds, 3),
            "bytes_per_second": round(self._counts["bytes"] / seconds) if seconds > 0 else 0,
        }
        if self._failures:
            document["failures"] = self._failures
        if self._problem is not None:
            document["problem"] = self._problem
        if is_running:
            document["progress"] = self._show_progress()
        return document

    def _note_list(self, items: list[Item]) -> None:
        self._tags = {change.value: count for change, count in count_changes(items).items()}
        skipped = [item for item in items if item.change is Change.SAME]
        self._due = len(items) - len(skipped)
        for item in skipped[:MAX_SKIPPED]:
            self._add("skipped", **_place(item))

    def _note_left_out(self, item: Item, reason: str) -> None:
        self._left_out += 1
        if (item.origin, item.tag) in self._items:
            self._note_end(item, "skipped", problem=reason[:_MAX_PROBLEM])
        elif self._left_out <= MAX_SKIPPED:
            self._add("skipped", **_place(item), problem=reason[:_MAX_PROBLEM])

    def _note_deletion(self, event: TagDeleted | DeletionFailed) -> None:
        place = _place_tag(event.route, event.tag, event.digest)
        if isinstance(event, TagDeleted):
            self._add("deleted", **place)
            return
        self._refused += is_refusal(event.error)
        failure = self._note_failure(f"{event.route.target}:{event.tag}, deleting", event.error)
        self._add(failure.pop("kind"), **place, **failure)

    def _note_blob(self, event: Event) -> None:
        match event:
            case BlobStarted(target, blob, item):
                key = None if item is None else (item.origin, item.tag)
                self._blobs[blob.digest] = _Blob(str(target), blob.size, key)
            case BlobResumed(blob, size):
                self._counts["bytes_resumed"] += size
                if (started := self._blobs.get(blob.digest)) is not None:
                    started.done = size
            case BlobAdvanced(blob, size):
                self._counts["bytes"] += size
                if (started := self._blobs.get(blob.digest)) is not None:
                    started.done += size
                    if started.key in self._items:
                        self._items[started.key].bytes += size
            case BlobEnded(blob, is_complete):
                self._blobs.pop(blob.digest, None)
                self._counts["blobs_copied"] += is_complete
            case _:
                pass

    def _note_end(self, item: Item, outcome: str, **more: Any) -> None:
        progress = self._items.pop((item.origin, item.tag), None) or _Progress(self._monotonic())
        self._done += 1
        seconds = round(self._monotonic() - progress.begun, 3)
        self._add(outcome, **_place(item), bytes=progress.bytes, seconds=seconds, **more)

    def _add(self, outcome: str, **values: Any) -> None:
        if self._listed_artifacts < MAX_ARTIFACTS:
            self._listed_artifacts += 1
            self._artifacts.append(_NO_ARTIFACT | {"outcome": outcome} | values)

    def _note_failure(self, what: str, error: EntrepotError) -> dict[str, Any]:
        """Count and list a failure; answers its description, for the caller to keep."""
        described = _describe(error)
        self._has_temporary = self._has_temporary or described["is_temporary"]
        self._failed += 1
        if len(self._failures) < MAX_FAILURES:
            self._failures.append({"what": what, **described})
        return described | {"problem": described["problem"][:_MAX_PROBLEM]}

    def _show_progress(self) -> dict[str, Any]:
        """How far it is now: what is under way, how fast, and how many seconds are left, None while nobody can tell."""
        now, count = self._monotonic(), self._counts["bytes"]
        while len(self._rates) > 1 and now - self._rates[1][0] > _RATE_SECONDS:
            self._rates.popleft()
        since, bytes_then = self._rates[0]
        self._rates.append((now, count))
        rate = (count - bytes_then) / (now - since) if now > since else 0.0
        seconds_left = (now - self._begun) / self._done * (self._due - self._done) if self._done else None
        return {
            "tags_due": self._due,
            "tags_done": self._done,
            "bytes_per_second": round(rate),
            "seconds_left": None if seconds_left is None else round(seconds_left),
            "blobs": [
                {"repository": blob.repository, "digest": str(digest), "size": blob.size, "done": blob.done}
                for digest, blob in self._blobs.items()
            ],
        }


class _Progress:
    """A tag that is being copied: since when, and how many bytes it cost so far."""

    __slots__ = ("begun", "bytes")

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.bytes = 0


class _Blob:
    """A blob that is being copied."""

    __slots__ = ("done", "key", "repository", "size")

    def __init__(self, repository: str, size: int, key: tuple[RepositoryName, Tag] | None) -> None:
        self.repository = repository
        self.size = size
        self.key = key
        self.done = 0


def _place(item: Item) -> Artifact:
    return _place_tag(item.route, item.tag, item.digest)


def _place_tag(route: Route, tag: Tag, digest: Digest) -> Artifact:
    return {"origin": str(route.origin), "target": str(route.target), "tag": str(tag), "digest": str(digest)}


def is_refusal(error: EntrepotError) -> bool:
    """Whether somebody decided that this must not be here, rather than something going wrong."""
    return isinstance(error, SignatureRefused | Denied | Conflict)


def _describe(error: EntrepotError) -> dict[str, Any]:
    """Whether it failed or was refused by policy, on which side, why, and whether the same run might succeed later."""
    is_source = isinstance(error, SourceError)
    return {
        "kind": "refused" if is_refusal(error) else "failed",
        "side": "source" if is_source else "destination",
        "problem": str(error),
        "is_temporary": error.temporary if isinstance(error, SourceError) else isinstance(error, Unavailable),
    }
