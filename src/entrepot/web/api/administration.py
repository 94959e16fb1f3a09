"""Plans, API keys and the audit log."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from entrepot.access.api_scopes import parse_api_scopes
from entrepot.access.plans import Plan
from entrepot.accounts.records import AuditFilter
from entrepot.web.api import models
from entrepot.web.api.cursors import read_cursor, write_cursor
from entrepot.web.api.guard import Administers, ReadsAudit, ReadsPlans, WritesPlans

router = APIRouter(tags=["administration"])


@router.get("/plans", response_model_exclude_none=True)
async def list_plans(caller: ReadsPlans) -> models.PlanList:
    """Every plan."""
    return models.PlanList(plans=[_plan_body(plan) for plan in await caller.services.plans.list_plans()])


@router.get("/plans/{name}", response_model_exclude_none=True)
async def get_plan(name: str, caller: ReadsPlans) -> models.PlanBody:
    """One plan."""
    return _plan_body(await caller.services.plans.get(name))


@router.put("/plans/{name}", response_model_exclude_none=True)
async def put_plan(name: str, body: models.PlanRequest, caller: WritesPlans) -> models.PlanBody:
    """Put a plan in force, for tokens already issued, too."""
    plan = Plan.parse(name, body.model_dump(exclude_none=True))
    await caller.services.plans.apply([plan], caller.actor)
    return _plan_body(plan)


@router.delete("/plans/{name}", status_code=204)
async def delete_plan(name: str, caller: WritesPlans) -> None:
    """Drop a plan that no account is on."""
    await caller.services.plans.delete(name, caller.actor)


@router.get("/api-keys")
async def list_api_keys(caller: Administers) -> models.ApiKeyList:
    """Every API key, revoked ones included."""
    return models.ApiKeyList(api_keys=[models.ApiKeyBody.of(key) for key in await caller.services.api_keys.list_keys()])


@router.post("/api-keys", status_code=201)
async def create_api_key(body: models.ApiKeyRequest, caller: Administers) -> models.CreatedApiKey:
    """Make an API key; its secret is in this answer and nowhere else."""
    plans = None if body.plans is None else frozenset(body.plans)
    key, secret = await caller.services.api_keys.create(body.name, parse_api_scopes(body.scopes), plans, caller.actor)
    return models.CreatedApiKey(api_key=models.ApiKeyBody.of(key), secret=secret.reveal())


@router.delete("/api-keys/{name}", status_code=204)
async def revoke_api_key(name: str, caller: Administers) -> None:
    """Let an API key be refused from now on."""
    await caller.services.api_keys.revoke(name, caller.actor)


def _read_filter(
    target: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: models.Instant | None = None,
    until: models.Instant | None = None,
) -> AuditFilter:
    return AuditFilter(target, actor, action, since, until)


Wanted = Annotated[AuditFilter, Depends(_read_filter)]


@router.get("/audit")
async def list_audit(
    caller: ReadsAudit,
    wanted: Wanted,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> models.AuditPage:
    """Every change, newest first."""
    found = await caller.services.audit.list_rows(wanted, read_cursor(cursor), limit + 1)
    page = found[:limit]
    return models.AuditPage(
        audit=[models.AuditRowBody.of(row) for row in page],
        next_cursor=write_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/audit/export", response_class=StreamingResponse)
async def export_audit(caller: ReadsAudit, wanted: Wanted) -> StreamingResponse:
    """Every change, newest first, as JSON lines (application/x-ndjson)."""

    async def lines() -> AsyncIterator[bytes]:
        async for page in caller.services.audit.export(wanted):
            yield "".join(f"{models.AuditRowBody.of(row).model_dump_json()}\n" for row in page).encode()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _plan_body(plan: Plan) -> models.PlanBody:
    return models.PlanBody(name=plan.name, **plan.to_document())
