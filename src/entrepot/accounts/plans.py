"""The plans that are in force."""

from collections.abc import Sequence

import sqlalchemy as sa

from entrepot.access.plans import Plan
from entrepot.accounts import records
from entrepot.accounts.audit import Actor, note
from entrepot.errors import Conflict, PlanUnknown
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish


class Plans:
    """Every plan. A change holds for tokens already issued, too."""

    def __init__(self, database: Database, signals: Signals, clock: Clock) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock

    async def apply(self, plans: Sequence[Plan], actor: Actor) -> None:
        """Put these plans in force, all of them or none; others stay as they are."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            for plan in plans:
                before = records.find_plan(connection, plan.name)
                document = plan.to_document()
                if before is not None and before["document"] == document:
                    continue
                records.put_plan(connection, plan.name, document, now)
                old = None if before is None else before["document"]
                note(connection, actor, "plan.applied", plan.name, now, before=old, after=document)
                publish(connection, "plan", plan.name, now)

        await self._signals.commit(work)

    async def list_plans(self) -> list[Plan]:
        """Every plan, by name."""
        rows = await self._database.read(records.list_plans)
        return [Plan.parse(row["name"], row["document"]) for row in rows]

    async def get(self, name: str) -> Plan:
        """One plan. Raises PlanUnknown."""
        row = await self._database.read(lambda connection: records.find_plan(connection, name))
        if row is None:
            raise PlanUnknown(f"there is no plan {name!r}; see: entrepot plan list")
        return Plan.parse(row["name"], row["document"])

    async def delete(self, name: str, actor: Actor) -> None:
        """Drop a plan. Raises PlanUnknown, or Conflict while accounts are on it."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            before = records.find_plan(connection, name)
            count = records.count_accounts_on(connection, name)
            if count:
                raise Conflict(f"plan {name!r} has {count} accounts; move them to another plan first")
            if before is None or not records.delete_plan(connection, name):
                raise PlanUnknown(f"there is no plan {name!r}")
            note(connection, actor, "plan.deleted", name, now, before=before["document"])
            publish(connection, "plan", name, now)

        await self._signals.commit(work)
