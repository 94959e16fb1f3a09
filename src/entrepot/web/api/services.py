"""What the routes of the platform API work with."""

from dataclasses import dataclass

from entrepot.accounts.answers import Answers
from entrepot.accounts.api_keys import ApiKeys
from entrepot.accounts.audit import AuditLog
from entrepot.accounts.events import Events
from entrepot.accounts.key_rates import KeyRates
from entrepot.accounts.leaks import LeakedSecrets
from entrepot.accounts.plans import Plans
from entrepot.accounts.scanners import Scanner
from entrepot.accounts.service import Accounts
from entrepot.accounts.throttle import Throttle
from entrepot.accounts.usage_reports import UsageReports
from entrepot.accounts.webhooks import Webhooks
from entrepot.accounts.workloads import Workloads
from entrepot.registry.service import Registry
from entrepot.replication.rulebook import Rulebook
from entrepot.replication.runs import Runs
from entrepot.web.asgi import Networks


@dataclass(frozen=True, kw_only=True)
class Services:
    """Every service; `public_url` is where clients reach this server, `trusted_proxies` are the networks before it.

    `scanner` is who may report leaked secrets, None for nobody.
    """

    accounts: Accounts
    api_keys: ApiKeys
    workloads: Workloads
    answers: Answers
    key_rates: KeyRates
    plans: Plans
    reports: UsageReports
    audit: AuditLog
    events: Events
    webhooks: Webhooks
    throttle: Throttle
    leaks: LeakedSecrets
    scanner: Scanner | None
    registry: Registry
    rulebook: Rulebook
    runs: Runs
    public_url: str
    trusted_proxies: Networks
