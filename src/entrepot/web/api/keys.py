"""API keys, made by hand or got by the token of a workload's platform."""

from datetime import timedelta
from functools import partial

from fastapi import APIRouter, Request, Response

from entrepot.access.api_scopes import parse_api_scopes
from entrepot.access.secrets import Secret
from entrepot.accounts.answers import KeptAnswer
from entrepot.accounts.api_keys import ApiKey
from entrepot.web.api.guard import Administers, address_of, failures_counted
from entrepot.web.api.idempotency import IdempotencyKey, answer_again
from entrepot.web.api.key_models import (
    ApiKeyBody,
    ApiKeyList,
    ApiKeyRequest,
    CreatedApiKey,
    ExchangeRequest,
    RotationRequest,
)
from entrepot.web.api.services import Services

router = APIRouter(tags=["API keys"])


@router.get("/api-keys")
async def list_api_keys(caller: Administers) -> ApiKeyList:
    """Every API key, revoked ones included."""
    return ApiKeyList(api_keys=[ApiKeyBody.of(key) for key in await caller.services.api_keys.list_keys()])


@router.post("/api-keys", status_code=201, response_model=CreatedApiKey)
async def create_api_key(body: ApiKeyRequest, caller: Administers, again: IdempotencyKey) -> CreatedApiKey | Response:
    """Make an API key; its secret is in this answer and nowhere else. It may do no more than the key that asks."""
    once = caller.once(again, body, _keep)
    change = partial(
        caller.services.api_keys.create,
        body.name,
        parse_api_scopes(body.scopes),
        None if body.plans is None else frozenset(body.plans),
        caller.actor,
        networks=body.networks,
        expires_at=body.expires_at,
        requests_per_minute=body.requests_per_minute,
        own_accounts_only=body.own_accounts_only,
        giver=caller.key,
        once=once,
    )
    done = await caller.services.answers.once(once, change)
    return answer_again(done) if isinstance(done, KeptAnswer) else CreatedApiKey.of(*done)


@router.post("/oidc/token", status_code=201)
async def exchange_token(body: ExchangeRequest, request: Request) -> CreatedApiKey:
    """Exchange a token of a workload's platform for an API key that lives for minutes; needs no API key."""
    services: Services = request.app.state.services
    address = address_of(request)
    with failures_counted(request):
        key, secret = await services.workloads.exchange(
            body.token, request.state.request_id, None if address is None else str(address)
        )
    return CreatedApiKey.of(key, secret)


@router.post("/api-keys/{name}/rotation", status_code=201)
async def rotate_api_key(name: str, caller: Administers, body: RotationRequest | None = None) -> CreatedApiKey:
    """Give an API key a new secret; the one that it has holds until the overlap has passed."""
    body = body or RotationRequest.model_validate({})
    overlap = timedelta(seconds=body.overlap_seconds)
    return CreatedApiKey.of(*await caller.services.api_keys.rotate(name, overlap, caller.actor, giver=caller.key))


@router.delete("/api-keys/{name}", status_code=204)
async def revoke_api_key(name: str, caller: Administers) -> None:
    """Let an API key be refused from now on."""
    await caller.services.api_keys.revoke(name, caller.actor)


def _keep(made: tuple[ApiKey, Secret]) -> KeptAnswer:
    body = CreatedApiKey(api_key=ApiKeyBody.of(made[0]))
    return KeptAnswer(201, body.model_dump(mode="json", exclude={"secret"}))
