"""What happened, to be read on from where one stopped."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from entrepot.accounts.event_records import EventFilter
from entrepot.accounts.events import EventType
from entrepot.web.api import event_models as bodies
from entrepot.web.api.cursors import read_cursor, write_cursor
from entrepot.web.api.guard import ReadsAccounts
from entrepot.web.api.models import Instant

router = APIRouter(tags=["events"])


async def _read_filter(
    caller: ReadsAccounts,
    types: Annotated[list[EventType] | None, Query(alias="type", description="Any of these.")] = None,
    account: str | None = None,
    since: Instant | None = None,
) -> EventFilter:
    account_id = None if account is None else (await caller.get_account(account)).id
    return EventFilter(None if types is None else frozenset(types), account_id, since, caller.reach)


Wanted = Annotated[EventFilter, Depends(_read_filter)]


@router.get("/events", responses={404: {}})
async def list_events(
    caller: ReadsAccounts,
    wanted: Wanted,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> bodies.EventList:
    """Events that fit, oldest first; `next_cursor` is always there, to ask for later ones with."""
    page = await caller.services.events.list_events(wanted, read_cursor(cursor) or 0, limit)
    return bodies.EventList(
        events=[bodies.EventBody.of(event) for event in page.events],
        next_cursor=write_cursor(page.last_number),
        has_more=page.has_more,
    )
