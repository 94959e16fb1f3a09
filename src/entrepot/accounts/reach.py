"""Which accounts an API key may see and change: one answer for every list and every single account."""

from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa


class _Account(Protocol):
    @property
    def plan(self) -> str:
        """The plan it is on."""

    @property
    def created_by(self) -> str | None:
        """The API key that created it."""


@dataclass(frozen=True, slots=True)
class AccountReach:
    """Accounts on some plans, and made by one API key; None does not restrict."""

    plans: frozenset[str] | None = None
    created_by: str | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there may be accounts beyond it."""
        return self.plans is not None or self.created_by is not None

    def covers(self, account: _Account) -> bool:
        """Whether the account is within it."""
        return (self.plans is None or account.plan in self.plans) and self.created_by in {None, account.created_by}

    def conditions(self, table: sa.Table) -> list[sa.ColumnElement[bool]]:
        """What selects the rows of these accounts from a table with the columns `plan` and `created_by`."""
        conditions: list[sa.ColumnElement[bool]] = []
        if self.plans is not None:
            conditions.append(table.c.plan.in_(sorted(self.plans)))
        if self.created_by is not None:
            conditions.append(table.c.created_by == self.created_by)
        return conditions


EVERYONE = AccountReach()
