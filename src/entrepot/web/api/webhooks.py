"""Where events are delivered to."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from entrepot.accounts.webhook_records import DeliveryStatus
from entrepot.web.api import event_models as bodies
from entrepot.web.api.cursors import read_cursor, write_cursor
from entrepot.web.api.guard import Administers
from entrepot.web.api.models import ReplayRequest, WebhookRequest, WebhookSecretRequest

router = APIRouter(tags=["webhooks"], prefix="/webhooks")


@router.get("")
async def list_webhooks(caller: Administers) -> bodies.WebhookList:
    """Every webhook."""
    found = await caller.services.webhooks.list_webhooks()
    return bodies.WebhookList(webhooks=[bodies.WebhookBody.of(webhook) for webhook in found])


@router.get("/{name}")
async def get_webhook(name: str, caller: Administers) -> bodies.WebhookBody:
    """One webhook."""
    return bodies.WebhookBody.of(await caller.services.webhooks.get(name))


@router.put(
    "/{name}", status_code=201, response_model_exclude_defaults=True, responses={200: {"model": bodies.PutWebhook}}
)
async def put_webhook(name: str, body: WebhookRequest, caller: Administers, response: Response) -> bodies.PutWebhook:
    """Set up a webhook, whose secret is in this answer and nowhere else; 200 and no secret when it exists already."""
    webhook, secret = await caller.services.webhooks.put(
        name, body.url, body.types, caller.actor, is_enabled=body.enabled
    )
    if secret is None:
        response.status_code = 200
    return bodies.PutWebhook.of(webhook, secret)


@router.delete("/{name}", status_code=204)
async def delete_webhook(name: str, caller: Administers) -> None:
    """Drop a webhook, and what waits to be delivered to it."""
    await caller.services.webhooks.delete(name, caller.actor)


@router.post("/{name}/secret", status_code=201)
async def rotate_secret(
    name: str, caller: Administers, body: WebhookSecretRequest | None = None
) -> bodies.WebhookSecret:
    """Make a new secret; deliveries are signed with the old one, too, until the grace is over."""
    body = body or WebhookSecretRequest.model_validate({})
    grace = timedelta(seconds=body.grace_seconds)
    secret = await caller.services.webhooks.rotate_secret(name, grace, caller.actor)
    return bodies.WebhookSecret(secret=secret.reveal())


@router.post("/{name}/replay", status_code=202)
async def replay(name: str, body: ReplayRequest, caller: Administers) -> bodies.Replayed:
    """Deliver an event, or all from an instant on, once more."""
    webhooks = caller.services.webhooks
    if body.since is not None:
        return bodies.Replayed(events=await webhooks.replay_since(name, body.since, caller.actor))
    await webhooks.replay_event(name, body.event_id or "", caller.actor)
    return bodies.Replayed(events=1)


@router.post("/{name}/test", status_code=202)
async def test_webhook(name: str, caller: Administers) -> bodies.Tested:
    """Deliver an event of the type `webhook.test`."""
    return bodies.Tested(event_id=await caller.services.webhooks.test(name, caller.actor))


@router.get("/{name}/deliveries")
async def list_deliveries(
    name: str,
    caller: Administers,
    status: DeliveryStatus | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> bodies.DeliveryList:
    """What became of the events that a webhook was given, the newest first."""
    found = await caller.services.webhooks.list_deliveries(name, status, read_cursor(cursor), limit + 1)
    page = found[:limit]
    return bodies.DeliveryList(
        deliveries=[bodies.DeliveryBody.of(delivery) for delivery in page],
        next_cursor=write_cursor(page[-1].row) if len(found) > limit else None,
    )
