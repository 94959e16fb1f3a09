"""Which accounts somebody who asks may know of: to them, others do not exist."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reach:
    """The accounts on these plans that were created by this key; None does not restrict."""

    plans: frozenset[str] | None = None
    created_by: str | None = None

    @property
    def is_everything(self) -> bool:
        """Whether every account is within."""
        return self.plans is None and self.created_by is None

    def includes(self, plan: str, created_by: str | None) -> bool:
        """Whether an account on the plan, created by that key, is within."""
        return (self.plans is None or plan in self.plans) and self.created_by in {None, created_by}


EVERYTHING = Reach()
