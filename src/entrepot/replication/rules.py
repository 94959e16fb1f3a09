"""Rules: what is copied from a source. The shape of replication.yaml."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from entrepot.access.globs import Glob
from entrepot.access.tags import FIELDS, TagRules, parse_globs
from entrepot.errors import NameInvalid, RuleInvalid
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.replication.deletion_spec import DeletionSpec
from entrepot.replication.fields import parse_mapping, parse_name, parse_text, verify_known
from entrepot.replication.kinds import Kinds
from entrepot.replication.platforms import Platforms
from entrepot.replication.run_options import OPTION_FIELDS, RunOptions
from entrepot.replication.source_specs import SourceSpec, parse_source
from entrepot.replication.tag_picks import PICK_FIELDS, TagPicks
from entrepot.replication.trust.spec import SignSpec, TrustSpec

_MAX_RULES = 1000
_REPOSITORY = "{repository}"
_FIELDS = frozenset(
    {
        "source",
        "repositories",
        "tags",
        "platforms",
        "media_types",
        "target",
        "referrers",
        "trust",
        "sign",
        "deletions",
        "pull_through",
    }
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What to copy from a source, and under which names.

    With `follow`, signatures and other referrers come along; `trust` says whose signature a tag must have, `sign` by
    which key it is signed here, `deletions` what becomes of tags here that are gone at the source. With `pull_through`,
    what is asked for and not here yet is fetched at once.
    """

    name: str
    source: str
    repositories: tuple[Glob, ...]
    tags: TagRules
    target: str = _REPOSITORY
    follow: bool = True
    trust: TrustSpec | None = None
    sign: SignSpec | None = None
    deletions: DeletionSpec = field(default_factory=DeletionSpec)
    pull_through: bool = False
    options: RunOptions = field(default_factory=RunOptions)
    picks: TagPicks = field(default_factory=TagPicks)
    platforms: Platforms | None = None
    kinds: Kinds | None = None

    @classmethod
    def parse(cls, name: str, document: object) -> Self:
        """The rule in a document. Raises RuleInvalid, whose message begins with the place within the document."""
        where = f"rules.{parse_name(name, 'rules')}"
        fields = parse_mapping(document, where)
        verify_known(fields, where, {*_FIELDS, *OPTION_FIELDS})
        source = fields.get("source")
        if not isinstance(source, str):
            raise RuleInvalid(f"{where}.source: must be the name of a source")
        tags, picks = _parse_tags(fields.get("tags"), f"{where}.tags")
        platforms, kinds = fields.get("platforms"), fields.get("media_types")
        rule = cls(
            name=name,
            source=source,
            repositories=_parse_repositories(fields.get("repositories"), f"{where}.repositories"),
            tags=tags,
            target=parse_text(fields.get("target"), f"{where}.target") or _REPOSITORY,
            follow=_parse_referrers(fields.get("referrers"), f"{where}.referrers"),
            trust=None if fields.get("trust") is None else TrustSpec.parse(fields["trust"], f"{where}.trust"),
            sign=None if fields.get("sign") is None else SignSpec.parse(fields["sign"], f"{where}.sign"),
            deletions=DeletionSpec.parse(fields.get("deletions"), f"{where}.deletions"),
            pull_through=_parse_switch(fields.get("pull_through"), f"{where}.pull_through"),
            options=RunOptions.parse(fields, where),
            picks=picks,
            platforms=None if platforms is None else Platforms.parse(platforms, f"{where}.platforms"),
            kinds=None if kinds is None else Kinds.parse(kinds, f"{where}.media_types"),
        )
        rule._verify_target(f"{where}.target")
        if rule.pull_through and rule.target.count(_REPOSITORY) > 1:
            raise RuleInvalid(f"{where}.pull_through: where {_REPOSITORY} is but once in target, or not at all")
        return rule

    def selects(self, repository: RepositoryName) -> bool:
        """Whether the repository is to be copied."""
        return any(glob.matches(repository.value) for glob in self.repositories)

    def selects_tag(self, tag: Tag) -> bool:
        """Whether the tag, by its name, may be copied for its own sake; what speaks of a digest follows that."""
        return subject_of(tag) is None and self.tags.selects(tag.value) and self.picks.matches(tag)

    def verify_source(self, source: SourceSpec) -> None:
        """Raises RuleInvalid where the rule asks what its source cannot tell."""
        self.picks.verify_source(source, f"rules.{self.name}.tags")

    def literal_repositories(self) -> list[RepositoryName] | None:
        """The only repositories there can be, None when a glob leaves it open: then the source must list its own."""
        literals = [glob.literal for glob in self.repositories]
        names = [RepositoryName(literal) for literal in literals if literal is not None]
        return sorted(set(names)) if len(names) == len(literals) else None

    def target_of(self, repository: RepositoryName) -> RepositoryName:
        """Where a repository's content goes here. Raises RuleInvalid when that is no name for a repository."""
        try:
            return RepositoryName.parse(self.target.replace(_REPOSITORY, repository.value))
        except NameInvalid as error:
            raise RuleInvalid(f"rules.{self.name}.target: for {repository}: {error}") from error

    def origin_of(self, target: RepositoryName) -> RepositoryName | None:
        """The repository at the source whose content goes to `target`, None when the rule copies nothing there."""
        before, is_open, after = self.target.partition(_REPOSITORY)
        if not is_open:
            names = self.literal_repositories() or []
            return names[0] if names and target.value == self.target else None
        inner = target.value.removeprefix(before).removesuffix(after)
        try:
            origin = RepositoryName.parse(inner)
        except NameInvalid:
            return None
        # Whatever the template: it must lead back to where we came from.
        is_same = self.target.replace(_REPOSITORY, origin.value) == target.value
        return origin if is_same and self.selects(origin) else None

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml, without the name."""
        document: dict[str, Any] = {
            "source": self.source,
            "repositories": [glob.text for glob in self.repositories],
            "tags": self.tags.to_document() | self.picks.to_document(),
            "target": self.target,
        }
        if self.platforms is not None:
            document["platforms"] = self.platforms.to_document()
        if self.kinds is not None:
            document["media_types"] = self.kinds.to_document()
        if not self.follow:
            document["referrers"] = "none"
        if self.trust is not None:
            document["trust"] = self.trust.to_document()
        if self.sign is not None:
            document["sign"] = self.sign.to_document()
        if self.deletions.deletes:
            document["deletions"] = self.deletions.text
        if self.pull_through:
            document["pull_through"] = True
        return document | self.options.to_document()

    def targets(self) -> Iterator[Glob]:
        """Globs of all the names that it may write to."""
        for glob in self.repositories:
            yield Glob.read(self.target.replace(_REPOSITORY, glob.text))

    def _verify_target(self, where: str) -> None:
        literals = self.literal_repositories()
        if _REPOSITORY not in self.target and (literals is None or len(literals) > 1):
            raise RuleInvalid(f"{where}: several repositories would be copied into one; let it contain {_REPOSITORY}")
        try:
            for name in literals or [RepositoryName("x")]:
                RepositoryName.parse(self.target.replace(_REPOSITORY, name.value))
        except NameInvalid as error:
            raise RuleInvalid(f"{where}: {error}; write names and {_REPOSITORY}") from error


@dataclass(frozen=True, slots=True)
class RuleFile:
    """What a replication.yaml says."""

    sources: tuple[SourceSpec, ...]
    rules: tuple[Rule, ...]


def parse_rule_file(document: object) -> RuleFile:
    """The sources and rules of a whole replication.yaml. Raises RuleInvalid."""
    fields = parse_mapping(document, "the file")
    verify_known(fields, "the file", {"sources", "rules"})
    sources = tuple(parse_source(name, entry) for name, entry in _entries(fields, "sources"))
    rules = tuple(Rule.parse(name, entry) for name, entry in _entries(fields, "rules"))
    if not sources and not rules:
        raise RuleInvalid("the file: names neither sources nor rules")
    return RuleFile(sources, rules)


def _entries(fields: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    entries = parse_mapping(fields.get(where, {}), where)
    if len(entries) > _MAX_RULES:
        raise RuleInvalid(f"{where}: has {len(entries)} entries, at most {_MAX_RULES} are allowed")
    yield from entries.items()


def _parse_tags(value: object, where: str) -> tuple[TagRules, TagPicks]:
    if value is None:
        raise RuleInvalid(f'{where}: say which tags to copy; all of them are {{include: ["*"]}}')
    fields = parse_mapping(value, where)
    verify_known(fields, where, {*FIELDS, *PICK_FIELDS})
    if not fields:
        raise RuleInvalid(f'{where}: say which tags to copy; all of them are {{include: ["*"]}}')
    return TagRules.parse(fields, where, RuleInvalid), TagPicks.parse(fields, where)


def _parse_referrers(value: object, where: str) -> bool:
    if value is not None and value != "follow" and value != "none":  # noqa: PLR1714 - it may be a list
        raise RuleInvalid(f"{where}: must be follow or none")
    return value != "none"


def _parse_switch(value: object, where: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise RuleInvalid(f"{where}: must be true or false")
    return value is True


def _parse_repositories(value: object, where: str) -> tuple[Glob, ...]:
    globs = parse_globs(value, where, RuleInvalid)
    for number, glob in enumerate(globs):
        try:
            RepositoryName.parse(glob.literal or "x")
        except NameInvalid as error:
            raise RuleInvalid(f"{where}[{number}]: {error}") from error
    return globs
