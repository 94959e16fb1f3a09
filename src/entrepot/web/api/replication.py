"""Sources, rules and runs of replication."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from entrepot.access.api_scopes import ApiScope, covers
from entrepot.errors import Unavailable
from entrepot.replication.push_events import parse_notice
from entrepot.replication.records import RunFilter
from entrepot.replication.rules import Rule, RuleFile
from entrepot.replication.source_specs import parse_source
from entrepot.web.api import replication_models as bodies
from entrepot.web.api.cursors import not_ours, read_cursor, read_text_cursor, write_cursor, write_text_cursor
from entrepot.web.api.guard import ReadsReplication, RunsReplication, WritesReplication
from entrepot.web.api.run_streams import RunStreams

router = APIRouter(prefix="/replication", tags=["replication"])

Limit = Annotated[int, Query(ge=1, le=500)]
Fields = dict[str, Any]


@router.get("/sources")
async def list_sources(caller: ReadsReplication) -> bodies.SourceList:
    """Every source."""
    specs = await caller.services.rulebook.list_sources()
    return bodies.SourceList(sources=[bodies.SourceBody.of(spec) for spec in specs])


@router.get("/sources/{name}")
async def get_source(name: str, caller: ReadsReplication) -> bodies.SourceBody:
    """One source."""
    return bodies.SourceBody.of(await caller.services.rulebook.get_source(name))


@router.put("/sources/{name}")
async def put_source(name: str, fields: Fields, caller: WritesReplication) -> bodies.SourceBody:
    """Put a source in force, with the fields of replication.yaml. Passwords are named, never sent."""
    spec = parse_source(name, fields)
    await caller.services.rulebook.apply(RuleFile((spec,), ()), caller.actor)
    return bodies.SourceBody.of(spec)


@router.delete("/sources/{name}", status_code=204)
async def delete_source(name: str, caller: WritesReplication) -> None:
    """Drop a source that no rule uses."""
    await caller.services.rulebook.delete_source(name, caller.actor)


@router.post("/sources/{name}/pushes", status_code=202)
async def tell_of_pushes(name: str, fields: Fields, caller: RunsReplication) -> bodies.PushesBody:
    """Have what was pushed copied soon, as far as rules mean it: for a source's webhook.

    Takes `{"pushes": [{"repository": "smm/api", "tag": "v1"}]}`, where no tag is the whole repository, and what Harbor
    and the CNCF distribution send. 503 while as many pushes wait as may.
    """
    spec = await caller.services.rulebook.get_source(name)
    spots = parse_notice(fields)
    if spots and not await caller.services.runs.queue_pushes(spec.name, spots):
        raise Unavailable("as many pushes of this source wait as may; send it again, or let the schedule find it")
    await caller.services.runs.count(f"source:{spec.name}", {"push": len(spots)} if spots else {"ignored": 1})
    return bodies.PushesBody(pushes=len(spots))


@router.get("/rules")
async def list_rules(caller: ReadsReplication) -> bodies.RuleList:
    """Every rule."""
    return bodies.RuleList(rules=[bodies.RuleBody.of(rule) for rule in await caller.services.rulebook.list_rules()])


@router.get("/rules/{name}")
async def get_rule(name: str, caller: ReadsReplication) -> bodies.RuleStateBody:
    """One rule, and when its schedule wants a run."""
    return bodies.RuleStateBody.of_state(await caller.services.rulebook.get_rule(name))


@router.put("/rules/{name}")
async def put_rule(name: str, fields: Fields, caller: WritesReplication) -> bodies.RuleStateBody:
    """Put a rule in force, with the fields of replication.yaml."""
    await caller.services.rulebook.apply(RuleFile((), (Rule.parse(name, fields),)), caller.actor)
    return bodies.RuleStateBody.of_state(await caller.services.rulebook.get_rule(name))


@router.delete("/rules/{name}", status_code=204)
async def delete_rule(name: str, caller: WritesReplication) -> None:
    """Drop a rule and cancel its unfinished runs. What was copied stays."""
    await caller.services.rulebook.delete_rule(name, caller.actor)


@router.post("/rules/{name}/runs", status_code=202)
async def start_run(name: str, caller: RunsReplication) -> bodies.RunBody:
    """Let a worker run the rule soon, or when its window opens. 409 while it has a run that is queued or goes on."""
    body = bodies.RunBody.of(await caller.services.runs.queue(name, caller.actor))
    # One that waited to be tried again has a report, with names and problems that are for those who may read them.
    return body if covers(caller.key.scopes, ApiScope.REPLICATION_READ) else body.model_copy(update={"report": {}})


@router.get("/runs", responses={404: {}})
async def list_runs(
    caller: ReadsReplication,
    rule: str | None = None,
    status: bodies.RunStatus | None = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> bodies.RunPage:
    """Runs, newest first."""
    wanted = RunFilter(rule, () if status is None else (status,), _read_place(cursor))
    found = await caller.services.runs.list_runs(wanted, limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    return bodies.RunPage(
        runs=[bodies.RunBody.of(run) for run in found[:limit]],
        next_cursor=None if last is None else write_text_cursor(f"{last.queued_at.isoformat()} {last.id}"),
    )


@router.get("/runs/{run_id}")
async def get_run(run_id: str, caller: ReadsReplication) -> bodies.RunBody:
    """One run, as of about a second ago while it goes on."""
    return bodies.RunBody.of(await caller.services.runs.get_run(run_id))


@router.delete("/runs/{run_id}", status_code=204)
async def cancel_run(run_id: str, caller: WritesReplication) -> None:
    """End a run now, wherever it goes on. 409 when it has ended."""
    await caller.services.runs.cancel(run_id, caller.actor)


@router.get("/runs/{run_id}/artifacts")
async def list_artifacts(
    run_id: str, caller: ReadsReplication, cursor: str | None = None, limit: Limit = 100
) -> bodies.ArtifactPage:
    """What became of the tags of a run, in the order in which it did; at most 1000 of each try."""
    found = await caller.services.runs.list_artifacts(run_id, read_cursor(cursor) or 0, limit + 1)
    return bodies.ArtifactPage(
        artifacts=[bodies.ArtifactBody.model_validate(row) for row in found[:limit]],
        next_cursor=write_cursor(found[limit - 1]["id"]) if len(found) > limit else None,
    )


@router.get(
    "/runs/{run_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events, until the run ends."},
        204: {"description": "The run has ended, and the client has seen it all."},
    },
)
async def follow_run(
    run_id: str,
    request: Request,
    caller: ReadsReplication,  # noqa: ARG001 - it must be there
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """How a run goes, as server-sent events: `artifact` for each tag, `run` when it changes; ends with the run.

    204 tells a client that comes back (`Last-Event-ID`) that nothing more will come.
    """
    streams: RunStreams = request.app.state.run_streams
    events = await streams.open(run_id, last_event_id)
    if events is None:
        return Response(status_code=204)
    # Some proxies gather answers before they pass them on, unless they are told.
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _read_place(cursor: str | None) -> tuple[datetime, str] | None:
    """What a page of runs begins behind."""
    if cursor is None:
        return None
    at, _, run_id = read_text_cursor(cursor).partition(" ")
    try:
        queued_at = datetime.fromisoformat(at)
    except ValueError as error:
        raise not_ours() from error
    if queued_at.tzinfo is None:
        raise not_ours()
    return (queued_at, run_id)
