"""Counting pulls: in memory on the way out, in the database a second later.

Counting can neither fail nor slow a pull: it adds to numbers in memory, on the event loop alone, so that it takes no
lock. What a killed process had not written yet is lost, a second's worth; a process that stops writes all of it.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sized
from dataclasses import dataclass, field

import structlog

from entrepot.access.visitors import Visitor
from entrepot.accounts import usage_records
from entrepot.accounts.authentication import Principal
from entrepot.accounts.limits import Limiter
from entrepot.accounts.rechecks import Check, Rechecks
from entrepot.accounts.steps import Step
from entrepot.accounts.usage_records import Batch, Holder, Pulls, Refusal
from entrepot.errors import EntrepotError
from entrepot.storage.database import Database

FLUSH_SECONDS = 1.0
# Distinct things counted while the database is away; beyond that counts are dropped, not memory.
MAX_PENDING = 100_000
# A credential's last use is written down to the minute.
_USE_SECONDS = 60.0
_USES_REMEMBERED = 100_000

log = structlog.get_logger(__name__)

ContentKey = tuple[int, str, str, str, str, str]
"""(account id, repository, tag, digest, network, client); the last four empty for bytes that are no pull."""


@dataclass(slots=True)
class _Pending:
    """What was counted since the last flush; instants are unix seconds."""

    holders: dict[int, Holder] = field(default_factory=dict)
    pulls: dict[ContentKey, Pulls] = field(default_factory=dict)
    # Where the bytes of re-checks are added up that came before.
    rechecked: dict[Check, Pulls] = field(default_factory=dict)
    # Credentials that were used, and when last.
    uses: dict[str, float] = field(default_factory=dict)
    logins: dict[int, float] = field(default_factory=dict)
    # (account id, digest) of manifests and blobs, of accounts that have not fetched a whole image yet.
    fetches: set[tuple[int, str]] = field(default_factory=set)
    refusals: dict[tuple[int, str, str], Refusal] = field(default_factory=dict)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.pulls) + len(self.uses) + len(self.logins) + len(self.fetches) + len(self.refusals)


class UsageCounter:
    """Counts of this process that are not in the database yet, and those that are.

    A re-check is no pull; its bytes count all the same.
    """

    def __init__(
        self, database: Database, rechecks: Rechecks, limiter: Limiter, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._rechecks = rechecks
        self._limiter = limiter
        self._clock = clock
        self._pending = _Pending()
        self._used: OrderedDict[str, float] = OrderedDict()
        # Steps that accounts are known to have reached, so that they are not looked at again.
        self._reached = usage_records.Reached()
        self._task: asyncio.Task[None] | None = None

    def count_pull(
        self, principal: Principal, repository: str, tag: str, digest: str, visitor: Visitor, size: int
    ) -> None:
        """One pull, and the `size` bytes of its manifest; `tag` is empty for a pull by digest."""
        now = self._clock()
        check = (principal.account_id, repository, digest, visitor.network)
        if self._rechecks.is_recheck(check, now):
            pulls = self._pending.rechecked.get(check)
            if pulls is not None:
                # What comes most; the rest was noted when it came first in this second.
                pulls.bytes_served += size
                pulls.last_at = now
                if principal.plan.limits is not None:
                    self._limiter.note_bytes(principal, size)
                return
            pulls = self._add(principal, (principal.account_id, repository, "", "", "", ""), size, now)
            if pulls is not None and len(self._pending.rechecked) < MAX_PENDING:
                self._pending.rechecked[check] = pulls
        else:
            self._rechecks.note(check, now)
            key = (principal.account_id, repository, tag, digest, visitor.network, visitor.client)
            self._add(principal, key, size, now, is_pull=True)
        self._note_fetch(principal, digest)

    def count_content(self, principal: Principal, repository: str, digest: str, size: int) -> None:
        """`size` bytes of a blob, or of a manifest that is no pull of its own."""
        self._add(principal, (principal.account_id, repository, "", "", "", ""), size, self._clock())
        self._note_fetch(principal, digest)

    def count_login(self, principal: Principal) -> None:
        """A token was issued."""
        now = self._clock()
        self._note_use(principal, now)
        if not self._reached.has(principal.account_id, Step.FIRST_LOGIN) and self._has_room(self._pending.logins):
            self._note_holder(principal)
            self._pending.logins.setdefault(principal.account_id, now)

    def count_refusal(self, account_id: int, account: str, reason: str, repository: str, message: str) -> None:
        """A request was refused for a `reason`, of which there are few; `message` is what its sender was told."""
        now = self._clock()
        key = (account_id, reason, repository)
        refusal = self._pending.refusals.get(key)
        if refusal is None:
            if not self._has_room(self._pending.refusals):
                return
            self._pending.holders.setdefault(account_id, Holder(account_id, account, None))
            refusal = self._pending.refusals[key] = Refusal(message, 0, now, now)
        refusal.times += 1
        refusal.last_at = now

    def start(self) -> None:
        """Begin to write counts down, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="usage")

    async def stop(self) -> None:
        """Write down what is left, and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    async def flush(self) -> None:
        """Write down all that was counted; what cannot be written now stays for the next time."""
        pending, self._pending = self._pending, _Pending()
        try:
            # Before they are written down: what processes take from there must not be new to each other.
            await self._limiter.flush()
        except BaseException:
            self._put_back(pending)
            raise
        if pending.dropped:
            log.warning("usage_dropped", counts=pending.dropped, reason="the database was away for too long")
            pending.dropped = 0
        if not pending:
            return
        batch = Batch(
            holders=pending.holders,
            pulls=pending.pulls,
            uses=pending.uses,
            logins=pending.logins,
            fetches=pending.fetches,
            refusals=pending.refusals,
        )
        known = self._reached
        is_written = False
        try:
            reached = await asyncio.shield(
                self._database.write(lambda connection: usage_records.write(connection, batch, known))
            )
            is_written = True
            known.note(reached)
        except EntrepotError as error:
            log.warning("usage_not_written", error=str(error))
        except asyncio.CancelledError:
            is_written = True  # the shielded write goes on to its end
            raise
        finally:
            if not is_written:
                self._put_back(pending)

    def _add(
        self, principal: Principal, key: ContentKey, size: int, now: float, *, is_pull: bool = False
    ) -> Pulls | None:
        """Count, and answer where; None when there is no room."""
        pulls = self._pending.pulls.get(key)
        if pulls is None:
            if not self._has_room(self._pending.pulls):
                return None
            self._note_holder(principal)
            pulls = self._pending.pulls[key] = Pulls(0, 0, now, now)
        pulls.bytes_served += size
        pulls.last_at = now
        if principal.plan.limits is not None:
            self._limiter.note_bytes(principal, size)
        if is_pull:
            pulls.pulls += 1
            self._note_use(principal, now)
        return pulls

    def _note_use(self, principal: Principal, now: float) -> None:
        last = self._used.get(principal.credential_id)
        if last is not None and 0 <= now - last < _USE_SECONDS:
            return
        self._used[principal.credential_id] = now
        self._used.move_to_end(principal.credential_id)
        if len(self._used) > _USES_REMEMBERED:
            self._used.popitem(last=False)
        if self._has_room(self._pending.uses):
            self._pending.uses[principal.credential_id] = now

    def _note_fetch(self, principal: Principal, digest: str) -> None:
        if not self._reached.has(principal.account_id, Step.IMAGE_FETCHED) and self._has_room(self._pending.fetches):
            self._note_holder(principal)
            self._pending.fetches.add((principal.account_id, digest))

    def _note_holder(self, principal: Principal) -> None:
        standing = principal.standing
        self._pending.holders[principal.account_id] = Holder(standing.account_id, standing.name, standing.created_at)

    def _has_room(self, part: Sized) -> bool:
        if len(part) < MAX_PENDING:
            return True
        self._pending.dropped += 1
        return False

    def _put_back(self, old: _Pending) -> None:
        new, self._pending = self._pending, old
        old.holders |= new.holders
        old.uses |= new.uses
        old.fetches |= new.fetches
        old.dropped += new.dropped
        for account_id, at in new.logins.items():
            old.logins.setdefault(account_id, at)
        for key, pulls in new.pulls.items():
            before = old.pulls.setdefault(key, pulls)
            if before is not pulls:
                before.pulls += pulls.pulls
                before.bytes_served += pulls.bytes_served
                before.last_at = pulls.last_at
        for place, refusal in new.refusals.items():
            earlier = old.refusals.setdefault(place, refusal)
            if earlier is not refusal:
                earlier.times += refusal.times
                earlier.last_at = refusal.last_at

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()
