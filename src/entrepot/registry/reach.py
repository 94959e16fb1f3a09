"""What tags lead to: whether a manifest or blob belongs to something that one of some tags names.

A plan may allow some tags of a repository only. Then what has a digest may be had if an allowed tag leads to it: from
indexes to their manifests, from manifests to their blobs, and from what is tagged to what speaks of it (referrers, and
the tags by which cosign finds them). The way is searched from the digest up, so its cost grows with how often the
digest is used, not with the number of tags, and the answer is remembered until something in the repository changes.
"""

import itertools
from collections.abc import Collection

import sqlalchemy as sa
import structlog

from entrepot.access.plans import TagLimits
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.registry import records
from entrepot.storage.cache import Cache
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals

_ANSWERS = 100_000
# Manifests that are looked at on the way up; what is used by more of them without an allowed tag is refused.
_MAX_SEEN = 20_000

log = structlog.get_logger(__name__)


class Reach:
    """Answers for every repository."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        # An answer holds for one generation of its repository, which every change there ends.
        self._generations: dict[str, int] = {}
        # Whoever hears of a change, on whatever thread, takes a number that nobody else has.
        self._numbers = itertools.count(1)
        self._answers: Cache[tuple[str, int, str, str], bool] = Cache(_ANSWERS, signals.is_current)
        signals.listen("manifest", self._end_generation)

    def generation(self, name: RepositoryName) -> int:
        """A number that is another one whenever something changed in the repository."""
        return self._generations.get(name.value, 0)

    async def is_reached(
        self, name: RepositoryName, digest: Digest, limits: TagLimits, *, is_fresh: bool = False
    ) -> bool:
        """Whether an allowed tag leads to a manifest or blob; `is_fresh`: also if that was not heard of yet.

        Raises DatabaseUnavailable.
        """
        key = (name.value, self.generation(name), limits.name, str(digest))
        answer = None if is_fresh else self._answers.find(key)
        if answer is None:
            mark = self._answers.mark()
            answer = await self._database.read(lambda connection: _search(connection, name, digest, limits))
            self._answers.keep(key, answer, mark)
        return answer

    def _end_generation(self, key: str) -> None:
        name = key.partition("@" if "@" in key else ":")[0]
        self._generations[name] = next(self._numbers)


def _search(connection: sa.Connection, name: RepositoryName, digest: Digest, limits: TagLimits) -> bool:
    repository_id = records.find_repository(connection, name)
    if repository_id is None:
        return False
    seen: set[str] = set()
    level = {str(digest)}
    while level:
        seen |= level
        subjects = set()
        for tag in records.list_tags_naming(connection, repository_id, level):
            if limits.allow(tag):
                return True
            subject = subject_of(Tag(tag))
            if subject is not None:
                subjects.add(str(subject))
        if len(seen) > _MAX_SEEN:
            log.warning("reach_given_up", repository=name.value, digest=str(digest), looked_at=len(seen))
            return False
        level = (records.list_users(connection, repository_id, level) | subjects) - seen
    return False


def find_reached(connection: sa.Connection, repository_id: int, digests: Collection[str]) -> set[str]:
    """Those of `digests` that a tag leads to which does not itself speak of a digest that none leads to.

    All are searched for together, so that the cost grows with their number only where they have nothing in common.
    """
    # Of everything on the way up, what may be reached once it is; then the way back down from what a tag names.
    below: dict[str, set[str]] = {}
    reached: set[str] = set()
    seen: set[str] = set()
    level = set(digests)
    while level:
        seen |= level
        steps = list(records.list_steps_up(connection, repository_id, level))
        for tag, digest in records.list_tags_with_digests(connection, repository_id, level):
            subject = subject_of(Tag(tag))
            if subject is None:
                reached.add(digest)
            else:
                steps.append((digest, str(subject)))
        for digest, above in steps:
            below.setdefault(above, set()).add(digest)
        level = {above for _, above in steps} - seen
    waiting = list(reached)
    while waiting:
        fresh = below.get(waiting.pop(), set()) - reached
        reached |= fresh
        waiting += fresh
    return reached & set(digests)
