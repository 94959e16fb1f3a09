"""Who calls the platform API, and what their key lets them do."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from entrepot.access.api_scopes import ApiScope
from entrepot.access.secrets import Secret
from entrepot.access.visitors import site_of
from entrepot.accounts.api_keys import ApiKey
from entrepot.accounts.audit import Actor
from entrepot.accounts.reach import AccountReach
from entrepot.accounts.service import Account
from entrepot.errors import AccountUnknown, ApiKeyInvalid
from entrepot.web.api.services import Services
from entrepot.web.asgi import client_address

_bearer = HTTPBearer(auto_error=False, description="An API key.")


class Caller:
    """A key that has the scope which the route asks for, and everything that the route works with."""

    def __init__(self, request: Request, key: ApiKey) -> None:
        self.services: Services = request.app.state.services
        self.key = key
        # Every list and every single account that a route shows or changes goes through it.
        self.reach = AccountReach(plans=key.plans)
        address = client_address(request.scope, self.services.trusted_proxies)
        self.actor = Actor(f"api-key:{key.name}", request.state.request_id, None if address is None else str(address))

    async def get_account(self, name: str) -> Account:
        """An account that the key may touch; any other is unknown to it. Raises AccountUnknown."""
        account = await self.services.accounts.get(name)
        if not self.reach.covers(account):
            raise AccountUnknown(f"there is no account {name[:80]!r}")
        return account


def caller_with(scope: ApiScope) -> Callable[..., Coroutine[Any, Any, Caller]]:
    """A dependency: the caller, whose key has `scope`. Raises ApiKeyInvalid, TooManyFailures or ApiKeyDenied."""

    async def find_caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        if credentials is None:
            raise ApiKeyInvalid("an API key is needed; send: Authorization: Bearer entk_...")
        services: Services = request.app.state.services
        try:
            key = await services.api_keys.authenticate(Secret(credentials.credentials))
        except ApiKeyInvalid:
            services.throttle.count_failure(site_of(client_address(request.scope, services.trusted_proxies)))
            raise
        key.verify_scope(scope)
        return Caller(request, key)

    return find_caller


WritesAccounts = Annotated[Caller, Depends(caller_with(ApiScope.ACCOUNTS_WRITE))]
ReadsAccounts = Annotated[Caller, Depends(caller_with(ApiScope.ACCOUNTS_READ))]
WritesPlans = Annotated[Caller, Depends(caller_with(ApiScope.PLANS_WRITE))]
ReadsPlans = Annotated[Caller, Depends(caller_with(ApiScope.PLANS_READ))]
ReadsUsage = Annotated[Caller, Depends(caller_with(ApiScope.USAGE_READ))]
ReadsAudit = Annotated[Caller, Depends(caller_with(ApiScope.AUDIT_READ))]
Administers = Annotated[Caller, Depends(caller_with(ApiScope.ADMIN))]
