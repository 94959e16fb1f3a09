"""Which tags a grant or a replication rule speaks of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from entrepot.access.globs import Glob
from entrepot.access.semver import Version, VersionRange
from entrepot.errors import GlobInvalid, Invalid, RangeUnreadable

_MAX_GLOBS = 1000
FIELDS = frozenset({"include", "exclude", "semver"})


@dataclass(frozen=True, slots=True)
class TagRules:
    """Tags that some `include` matches and no `exclude` does; with `semver`, only versions in that range."""

    include: tuple[Glob, ...]
    exclude: tuple[Glob, ...] = ()
    semver: VersionRange | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str, raises: type[Invalid]) -> Self:
        """The rules in a mapping; every tag is included unless it says otherwise.

        Raises an error of the class `raises`, whose message begins with the place, `where`.
        """
        include, exclude, semver = (fields.get(name) for name in ("include", "exclude", "semver"))
        return cls(
            include=(Glob.parse("*"),) if include is None else parse_globs(include, f"{where}.include", raises),
            exclude=() if exclude is None else parse_globs(exclude, f"{where}.exclude", raises),
            semver=None if semver is None else _parse_range(semver, f"{where}.semver", raises),
        )

    def selects(self, tag: str) -> bool:
        """Whether they speak of the tag."""
        if not any(glob.matches(tag) for glob in self.include) or any(glob.matches(tag) for glob in self.exclude):
            return False
        if self.semver is None:
            return True
        version = Version.find(tag)
        return version is not None and self.semver.contains(version)

    def to_document(self) -> dict[str, Any]:
        """As in plans.yaml and replication.yaml."""
        document: dict[str, Any] = {"include": [glob.text for glob in self.include]}
        if self.exclude:
            document["exclude"] = [glob.text for glob in self.exclude]
        if self.semver is not None:
            document["semver"] = self.semver.text
        return document

    def __str__(self) -> str:
        parts = [] if [glob.text for glob in self.include] == ["*"] else [" or ".join(map(str, self.include))]
        parts += [f"not {glob}" for glob in self.exclude]
        parts += [] if self.semver is None else [f"versions {self.semver}"]
        return ", ".join(parts) or "any"


def parse_globs(value: object, where: str, raises: type[Invalid]) -> tuple[Glob, ...]:
    """The globs of a list. Raises an error of the class `raises`, whose message begins with the place, `where`."""
    if not isinstance(value, list) or not value:
        raise raises(f"{where}: must be a list of globs")
    if len(value) > _MAX_GLOBS:
        raise raises(f"{where}: has {len(value)} entries, at most {_MAX_GLOBS} are allowed")
    globs = []
    for number, text in enumerate(value):
        if not isinstance(text, str):
            raise raises(f"{where}[{number}]: must be text; put it in quotes")
        try:
            globs.append(Glob.parse(text))
        except GlobInvalid as error:
            raise raises(f"{where}[{number}]: {error}") from error
    return tuple(globs)


def _parse_range(value: object, where: str, raises: type[Invalid]) -> VersionRange:
    if not isinstance(value, str):
        raise raises(f"{where}: must be a range of versions such as '>=1.0 <2.0'")
    try:
        return VersionRange.parse(value)
    except RangeUnreadable as error:
        raise raises(f"{where}: {error}") from error
