"""Plans of replication: as people read them, and as programs do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from entrepot.cli.output import moment, print_table
from entrepot.cli.run_tables import megabytes
from entrepot.storage.clock import utc_now

if TYPE_CHECKING:
    from entrepot.replication.deletions import Vanished
    from entrepot.replication.replications import Plan

Row = tuple[object, ...]


def to_document(plan: "Plan") -> dict[str, Any]:
    """As `replicate plan --json` shows it."""
    from entrepot.replication.differences import count_changes

    return {
        "tags": {change.value: count for change, count in count_changes(plan.items).items()},
        "due": [
            {
                "change": item.change.value,
                "from": f"{item.origin}:{item.tag}",
                "to": f"{item.target}:{item.tag}",
                "digest": str(item.digest),
                "here": item.here and str(item.here),
                "refused": str(plan.refused[item]) if item in plan.refused else None,
            }
            for item in plan.due
        ],
        "left_out": [
            {"from": f"{item.origin}:{item.tag}", "digest": str(item.digest), "reason": reason}
            for item, reason in plan.left_out.items()
        ],
        "gone": [
            {
                "what": str(one.placed),
                "here": str(one.placed.digest),
                "missing_since": one.placed.missing_since,
                "deleted": _is_deleted(plan, one),
                "due_at": one.due_at,
                "refused": None if one.refused is None else str(one.refused),
            }
            for one in plan.absences.vanished
        ],
        "referrers": [
            {"repository": str(route.origin), "subject": str(one.subject), "what": str(one), "digest": str(one.digest)}
            for route, one in plan.late
        ],
        "bytes": plan.size.bytes,
        "bytes_are_all": plan.size.is_whole and not plan.size.failures,
    }


def print_plan(plan: "Plan") -> None:
    """A line for each tag, the reasons of what is refused, and the sums."""
    rows = [*_list_due(plan), *_list_gone(plan)]
    if rows:
        print_table(("CHANGE", "FROM", "TO", "DIGEST"), rows)
    for item, error in plan.refused.items():
        print(f"{item.origin}:{item.tag}: {error}")
    for item, reason in plan.left_out.items():
        print(f"{item.origin}:{item.tag} is left out: {reason}")
    for one in plan.absences.vanished:
        if one.refused is not None:
            print(f"{one.placed}: {one.refused}")
    least = "" if plan.size.is_whole and not plan.size.failures else "at least "
    refused = f", {len(plan.refused)} of those refused" if plan.refused else ""
    deleted = sum(_is_deleted(plan, one) for one in plan.absences.vanished)
    print(
        f"{len(plan.items)} tags at the source match, {len(plan.due)} of them are due{refused}"
        + (f"; {least}{megabytes(plan.size.bytes)} to move" if plan.due else "")
        + (f"; {deleted} to delete" if deleted else "")
        + (f"; {len(plan.left_out)} more are left out" if plan.left_out else "")
    )


def _list_due(plan: "Plan") -> Iterator[Row]:
    for item in plan.due:
        change = "refused" if item in plan.refused else item.change
        yield (change, f"{item.origin}:{item.tag}", f"{item.target}:{item.tag}", item.digest)
    for route, one in plan.late:
        yield ("referrer", f"{route.origin}, {one}", str(route.target), one.digest)


def _list_gone(plan: "Plan") -> Iterator[Row]:
    for one in plan.absences.vanished:
        if one.refused is not None:
            change = "refused"
        elif plan.absences.problem is not None:
            change = "stays"
        elif _is_deleted(plan, one):
            change = "delete"
        else:
            change = f"delete {moment(one.due_at)}"
        yield (change, "", str(one.placed), one.placed.digest)


def _is_deleted(plan: "Plan", one: "Vanished") -> bool:
    """Whether the next run would delete a tag that is gone."""
    return one.refused is None and plan.absences.problem is None and one.is_due(utc_now())
