"""`entrepot replicate`: copy content from a source registry."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrepot.cli.output import Json, actor, moment, print_json, print_table
from entrepot.cli.parts import open_parts
from entrepot.errors import EntrepotError

if TYPE_CHECKING:
    from entrepot.replication.differences import Item
    from entrepot.replication.events import Event
    from entrepot.replication.runs import Plan, Run

app = typer.Typer(help="Replication: copy content from a source registry.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The rule's name.", metavar="NAME")]
_LISTED_RUNS = 20


class RunFailed(EntrepotError):
    """A run that was waited for did not bring everything over."""


@app.command(epilog="Example: entrepot replicate apply replication.yaml")
def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A replication.yaml.", metavar="FILE")],
    json: Json = False,
) -> None:
    """Put the sources and rules of a file in force, all or none; others stay as they are."""
    from entrepot.errors import FileInvalid, RuleInvalid
    from entrepot.replication.rules import parse_rule_file
    from entrepot.storage.documents import line_of_path, read_yaml

    document = read_yaml(file)
    try:
        rules = parse_rule_file(document.value)
        with open_parts(context) as parts:
            parts.run(parts.replications.apply(rules, actor()))
    except RuleInvalid as error:
        raise FileInvalid(str(file), line_of_path(document, str(error)), str(error)) from error
    if json:
        print_json({"sources": [source.name for source in rules.sources], "rules": [rule.name for rule in rules.rules]})
        return
    for kind, entries in (("sources", rules.sources), ("rules", rules.rules)):
        if entries:
            print(f"{kind} in force: {', '.join(entry.name for entry in entries)}")
    if rules.rules:
        print(f"next: entrepot replicate run {rules.rules[0].name} --wait")


@app.command("list", epilog="Example: entrepot replicate list --json")
def list_rules(context: typer.Context, json: Json = False) -> None:
    """Show every rule."""
    with open_parts(context) as parts:
        rules = parts.run(parts.replications.list_rules())
    if json:
        print_json({"rules": {rule.name: rule.to_document() for rule in rules}})
    else:
        print_table(
            ("RULE", "SOURCE", "REPOSITORIES", "TAGS", "TARGET"),
            (
                (
                    rule.name,
                    rule.source,
                    " ".join(map(str, rule.repositories)),
                    " ".join([*map(str, rule.tags.include), *(f"!{glob}" for glob in rule.tags.exclude)]),
                    rule.target,
                )
                for rule in rules
            ),
        )


@app.command(epilog="Example: entrepot replicate plan smm")
def plan(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show what a run of a rule would copy, without copying it."""
    from entrepot.replication.differences import Change, count_changes
    from entrepot.replication.events import Event, RepositoryFailed

    failures: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, RepositoryFailed):
            failures.append(f"{event.repository}: {event.error}")

    with open_parts(context) as parts:
        found = parts.run(parts.replications.plan(name, hear))
    due = [item for item in found.items if item.change is not Change.SAME]
    if json:
        rows = [
            {
                "change": item.change.value,
                "from": f"{item.origin}:{item.tag}",
                "to": f"{item.target}:{item.tag}",
                "digest": str(item.digest),
                "here": item.here and str(item.here),
                "refused": str(found.refused[item]) if item in found.refused else None,
            }
            for item in due
        ]
        counts = {change.value: count for change, count in count_changes(found.items).items()}
        late = [
            {"repository": str(route.origin), "subject": str(one.subject), "what": str(one), "digest": str(one.digest)}
            for route, one in found.late
        ]
        print_json({"tags": counts, "due": rows, "referrers": late, "failures": failures})
    else:
        _print_plan(found, due)
    if failures:
        raise RunFailed("; ".join(failures))


def _print_plan(plan: "Plan", due: "list[Item]") -> None:
    rows = [
        (
            "refused" if item in plan.refused else item.change,
            f"{item.origin}:{item.tag}",
            f"{item.target}:{item.tag}",
            item.digest,
        )
        for item in due
    ]
    rows += [("referrer", f"{route.origin}, {one}", str(route.target), one.digest) for route, one in plan.late]
    if rows:
        print_table(("CHANGE", "FROM", "TO", "DIGEST"), rows)
    for item, error in plan.refused.items():
        print(f"{item.origin}:{item.tag}: {error}")
    print(
        f"{len(plan.items)} tags at the source match, {len(due)} of them are due"
        + (f", {len(plan.refused)} of those refused" if plan.refused else "")
    )


