"""Bodies of the platform API that tell of events and webhooks."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from entrepot.access.secrets import Secret
from entrepot.accounts.events import Event
from entrepot.accounts.webhook_records import DeliveryStatus
from entrepot.accounts.webhooks import Delivery, Webhook


class EventBody(BaseModel):
    """Something that happened; the data of each type is in docs/reference/events.md."""

    id: str
    type: str
    timestamp: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> "EventBody":
        """The body for an event."""
        return cls(id=event.id, type=event.type, timestamp=event.at, data=event.data)


class EventList(BaseModel):
    """Events, oldest first."""

    events: list[EventBody]
    next_cursor: str = Field(description="Gets what comes after, now or later.")
    has_more: bool = Field(description="Whether more is there already.")


class WebhookBody(BaseModel):
    """Where events are delivered to."""

    name: str
    url: str
    types: list[str] | None = Field(description="null: all.")
    enabled: bool
    created_at: datetime
    failing_since: datetime | None = Field(description="Every attempt has failed since; null: the last one did not.")
    disabled_at: datetime | None
    disabled_reason: str | None

    @classmethod
    def of(cls, webhook: Webhook) -> "WebhookBody":
        """The body for a webhook."""
        return cls(
            name=webhook.name,
            url=webhook.url,
            types=None if webhook.types is None else sorted(webhook.types),
            enabled=webhook.disabled_at is None,
            created_at=webhook.created_at,
            failing_since=webhook.failing_since,
            disabled_at=webhook.disabled_at,
            disabled_reason=webhook.disabled_reason,
        )


class PutWebhook(BaseModel):
    """A webhook; with the secret that its deliveries are signed with when it is new, which is shown this once."""

    webhook: WebhookBody
    secret: str | None = None

    @classmethod
    def of(cls, webhook: Webhook, secret: Secret | None) -> "PutWebhook":
        """The body for a webhook just set up, or changed."""
        return cls(webhook=WebhookBody.of(webhook), secret=None if secret is None else secret.reveal())


class WebhookList(BaseModel):
    """Every webhook."""

    webhooks: list[WebhookBody]


class WebhookSecret(BaseModel):
    """A new secret, which is shown this once."""

    secret: str


class Replayed(BaseModel):
    """How many events will be delivered once more."""

    events: int


class Tested(BaseModel):
    """The event that will be delivered; its delivery says what became of it."""

    event_id: str


class DeliveryBody(BaseModel):
    """How far an event got on the way to a webhook."""

    event_id: str
    type: str
    timestamp: datetime
    status: DeliveryStatus
    attempts: int
    next_at: datetime | None = Field(description="When it is tried next; while it is, when somebody else will.")
    delivered_at: datetime | None
    problem: str | None = Field(description="Why the last attempt failed.")

    @classmethod
    def of(cls, delivery: Delivery) -> "DeliveryBody":
        """The body for a delivery."""
        return cls(
            event_id=delivery.event_id,
            type=delivery.type,
            timestamp=delivery.at,
            status=delivery.status,
            attempts=delivery.attempts,
            next_at=delivery.next_at,
            delivered_at=delivery.delivered_at,
            problem=delivery.problem,
        )


class DeliveryList(BaseModel):
    """A page of deliveries, the newest events first."""

    deliveries: list[DeliveryBody]
    next_cursor: str | None
