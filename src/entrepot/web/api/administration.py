"""Plans and the audit log."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from entrepot.access.plans import Plan
from entrepot.accounts.records import AuditFilter
from entrepot.web.api import models
from entrepot.web.api.cursors import read_cursor, write_cursor
from entrepot.web.api.guard import ReadsAudit, ReadsPlans, WritesPlans

router = APIRouter(tags=["administration"])


@router.get("/plans", response_model_exclude_none=True)
async def list_plans(caller: ReadsPlans) -> models.PlanList:
    """Every plan that the key may have to do with."""
    plans = await caller.services.plans.list_plans()
    return models.PlanList(plans=[_plan_body(plan) for plan in plans if caller.key.may_touch(plan.name)])


@router.get("/plans/{name}", response_model_exclude_none=True)
async def get_plan(name: str, caller: ReadsPlans) -> models.PlanBody:
    """One plan."""
    caller.key.verify_plan(name)
    return _plan_body(await caller.services.plans.get(name))


@router.put("/plans/{name}", response_model_exclude_none=True)
async def put_plan(name: str, body: models.PlanRequest, caller: WritesPlans) -> models.PlanBody:
    """Put a plan in force, for tokens already issued, too."""
    caller.key.verify_plan(name)
    plan = Plan.parse(name, body.model_dump(exclude_none=True))
    await caller.services.plans.apply([plan], caller.actor)
    return _plan_body(plan)


@router.delete("/plans/{name}", status_code=204)
async def delete_plan(name: str, caller: WritesPlans) -> None:
    """Drop a plan that no account is on."""
    caller.key.verify_plan(name)
    await caller.services.plans.delete(name, caller.actor)


def _read_filter(
    caller: ReadsAudit,
    target: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: models.Instant | None = None,
    until: models.Instant | None = None,
) -> AuditFilter:
    only_by = caller.actor.name if caller.reach.is_limited else None
    return AuditFilter(target, actor, action, since, until, only_by)


Wanted = Annotated[AuditFilter, Depends(_read_filter)]


@router.get("/audit")
async def list_audit(
    caller: ReadsAudit,
    wanted: Wanted,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> models.AuditPage:
    """Every change, newest first; to a key that is limited to some accounts, those that it made itself."""
    found = await caller.services.audit.list_rows(wanted, read_cursor(cursor), limit + 1)
    page = found[:limit]
    return models.AuditPage(
        audit=[models.AuditRowBody.of(row) for row in page],
        next_cursor=write_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get(
    "/audit/export", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}}
)
async def export_audit(caller: ReadsAudit, wanted: Wanted) -> StreamingResponse:
    """The same without pages, as JSON lines (application/x-ndjson)."""

    async def lines() -> AsyncIterator[bytes]:
        async for page in caller.services.audit.export(wanted):
            yield "".join(f"{models.AuditRowBody.of(row).model_dump_json()}\n" for row in page).encode()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _plan_body(plan: Plan) -> models.PlanBody:
    return models.PlanBody(name=plan.name, **plan.to_document())