@app.command(epilog="Example: entrepot replicate run smm --wait")
def run(
    context: typer.Context,
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Copy here and now, and show how it goes.")] = False,
    json: Json = False,
) -> None:
    """Run a rule: in `entrepot serve` or `entrepot worker`, or with --wait here and now."""
    with open_parts(context) as parts:
        if not wait:
            queued = parts.run(parts.replications.queue(name, actor()))
            if json:
                print_json(queued.to_document())
            else:
                print(f"queued; entrepot serve or entrepot worker runs it. See: entrepot replicate status {name}")
            return
        if json:
            finished = parts.run(parts.replications.run(name, actor()))
            print_json(finished.to_document())
        else:
            from entrepot.cli.progress import showing

            with showing() as tell:
                finished = parts.run(parts.replications.run(name, actor(), tell))
            print(_tell_report(finished))
    if finished.status != "done":
        raise RunFailed(f"replication of {name!r} failed: {_tell_problem(finished.report)}")


@app.command(epilog="Example: entrepot replicate status smm")
def status(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only this rule.", metavar="[NAME]")] = None,
    json: Json = False,
) -> None:
    """Show the latest runs, newest first."""
    with open_parts(context) as parts:
        runs = parts.run(parts.replications.list_runs(name, _LISTED_RUNS))
    if json:
        print_json({"runs": [run.to_document() for run in runs]})
        return
    print_table(
        ("RULE", "STATUS", "QUEUED", "SECONDS", "RESULT"),
        ((run.rule, run.status, moment(run.queued_at), _seconds(run), _tell_report(run)) for run in runs),
    )


@app.command(epilog="Example: entrepot replicate export smm/api:v1.4 charts/smm --to /mnt/usb/smm.tar")
def export(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(help="REPOSITORY, or REPOSITORY:TAG.", metavar="REPOSITORY[:TAG]")],
    to: Annotated[Path, typer.Option("--to", help="A file that ends in .tar, or a folder.", metavar="PATH")],
    json: Json = False,
) -> None:
    """Write repositories of this registry, with their signatures, as an OCI layout to carry away.

    What is in the folder already is not written again. The other side reads it as a source of type archive, or with
    skopeo, oras, ctr or podman.
    """
    from entrepot.cli.progress import showing
    from entrepot.replication.export import Export, Wanted
    from entrepot.replication.layout_writers import open_writer
    from entrepot.replication.report import Report

    wanted = [Wanted.parse(image) for image in images]
    report = Report()
    with open_parts(context) as parts, open_writer(to) as writer, showing() as tell:

        def hear(event: "Event") -> None:
            report.note(event)
            if not json:
                tell(event)

        names = parts.run(Export(parts.registry, writer, hear).run(wanted))
    counts = report.to_document()
    if json:
        print_json({"to": str(to), "tags": names, "blobs": counts["blobs_copied"], "bytes": counts["bytes"]})
    else:
        print(
            f"{to}: {len(names)} tags, {counts['blobs_copied']} blobs ({counts['bytes'] / 1e6:.1f} MB) written, "
            f"{counts['blobs_present']} were there"
        )


def _seconds(run: "Run") -> str:
    if run.started_at is None or run.finished_at is None:
        return ""
    return f"{(run.finished_at - run.started_at).total_seconds():.1f}"


def _tell_report(run: "Run") -> str:
    report = run.report
    if not report:
        return ""
    parts = [
        f"{report['tags_copied']} tags copied",
        f"{report['tags'].get('same', 0)} as here",
        f"{report['blobs_copied']} blobs ({report['bytes'] / 1e6:.1f} MB) copied, {report['blobs_mounted']} mounted",
    ]
    # Reports of earlier versions do not have these.
    for name, words in (("referrers_copied", "referrers copied"), ("signed", "signed"), ("refused", "refused")):
        if report.get(name):
            parts.append(f"{report[name]} {words}")
    if run.status == "failed":
        parts.append(f"FAILED: {_tell_problem(report)}")
    return ", ".join(parts)


def _tell_problem(report: dict[str, Any]) -> str:
    """The one line that says why a run failed."""
    if "problem" in report:
        first: dict[str, Any] = report["problem"]
        return str(first["problem"])
    first = report["failures"][0]
    more = f" (and {report['failed'] - 1} more)" if report["failed"] > 1 else ""
    return f"{first['what']}: {first['problem']}{more}"
