"""What an API key may do."""

from collections.abc import Iterable
from enum import StrEnum

from entrepot.errors import RequestInvalid


class ApiScope(StrEnum):
    """One permission of an API key."""

    ACCOUNTS_WRITE = "accounts:write"
    ACCOUNTS_READ = "accounts:read"
    PLANS_WRITE = "plans:write"
    PLANS_READ = "plans:read"
    REPLICATION_WRITE = "replication:write"
    REPLICATION_RUN = "replication:run"
    REPLICATION_READ = "replication:read"
    USAGE_READ = "usage:read"
    AUDIT_READ = "audit:read"
    ADMIN = "admin"


def parse_api_scopes(texts: Iterable[str]) -> frozenset[ApiScope]:
    """The scopes that these texts name. Raises RequestInvalid."""
    scopes = set()
    for text in texts:
        if text not in list(ApiScope):
            raise RequestInvalid(f"scope {text[:40]!r} is not known; use {', '.join(ApiScope)}")
        scopes.add(ApiScope(text))
    if not scopes:
        raise RequestInvalid(f"an API key needs at least one scope of {', '.join(ApiScope)}")
    return frozenset(scopes)


def covers(held: frozenset[ApiScope], needed: ApiScope) -> bool:
    """Whether `held` includes `needed`: `admin` includes everything, writing all else of the same."""
    if needed in held or ApiScope.ADMIN in held:
        return True
    noun, _, verb = needed.value.partition(":")
    return verb != "write" and f"{noun}:write" in {scope.value for scope in held}
