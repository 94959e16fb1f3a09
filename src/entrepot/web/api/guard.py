"""Who calls the platform API, and what their key lets them do."""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from entrepot.access.api_scopes import ApiScope
from entrepot.access.secrets import Secret
from entrepot.access.visitors import site_of
from entrepot.accounts.answers import KeptAnswer, Once, fingerprint
from entrepot.accounts.api_keys import ApiKey
from entrepot.accounts.audit import Actor
from entrepot.accounts.service import Account
from entrepot.errors import AccountUnknown, ApiKeyInvalid, RateExceeded, Unauthenticated
from entrepot.web.api.models import RequestBody
from entrepot.web.api.services import Services
from entrepot.web.asgi import Address, client_address

T = TypeVar("T")

_bearer = HTTPBearer(auto_error=False, description="An API key.")


class Caller:
    """A key that has the scope which the route asks for, and everything that the route works with.

    `reach` are the accounts that it may know of: every route that shows or changes any asks for it.
    """

    def __init__(self, request: Request, key: ApiKey, address: Address | None) -> None:
        self.services: Services = request.app.state.services
        self.key = key
        self.reach = key.reach
        self.actor = Actor(
            f"api-key:{key.name}" if key.workload is None else key.owner,
            request.state.request_id,
            None if address is None else str(address),
            key=None if key.workload is None else key.name,
        )
        self._request = request

    async def get_account(self, name: str) -> Account:
        """An account within the key's reach; any other is unknown to it. Raises AccountUnknown."""
        account = await self.services.accounts.get(name)
        if not self.reach.covers(account):
            raise AccountUnknown(f"there is no account {name[:80]!r}")
        return account

    def once(self, key: str | None, body: RequestBody, answer: Callable[[T], KeptAnswer]) -> Once[T] | None:
        """This request, to be carried out once; None when it came without an Idempotency-Key."""
        if key is None:
            return None
        request = self._request
        return Once(
            owner=self.key.owner,
            key=key,
            fingerprint=fingerprint(request.method, request.url.path, body.model_dump(mode="json")),
            answer=answer,
        )


def caller_with(scope: ApiScope) -> Callable[..., Coroutine[Any, Any, Caller]]:
    """A dependency: the caller, whose key has `scope`.

    Raises ApiKeyInvalid, TooManyFailures, RateExceeded or ApiKeyDenied.
    """

    async def find_caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        if credentials is None:
            raise ApiKeyInvalid("an API key is needed; send: Authorization: Bearer entk_...")
        services: Services = request.app.state.services
        address = address_of(request)
        with failures_counted(request):
            key = await services.api_keys.authenticate(Secret(credentials.credentials), address)
        allowance = request.state.allowance = services.key_rates.take(key)
        if allowance is not None and not allowance.is_granted:
            raise RateExceeded(
                f"API key '{key.name}' may make {allowance.limit} requests a minute; "
                f"go on in {allowance.reset_seconds} seconds",
                retry_seconds=allowance.reset_seconds,
            )
        key.verify_scope(scope)
        return Caller(request, key, address)

    return find_caller


@contextmanager
def failures_counted(request: Request) -> Iterator[None]:
    """Notes that what a request came with was wrong. Raises TooManyFailures when too much of it was."""
    services: Services = request.app.state.services
    try:
        yield
    except Unauthenticated:
        services.throttle.count_failure(site_of(address_of(request)))
        raise


def address_of(request: Request) -> Address | None:
    """Whence a request came."""
    services: Services = request.app.state.services
    return client_address(request.scope, services.trusted_proxies)


WritesAccounts = Annotated[Caller, Depends(caller_with(ApiScope.ACCOUNTS_WRITE))]
ReadsAccounts = Annotated[Caller, Depends(caller_with(ApiScope.ACCOUNTS_READ))]
WritesPlans = Annotated[Caller, Depends(caller_with(ApiScope.PLANS_WRITE))]
ReadsPlans = Annotated[Caller, Depends(caller_with(ApiScope.PLANS_READ))]
ReadsUsage = Annotated[Caller, Depends(caller_with(ApiScope.USAGE_READ))]
ReadsAudit = Annotated[Caller, Depends(caller_with(ApiScope.AUDIT_READ))]
WritesReplication = Annotated[Caller, Depends(caller_with(ApiScope.REPLICATION_WRITE))]
RunsReplication = Annotated[Caller, Depends(caller_with(ApiScope.REPLICATION_RUN))]
ReadsReplication = Annotated[Caller, Depends(caller_with(ApiScope.REPLICATION_READ))]
Administers = Annotated[Caller, Depends(caller_with(ApiScope.ADMIN))]
