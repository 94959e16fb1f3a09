"""`entrepot replicate`: copy content from a source registry."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.output import Json, actor, moment, print_done, print_json, print_table
from entrepot.cli.parts import open_parts
from entrepot.cli.run_tables import tell_problem, tell_report, tell_seconds
from entrepot.errors import EntrepotError

if TYPE_CHECKING:
    from entrepot.replication.events import Event
    from entrepot.replication.runs import Run

app = typer.Typer(help="Replication: copy content from a source registry.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The rule's name.", metavar="NAME")]
_LISTED_RUNS = 20
_SHOWN_FAILURES = 10


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
            parts.run(parts.rulebook.apply(rules, actor()))
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
        rules = parts.run(parts.rulebook.list_rules())
    if json:
        print_json({"rules": {rule.name: rule.to_document() for rule in rules}})
    else:
        print_table(
            ("RULE", "SOURCE", "REPOSITORIES", "TAGS", "TARGET", "SCHEDULE"),
            (
                (
                    rule.name,
                    rule.source,
                    " ".join(map(str, rule.repositories)),
                    " ".join(
                        [*map(str, rule.tags.include), *(f"!{glob}" for glob in rule.tags.exclude), str(rule.picks)]
                    ).rstrip(),
                    rule.target,
                    None if rule.options.schedule is None else rule.options.schedule.text,
                )
                for rule in rules
            ),
        )


@app.command(epilog="Example: entrepot replicate plan smm")
def plan(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show what a run of a rule would copy and delete, what is refused and why, and how much it is. Changes nothing."""
    from entrepot.cli.replicate_plan import print_plan, to_document
    from entrepot.replication.events import Event, ItemFailed, RepositoryFailed

    failures: list[str] = []

    def hear(event: Event) -> None:
        match event:
            case RepositoryFailed(repository, error):
                failures.append(f"{repository}: {error}")
            case ItemFailed(item, error):
                failures.append(f"{item.origin}:{item.tag}: {error}")
            case _:
                pass

    with open_parts(context) as parts:
        found = parts.run(parts.replications.plan(name, hear))
    if found.absences.problem is not None:
        failures.append(str(found.absences.problem))
    if json:
        print_json(to_document(found) | {"failures": failures})
    else:
        print_plan(found)
    if failures:
        others = len(failures) - _SHOWN_FAILURES
        more = f" (and {others} more)" if others > 0 else ""
        raise RunFailed("; ".join(failures[:_SHOWN_FAILURES]) + more)


