"""What the routes of the platform API work with."""

from dataclasses import dataclass

from entrepot.accounts.api_keys import ApiKeys
from entrepot.accounts.audit import AuditLog
from entrepot.accounts.plans import Plans
from entrepot.accounts.service import Accounts
from entrepot.accounts.usage import UsageCounter


@dataclass(frozen=True, kw_only=True)
class Services:
    """Every service; `registry_host` is what stands before the first slash of an image's name."""

    accounts: Accounts
    api_keys: ApiKeys
    plans: Plans
    usage: UsageCounter
    audit: AuditLog
    registry_host: str
    is_plain_http: bool
