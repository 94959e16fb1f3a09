"""Why an account may pull something, or may not: what a request would be judged by, step by step."""

from dataclasses import dataclass
from datetime import datetime

from entrepot.access.limits import LimitName, Use, find_refusal, window_of
from entrepot.access.plans import Grant, Plan
from entrepot.access.scopes import Action
from entrepot.accounts.directory import Directory, Standing
from entrepot.accounts.limit_records import read_used
from entrepot.errors import AccountUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.reference import Reference, RepositoryName, Tag, subject_of
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether a pull would be allowed, and the steps that decide it, the deciding one last.

    `depends_on` is the digest that an allowed tag must lead to, where only the registry can tell.
    """

    steps: list[str]
    is_allowed: bool
    depends_on: Digest | None = None


class Explanations:
    """Judges without a request."""

    def __init__(self, directory: Directory, database: Database, clock: Clock) -> None:
        self._directory = directory
        self._database = database
        self._clock = clock

    async def explain(self, account: str, name: RepositoryName, reference: Reference) -> tuple[Explanation, Plan]:
        """Judge a pull. Raises AccountUnknown."""
        standing = await self._directory.find(account)
        if standing is None or standing.status == "deleted":
            raise AccountUnknown(f"there is no account {account[:80]!r}")
        uses = await self._read_uses(standing)
        return _explain(standing, uses, name, reference, self._clock()), standing.plan

    async def _read_uses(self, standing: Standing) -> list[Use]:
        """What the account used of its limits, as of about a second ago."""
        if standing.plan.limits is None:
            return []
        now = self._clock().timestamp()
        windows = {name: window_of(name, now) for name, _ in standing.plan.limits.items()}
        used = await self._database.read(lambda connection: read_used(connection, standing.account_id, windows.items()))
        uses = []
        for name, allowed in standing.plan.limits.items():
            amounts = used[name]
            amount = len(amounts) if name is LimitName.NETWORKS_PER_HOUR else amounts[""]
            uses.append(Use(name, allowed, amount, windows[name]))
        return uses


def _explain(
    standing: Standing, uses: list[Use], name: RepositoryName, reference: Reference, now: datetime
) -> Explanation:
    seconds = now.timestamp()
    steps = [f"account {standing.name} is {standing.status}, on plan '{standing.plan.name}'"]
    if standing.status != "active":
        return Explanation([*steps, "refused: only active accounts may pull"], is_allowed=False)
    if not standing.is_active(seconds):
        return Explanation(
            [*steps, f"refused: the account expired on {standing.expires_at:%Y-%m-%d}"], is_allowed=False
        )
    alive = sum(credential.is_alive(seconds) for credential in standing.credentials.values())
    if not alive:
        return Explanation([*steps, "refused: none of its credentials is alive; issue a new one"], is_allowed=False)
    steps.append(f"{alive} of its credentials {'is' if alive == 1 else 'are'} alive")
    steps += [f"limit of {use}" for use in uses]
    refusal = find_refusal(standing.plan.name, standing.name, (use for use in uses if use.is_used_up), seconds)
    if refusal is not None:
        return Explanation([*steps, f"refused: {refusal}"], is_allowed=False)
    covering = []
    for number, grant in enumerate(standing.plan.grants):
        reason = _why_not(grant, name)
        steps.append(f"grants[{number}]: {reason or _describe(grant)}")
        if reason is None:
            covering.append(grant)
    if not covering:
        return Explanation([*steps, f"refused: no grant covers pull on {name}"], is_allowed=False)
    return _judge_tags(steps, standing.plan, name, reference)


def _judge_tags(steps: list[str], plan: Plan, name: RepositoryName, reference: Reference) -> Explanation:
    limits = plan.tag_limits(name, Action.PULL)
    if limits is None:
        return Explanation([*steps, "allowed: a grant covers every tag of it"], is_allowed=True)
    if isinstance(reference, Tag):
        if limits.allow(reference.value):
            return Explanation([*steps, f"allowed: {reference} is among the tags of a grant"], is_allowed=True)
        subject = subject_of(reference)
        if subject is None:
            return Explanation([*steps, f"refused: {reference} is not among {limits}"], is_allowed=False)
        reference = subject
    return Explanation(steps, is_allowed=False, depends_on=reference)


def _why_not(grant: Grant, name: RepositoryName) -> str | None:
    if Action.PULL not in grant.actions:
        return "does not include pull"
    if not grant.covers(name, Action.PULL):
        return f"none of {', '.join(glob.text for glob in grant.repositories)} matches {name}"
    return None


def _describe(grant: Grant) -> str:
    glob_texts = ", ".join(glob.text for glob in grant.repositories)
    return f"covers {glob_texts}" + ("" if grant.tags is None else f", tags {grant.tags}")
