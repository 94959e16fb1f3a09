"""A run on the screen: a bar per blob on a terminal, a line per tag everywhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from entrepot.errors import EntrepotError
from entrepot.oci.digest import Digest
from entrepot.replication.differences import Change, count_changes
from entrepot.replication.events import (
    BlobAdvanced,
    BlobEnded,
    BlobResumed,
    BlobStarted,
    CompanionCopied,
    CompanionDeleted,
    CompanionFailed,
    DeletionFailed,
    Event,
    ItemFailed,
    ItemFinished,
    Listed,
    ManifestSigned,
    RepositoryFailed,
    TagDeleted,
    Tell,
)
from entrepot.replication.report import is_refusal

# Bars of finished blobs that stay on the screen.
_KEPT_BARS = 12
_DIGEST_CHARACTERS = 8


@contextmanager
def showing() -> Iterator[Tell]:
    """A listener that shows a run while the context lasts."""
    console = Console(highlight=False)
    bars = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
        BarColumn(bar_width=20),
        DownloadColumn(table_column=Column(no_wrap=True, justify="right")),
        TransferSpeedColumn(table_column=Column(no_wrap=True, justify="right")),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=console,
        disable=not console.is_terminal,
    )
    with bars:
        yield _Display(bars).show


class _Display:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[Digest, TaskID] = {}
        self._finished: list[TaskID] = []

    def show(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Listed(items):
                counts = count_changes(items)
                self._print(
                    f"{len(items)} tags at the source: {counts[Change.NEW]} new, {counts[Change.CHANGED]} changed, "
                    f"{counts[Change.SAME]} as here"
                )
            case BlobStarted(target, blob):
                name = f"{target} {blob.digest.algorithm}:{blob.digest.hex[:_DIGEST_CHARACTERS]}"
                self._tasks[blob.digest] = self._bars.add_task(name, total=blob.size)
            case BlobAdvanced(blob, size) | BlobResumed(blob, size):
                self._bars.advance(self._tasks[blob.digest], size)
            case BlobEnded(blob, is_complete):
                self._end_bar(self._tasks.pop(blob.digest), is_complete=is_complete)
            case _:
                line = _tell(event)
                if line is not None:
                    self._print(line)

    def _end_bar(self, task: TaskID, *, is_complete: bool) -> None:
        if not is_complete:
            self._bars.remove_task(task)
            return
        self._finished.append(task)
        if len(self._finished) > _KEPT_BARS:
            self._bars.remove_task(self._finished.pop(0))

    def _print(self, text: str) -> None:
        self._bars.console.print(text, markup=False, soft_wrap=True)


def _tell(event: Event) -> str | None:
    """The line that says how something ended, None for what needs none."""
    line = None
    match event:
        case ItemFinished(item, signed):
            by = "" if signed is None else f"  (signed: {signed})"
            line = f"copied {item.origin}:{item.tag} to {item.target}:{item.tag}  {item.digest}{by}"
        case CompanionCopied(route, companion):
            line = f"copied {route.origin}, {companion}, of {companion.subject}"
        case ManifestSigned(route, digest):
            line = f"signed {route.target}@{digest}"
        case ItemFailed(item, error):
            line = f"{_word(error)} {item.origin}:{item.tag}: {error}"
        case TagDeleted(route, tag, digest):
            line = f"deleted {route.target}:{tag}  {digest}"
        case CompanionDeleted(target, tag):
            line = f"deleted {target}:{tag}, which no tag needs any more"
        case DeletionFailed(route, tag, _, error):
            line = f"{_word(error)} {route.target}:{tag}, deleting: {error}"
        case CompanionFailed(route, what, error):
            line = f"FAILED {route.origin}, {what}: {error}"
        case RepositoryFailed(repository, error):
            line = f"FAILED {repository}: {error}"
        case _:
            pass
    return line


def _word(error: EntrepotError) -> str:
    return "REFUSED" if is_refusal(error) else "FAILED"