@app.command(epilog="Example: entrepot replicate run smm --wait")
def run(
    context: typer.Context,
    name: Name,
    wait: Annotated[
        bool, typer.Option("--wait", help="Copy here and now, whatever the window, and show how it goes.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a rule: in `entrepot serve` or `entrepot worker`, or with --wait here and now."""
    with open_parts(context) as parts:
        if not wait:
            queued = parts.run(parts.runs.queue(name, actor()))
            if json:
                print_json(queued.to_document())
            else:
                begins = f" from {moment(queued.due_at)} on" if _is_later(queued) else ""
                print(
                    f"queued; entrepot serve or entrepot worker runs it{begins}. See: entrepot replicate status {name}"
                )
            return
        if json:
            finished = parts.run(parts.replications.run(name, actor()))
            print_json(finished.to_document())
        else:
            from entrepot.cli.progress import showing

            with showing() as tell:
                finished = parts.run(parts.replications.run(name, actor(), tell))
            print(tell_report(finished))
    if finished.status != "done":
        raise RunFailed(f"replication of {name!r} failed: {tell_problem(finished.report)}")


@app.command(epilog="Example: entrepot replicate status smm --watch")
def status(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only this rule.", metavar="[NAME]")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show how unfinished runs go, wherever they do, until they have ended.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the latest runs, newest first."""
    from entrepot.replication.records import RunFilter

    with open_parts(context) as parts:
        if watch and not json:
            from entrepot.cli.run_tables import watch as watch_runs

            ended = parts.run(watch_runs(parts.runs, name))
            bad = [run for run in ended if run.status != "done"]
            if bad:
                raise RunFailed(
                    "; ".join(f"replication of {run.rule!r} {run.status}: {tell_problem(run.report)}" for run in bad)
                )
            if ended:
                return
        runs = parts.run(parts.runs.list_runs(RunFilter(name), _LISTED_RUNS))
    if json:
        print_json({"runs": [run.to_document() for run in runs]})
        return
    print_table(
        ("RULE", "STATUS", "CAUSE", "QUEUED", "SECONDS", "RESULT"),
        ((run.rule, run.status, run.cause, moment(run.queued_at), tell_seconds(run), tell_report(run)) for run in runs),
    )


@app.command(epilog="Example: entrepot replicate cancel smm")
def cancel(context: typer.Context, name: Name, json: Json = False) -> None:
    """End the unfinished runs of a rule, wherever they go on. What has arrived stays."""
    with open_parts(context) as parts:
        cancelled = parts.run(parts.runs.cancel_rule(name, actor()))
    print_done(json, f"{len(cancelled)} runs of {name!r} cancelled", cancelled=[run.id for run in cancelled])


@app.command(epilog="Example: entrepot replicate delete smm")
def delete(
    context: typer.Context,
    name: Name,
    source: Annotated[bool, typer.Option("--source", help="NAME is a source, which no rule uses any more.")] = False,
    json: Json = False,
) -> None:
    """Drop a rule or a source; unfinished runs are cancelled. What was copied stays."""
    with open_parts(context) as parts:
        rulebook = parts.rulebook
        parts.run((rulebook.delete_source if source else rulebook.delete_rule)(name, actor()))
    print_done(json, f"{'source' if source else 'rule'} {name!r} deleted", deleted=name)


@app.command(epilog="Example: entrepot replicate verify smm --deep")
def verify(
    context: typer.Context,
    name: Name,
    deep: Annotated[bool, typer.Option("--deep", help="Look whether all that the tags lead to is here, too.")] = False,
    json: Json = False,
) -> None:
    """Compare what is here with the source, digest by digest. Exits with 1 when something differs."""
    with open_parts(context) as parts:
        found = parts.run(parts.replications.verify(name, is_deep=deep))
    if json:
        print_json(found.to_document())
    else:
        for item in found.missing:
            print(f"missing    {item.target}:{item.tag}, there {item.digest}")
        for item in found.different:
            print(f"different  {item.target}:{item.tag}, there {item.digest}, here {item.here}")
        for vanished in found.gone:
            reason = f", {vanished.refused}" if vanished.refused else ""
            what = f"{vanished.placed}, not at the source any more or not new enough"
            print(f"gone       {what}, here {vanished.placed.digest}{reason}")
        for kind, lines in (("unlisted ", found.unlisted), ("broken   ", found.broken)):
            for line in lines:
                print(f"{kind}  {line}")
        for what in found.kept:
            until = f" until {moment(found.kept_until[what])}" if what in found.kept_until else ""
            print(f"kept       {what}{until}")
    counts = {
        "missing here": len(found.missing),
        "different": len(found.different),
        "gone at the source": len(found.gone),
        "not listed": len(found.unlisted),
        "broken here": len(found.broken),
    }
    exceptions = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if exceptions:
        raise RunFailed(f"{name}: {found.equal} tags are equal, except {exceptions}")
    if not json:
        kept = f"; {len(found.kept)} more are only here" if found.kept else ""
        left_out = f"; {len(found.left_out)} more are left out by the rule" if found.left_out else ""
        print(f"{name}: equal, {found.equal} tags{kept}{left_out}")


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


def _is_later(run: "Run") -> bool:
    return run.due_at is not None and run.due_at > run.queued_at
