"""Sources and rules in force. They come and go by command and API; every process reads them when it needs them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from entrepot.accounts.audit import Actor, note
from entrepot.errors import RuleInvalid, RuleUnknown, SourceInUse, SourceUnknown
from entrepot.replication import provenance_records, records
from entrepot.replication.clashes import verify_apart
from entrepot.replication.rules import Rule, RuleFile
from entrepot.replication.source_specs import SourceSpec, parse_source
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

# Published when rules, sources or the queue change, so that workers look at once.
WORK_TOPIC = "replication"
# Published when a run is changed by somebody else than its runner; the key is its id.
RUN_TOPIC = "replication.run"


@dataclass(frozen=True, slots=True)
class RuleState:
    """A rule, and when its schedule wants a run next."""

    rule: Rule
    scheduled_at: datetime | None


class Rulebook:
    """Every source and rule."""

    def __init__(self, database: Database, signals: Signals, clock: Clock) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock

    async def apply(self, file: RuleFile, actor: Actor) -> None:
        """Put sources and rules in force, all of them or none; others stay as they are. Raises RuleInvalid."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            for spec in file.sources:
                self._put_source(connection, spec, actor, now)
            documents = records.lock_rules(connection)
            changed = [rule for rule in file.rules if documents.get(rule.name) != rule.to_document()]
            for rule in changed:
                if records.find_source(connection, rule.source) is None:
                    raise RuleInvalid(
                        f"rules.{rule.name}.source: there is no source {rule.source!r}, "
                        "neither in this file nor applied before"
                    )
            _verify_apart(documents, changed)
            _verify_sources(connection, documents, changed, {spec.name for spec in file.sources})
            for rule in changed:
                self._put_rule(connection, rule, documents.get(rule.name), actor, now)
            publish(connection, WORK_TOPIC, "rules", now)

        await self._signals.commit(work)

    async def list_rules(self) -> list[Rule]:
        """Every rule, by name."""
        documents = await self._database.read(records.list_rules)
        return [Rule.parse(name, document) for name, document in documents.items()]

    async def get_rule(self, name: str) -> RuleState:
        """A rule. Raises RuleUnknown."""

        def work(connection: sa.Connection) -> RuleState:
            return RuleState(get_rule(connection, name), records.find_scheduled_at(connection, name))

        return await self._database.read(work)

    async def get_rule_and_source(self, name: str) -> tuple[Rule, SourceSpec]:
        """A rule, and where it copies from. Raises RuleUnknown."""

        def work(connection: sa.Connection) -> tuple[Rule, SourceSpec]:
            rule = get_rule(connection, name)
            return rule, parse_source(rule.source, records.find_source(connection, rule.source))

        return await self._database.read(work)

    async def delete_rule(self, name: str, actor: Actor) -> None:
        """Drop a rule, and cancel its unfinished runs; what was copied stays. Raises RuleUnknown."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            before = records.find_rule(connection, name)
            if before is None:
                raise no_rule(name)
            for run_id in records.list_unfinished(connection, name):
                cancel_run(connection, run_id, now)
            records.delete_rule(connection, name)
            provenance_records.forget_rule(connection, name)
            note(connection, actor, "rule.deleted", name, now, before=before)
            publish(connection, WORK_TOPIC, "rules", now)

        await self._signals.commit(work)

    async def list_sources(self) -> list[SourceSpec]:
        """Every source, by name."""
        documents = await self._database.read(records.list_sources)
        return [parse_source(name, document) for name, document in documents.items()]

    async def get_source(self, name: str) -> SourceSpec:
        """A source. Raises SourceUnknown."""
        document = await self._database.read(lambda connection: records.find_source(connection, name))
        if document is None:
            raise _no_source(name)
        return parse_source(name, document)

    async def delete_source(self, name: str, actor: Actor) -> None:
        """Drop a source. Raises SourceUnknown, or SourceInUse while a rule copies from it."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            before = records.find_source(connection, name)
            if before is None:
                raise _no_source(name)
            users = list(records.list_rules_of(connection, name))
            if users:
                raise SourceInUse(f"source {name!r} is used by {', '.join(users)}; delete these rules first")
            records.delete_source(connection, name)
            note(connection, actor, "source.deleted", name, now, before=before)
            publish(connection, WORK_TOPIC, "sources", now)

        await self._signals.commit(work)

    def _put_source(self, connection: sa.Connection, spec: SourceSpec, actor: Actor, now: datetime) -> None:
        before, after = records.find_source(connection, spec.name), spec.to_document()
        if before != after:
            records.put_source(connection, spec.name, after, now)
            if before is not None and _content_of(before) != _content_of(after):
                # What another registry lacks was not deleted there.
                for rule in records.list_rules_of(connection, spec.name):
                    provenance_records.forget_rule(connection, rule)
            note(connection, actor, "source.applied", spec.name, now, before=before, after=after)

    def _put_rule(
        self, connection: sa.Connection, rule: Rule, before: records.Document | None, actor: Actor, now: datetime
    ) -> None:
        after = rule.to_document()
        # A schedule that stays as it was keeps its place, whatever else of the rule changes.
        is_same = before is not None and Rule.parse(rule.name, before).options.schedule == rule.options.schedule
        scheduled_at = records.find_scheduled_at(connection, rule.name) if is_same else rule.options.next_scheduled(now)
        if before is not None and before["source"] != rule.source:
            provenance_records.forget_rule(connection, rule.name)
        records.put_rule(connection, rule.name, rule.source, after, now, scheduled_at)
        records.reschedule_runs(connection, rule.name, rule.options.priority, rule.options.next_open(now))
        note(connection, actor, "rule.applied", rule.name, now, before=before, after=after)


