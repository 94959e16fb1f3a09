"""`entrepot gc`: remove what nothing refers to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from entrepot.cli.output import Json, print_json
from entrepot.cli.parts import open_parts

if TYPE_CHECKING:
    from entrepot.registry.garbage import Removed, Report, Tell

# Things that a JSON document or a terminal lists; more are only counted.
_LISTED = 1000
_WORDS = {
    "uploads": "unfinished uploads",
    "manifests": "untagged manifests",
    "links": "blobs that no manifest of a repository names",
    "blobs": "blobs that no repository holds",
    "objects": "objects that belong to nothing",
}


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove uploads, manifests and blobs that nothing refers to, while everybody goes on pulling and pushing.

    What is younger than ENTREPOT_GC__GRACE_SECONDS is left alone. A run that was killed is taken up where it stood.
    """
    listed: list[Removed] = []

    def keep(removed: "Removed") -> None:
        if len(listed) < _LISTED:
            listed.append(removed)

    with open_parts(context) as parts:
        if json:
            report = parts.run(parts.garbage.preview(keep) if dry_run else parts.garbage.collect(keep))
        else:
            with _showing(is_dry_run=dry_run) as tell:
                report = parts.run(parts.garbage.preview(tell) if dry_run else parts.garbage.collect(tell))
    if json:
        print_json(_to_document(report, listed, is_dry_run=dry_run))
        return
    verb = "would be removed" if dry_run else "removed"
    for phase, words in _WORDS.items():
        if report.removed[phase]:
            print(f"{report.removed[phase]:>10} {words} {verb}")
    print(f"{report.freed_bytes / 1e6:>10.1f} MB of blob storage {'would be ' if dry_run else ''}freed")


def _to_document(report: "Report", listed: "list[Removed]", *, is_dry_run: bool) -> dict[str, Any]:
    things = [{"phase": one.phase, "what": one.what, "bytes": one.size} for one in listed]
    return {"dry_run": is_dry_run, **report.to_document(), "listed": things}


@contextmanager
def _showing(*, is_dry_run: bool) -> "Iterator[Tell]":
    """A listener that shows each thing as it goes, and how many have gone, while the context lasts."""
    console = Console(highlight=False)
    count = 0
    with console.status("looking ...") as status:

        def tell(removed: "Removed") -> None:
            nonlocal count
            count += 1
            status.update(f"{removed.phase}: {count} things so far")
            if count <= _LISTED:
                verb = "would remove" if is_dry_run else "removed"
                console.print(
                    f"{verb} {removed.phase} {removed.what}  {removed.size} bytes", markup=False, soft_wrap=True
                )
            elif count == _LISTED + 1:
                console.print("... and more, which are only counted", markup=False)

        yield tell
