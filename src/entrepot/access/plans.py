"""Plans: what a tier of customers may do."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from entrepot.access.durations import MAX_DURATION, parse_duration
from entrepot.access.globs import Glob
from entrepot.access.limits import Limits
from entrepot.access.scopes import Action
from entrepot.access.tags import FIELDS, TagRules, parse_globs
from entrepot.errors import PlanInvalid
from entrepot.oci.reference import RepositoryName

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_NAME = 63
_MAX_GRANTS = 100
MAX_LIFETIME = MAX_DURATION
# Answers that a plan remembers; more repositories than that are decided anew.
_MEMORY = 4096


def parse_name(name: str) -> str:
    """A name of a plan or API key. Raises PlanInvalid."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise PlanInvalid(
            f"name {name[:80]!r}: use lower-case letters and digits, with single . _ - between, at most {_MAX_NAME}"
        )
    return name


@dataclass(frozen=True, slots=True)
class Grant:
    """Actions on the repositories that any of the globs matches; with `tags`, only on what those tags lead to."""

    repositories: tuple[Glob, ...]
    actions: frozenset[Action]
    tags: TagRules | None = None

    def covers(self, repository: RepositoryName, action: Action) -> bool:
        """Whether it speaks of the action on the repository, whatever the tag."""
        return action in self.actions and any(glob.matches(repository.value) for glob in self.repositories)

    def to_document(self) -> dict[str, Any]:
        """As in plans.yaml."""
        document: dict[str, Any] = {
            "repositories": [glob.text for glob in self.repositories],
            "actions": [action.value for action in Action if action in self.actions],
        }
        if self.tags is not None:
            document["tags"] = self.tags.to_document()
        return document


@dataclass(frozen=True, slots=True)
class TagLimits:
    """What a plan allows within a repository: the tags that any of `rules` selects, and what they lead to.

    `name` tells these limits from those of other plans.
    """

    name: str
    rules: tuple[TagRules, ...]

    def allow(self, tag: str) -> bool:
        """Whether the tag is among them."""
        return any(rules.selects(tag) for rules in self.rules)

    def __str__(self) -> str:
        return "; or ".join(map(str, self.rules))


@dataclass(frozen=True, slots=True)
class Plan:
    """What the accounts of a tier may do.

    `credential_lifetime` None means that credentials do not expire, `limits` None that nothing is counted against them.
    """

    name: str
    grants: tuple[Grant, ...]
    credential_lifetime: timedelta | None = None
    limits: Limits | None = None
    _memory: dict[tuple[str, Action], bool] = field(default_factory=dict, repr=False, compare=False)
    _tag_memory: dict[tuple[str, Action], TagLimits | None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(cls, name: str, document: object) -> Self:
        """The plan in a document. Raises PlanInvalid, whose message names the place within the document."""
        parse_name(name)
        where = f"plans.{name}"
        fields = _fields(document, where, {"grants", "limits", "credential_lifetime"})
        entries = _list(fields.get("grants"), f"{where}.grants", _MAX_GRANTS)
        grants = tuple(_parse_grant(entry, f"{where}.grants[{number}]") for number, entry in enumerate(entries))
        lifetime = _parse_lifetime(fields.get("credential_lifetime"), f"{where}.credential_lifetime")
        limits = None if fields.get("limits") is None else Limits.parse(fields["limits"], f"{where}.limits")
        return cls(name, grants, lifetime, limits)

    def allows(self, repository: RepositoryName, action: Action) -> bool:
        """Whether a grant covers the action on the repository."""
        key = (repository.value, action)
        answer = self._memory.get(key)
        if answer is None:
            answer = any(grant.covers(repository, action) for grant in self.grants)
            if len(self._memory) < _MEMORY:
                self._memory[key] = answer
        return answer

    def tag_limits(self, repository: RepositoryName, action: Action) -> TagLimits | None:
        """To which tags the action is limited in a repository that the plan allows it on, None when to none.

        Grants add up: one without tags lets everything pass.
        """
        key = (repository.value, action)
        if key in self._tag_memory:
            return self._tag_memory[key]
        rules = [grant.tags for grant in self.grants if grant.covers(repository, action)]
        limited = tuple(one for one in rules if one is not None)
        limits = TagLimits(f"{self.name} {_digest_of(limited)}", limited) if len(limited) == len(rules) else None
        if len(self._tag_memory) < _MEMORY:
            self._tag_memory[key] = limits
        return limits

    def prefixes(self, action: Action) -> frozenset[str]:
        """What the name of every repository that the plan allows the action on begins with: one of these."""
        return frozenset(glob.prefix for grant in self.grants if action in grant.actions for glob in grant.repositories)

    def to_document(self) -> dict[str, Any]:
        """As in plans.yaml, without the name."""
        document: dict[str, Any] = {"grants": [grant.to_document() for grant in self.grants]}
        if self.limits is not None:
            document["limits"] = self.limits.to_document()
        if self.credential_lifetime is not None:
            document["credential_lifetime"] = f"{int(self.credential_lifetime.total_seconds())}s"
        return document


def parse_plans(document: object) -> tuple[Plan, ...]:
    """The plans of a whole plans.yaml. Raises PlanInvalid."""
    plans = _fields(document, "the file", {"plans"}).get("plans")
    if not isinstance(plans, Mapping) or not plans:
        raise PlanInvalid("plans: must name at least one plan")
    return tuple(Plan.parse(str(name), plan) for name, plan in plans.items())


def _parse_grant(document: object, where: str) -> Grant:
    fields = _fields(document, where, {"repositories", "actions", "tags"})
    globs = parse_globs(fields.get("repositories"), f"{where}.repositories", PlanInvalid)
    actions = set()
    for number, action in enumerate(_list(fields.get("actions"), f"{where}.actions", len(Action))):
        if action not in list(Action):
            raise PlanInvalid(f"{where}.actions[{number}]: {action!r} is not one of {', '.join(Action)}")
        actions.add(Action(action))
    tags = None
    if fields.get("tags") is not None:
        tags = TagRules.parse(_fields(fields["tags"], f"{where}.tags", set(FIELDS)), f"{where}.tags", PlanInvalid)
    return Grant(globs, frozenset(actions), tags)


def _digest_of(rules: tuple[TagRules, ...]) -> str:
    return hashlib.sha256(json.dumps([one.to_document() for one in rules]).encode()).hexdigest()


def _parse_lifetime(value: object, where: str) -> timedelta | None:
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise PlanInvalid(f"{where}: {error}") from error


def _fields(document: object, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise PlanInvalid(f"{where}: must be a mapping with {', '.join(sorted(known))}")
    for name in document:
        if name not in known:
            raise PlanInvalid(f"{where}.{name}: not a field here; known are {', '.join(sorted(known))}")
    return document


def _list(value: object, where: str, limit: int) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise PlanInvalid(f"{where}: must be a list with at least one entry")
    if len(value) > limit:
        raise PlanInvalid(f"{where}: has {len(value)} entries, at most {limit} are allowed")
    return value