def is_still_from(connection: sa.Connection, rule: str, spec: SourceSpec) -> bool:
    """Whether a rule copies from a source that has the same content as `spec`; so it is until the transaction ends."""
    source = records.lock_source(connection, spec.name)
    document = records.find_rule(connection, rule, is_locked=True)
    return (
        document is not None
        and document["source"] == spec.name
        and _content_of(source) == _content_of(spec.to_document())
    )


def _content_of(source: records.Document) -> records.Document:
    """What of a source says whose content it is."""
    names = ("type", "url", "account", "region", "endpoint", "path", "repository")
    return {name: source[name] for name in names if name in source}


def _verify_apart(documents: dict[str, records.Document], changed: Iterable[Rule]) -> None:
    """Raises RuleInvalid unless the changed rules write other tags than each other, and than all that stay."""
    rules = {name: Rule.parse(name, document) for name, document in documents.items()}
    rules |= {rule.name: rule for rule in changed}
    verify_apart(rules.values(), {rule.name for rule in changed})


def _verify_sources(
    connection: sa.Connection, documents: dict[str, records.Document], changed: Iterable[Rule], sources: set[str]
) -> None:
    """Raises RuleInvalid where a changed rule, or a rule of one of the `sources`, asks what its source cannot tell."""
    rules = {name: Rule.parse(name, document) for name, document in documents.items() if document["source"] in sources}
    rules |= {rule.name: rule for rule in changed}
    for rule in rules.values():
        rule.verify_source(parse_source(rule.source, records.find_source(connection, rule.source)))


def get_rule(connection: sa.Connection, name: str) -> Rule:
    """A rule, within a transaction. Raises RuleUnknown."""
    document = records.find_rule(connection, name)
    if document is None:
        raise no_rule(name)
    return Rule.parse(name, document)


def cancel_run(connection: sa.Connection, run_id: str, now: datetime) -> bool:
    """Let a run end now, whoever works on it; False when it has ended."""
    is_cancelled = records.update_run(
        connection, run_id, records.UNFINISHED, status="cancelled", finished_at=now, due_at=None
    )
    publish(connection, RUN_TOPIC, run_id, now)
    return is_cancelled


def no_rule(name: str) -> RuleUnknown:
    """Says that there is no such rule."""
    return RuleUnknown(f"there is no rule {name[:80]!r}; see: entrepot replicate list")


def _no_source(name: str) -> SourceUnknown:
    return SourceUnknown(f"there is no source {name[:80]!r}")
