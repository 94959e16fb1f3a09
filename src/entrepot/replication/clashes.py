"""Rules that would write the same tag, of which each would undo what the other did. Pure.

Exact for names and globs of repositories, for globs of tags that are included, and for single tags. Where globs exclude
tags, versions lie in ranges, or a regex, age or media type decides, two rules may be taken to meet that never do; rules
that do meet are always found.
"""

from collections.abc import Collection, Iterator
from itertools import product

from entrepot.access.globs import Glob
from entrepot.access.tags import TagRules
from entrepot.errors import RuleInvalid
from entrepot.replication.rules import Rule


def verify_apart(rules: Collection[Rule], changed: Collection[str]) -> None:
    """Raises RuleInvalid when one of the `changed` rules (by name) could write a tag that another rule writes, too."""
    targets = {rule.name: list(rule.targets()) for rule in rules}
    for rule, other in _pairs(rules, changed):
        meeting = next(
            (pair for pair in product(targets[rule.name], targets[other.name]) if pair[0].meets(pair[1])), None
        )
        if meeting is not None and tags_may_meet(rule.tags, other.tags):
            raise RuleInvalid(
                f"rules.{rule.name}.target: rule {other.name!r} would write the same tags to {meeting[1]} "
                f"as this one to {meeting[0]}; give them other targets, repositories or tags"
            )


def tags_may_meet(ours: TagRules, theirs: TagRules) -> bool:
    """False only if no tag is selected by both."""
    if ours.semver is not None and theirs.semver is not None and not ours.semver.may_meet(theirs.semver):
        return False
    excluded = [*ours.exclude, *theirs.exclude]

    def is_excluded(glob: Glob) -> bool:
        return any(exclude.covers(glob) for exclude in excluded)

    for one, other in product(ours.include, theirs.include):
        literal = one.literal or other.literal
        if literal is not None:
            if ours.selects(literal) and theirs.selects(literal):
                return True
        elif one.meets(other) and not is_excluded(one) and not is_excluded(other):
            return True
    return False


def _pairs(rules: Collection[Rule], changed: Collection[str]) -> Iterator[tuple[Rule, Rule]]:
    """Every changed rule with every other one, each pair once."""
    ordered = sorted(rules, key=lambda rule: (rule.name not in changed, rule.name))
    for number, rule in enumerate(ordered):
        if rule.name not in changed:
            return
        for other in ordered[number + 1 :]:
            yield rule, other
