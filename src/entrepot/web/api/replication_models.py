"""Bodies of what is said of replication."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from entrepot.replication.rulebook import RuleState
from entrepot.replication.rules import Rule
from entrepot.replication.runs import Run
from entrepot.replication.source_specs import SourceSpec

RunStatus = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]


class SourceBody(BaseModel):
    """A source, with the fields of replication.yaml. Secrets are named by their file or variable, and never shown."""

    model_config = ConfigDict(extra="allow")

    name: str
    type: str

    @classmethod
    def of(cls, spec: SourceSpec) -> Self:
        """The body for a source."""
        return cls(name=spec.name, **spec.to_document())


class SourceList(BaseModel):
    """Every source."""

    sources: list[SourceBody]


class PushesBody(BaseModel):
    """How many pushes were understood; whether a rule means them shows in its runs."""

    pushes: int


class RuleBody(BaseModel):
    """A rule, with the fields of replication.yaml."""

    model_config = ConfigDict(extra="allow")

    name: str
    source: str

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """The body for a rule."""
        return cls(name=rule.name, **rule.to_document())


class RuleStateBody(RuleBody):
    """A rule, and when its schedule wants a run."""

    scheduled_at: datetime | None

    @classmethod
    def of_state(cls, state: RuleState) -> Self:
        """The body for a rule and its state."""
        return cls(name=state.rule.name, scheduled_at=state.scheduled_at, **state.rule.to_document())


class RuleList(BaseModel):
    """Every rule."""

    rules: list[RuleBody]


class SpotBody(BaseModel):
    """A tag at the source; empty: the whole repository."""

    repository: str
    tag: str


class RunBody(BaseModel):
    """One execution of a rule."""

    id: str
    rule: str
    status: RunStatus
    cause: str = Field(description="request, schedule, push or pull.")
    queued_at: datetime
    started_at: datetime | None
    due_at: datetime | None = Field(description="Before this it does not begin, or begin again.")
    finished_at: datetime | None
    tries: int
    scope: list[SpotBody] | None = Field(description="What it is about; null: all that the rule means.")
    report: dict[str, Any] = Field(
        description="What it did, in numbers; `failures`, `problem` and, while it goes on, `progress`."
    )

    @classmethod
    def of(cls, run: Run) -> Self:
        """The body for a run."""
        return cls.model_validate(run.to_document())


class RunPage(BaseModel):
    """A page of runs, newest first."""

    runs: list[RunBody]
    next_cursor: str | None


class ArtifactBody(BaseModel):
    """What became of a tag in a run."""

    id: int
    attempt: int = Field(description="In which try of the run.", validation_alias="try")
    at: datetime
    origin: str = Field(description="Its repository at the source.")
    target: str
    tag: str = Field(description="Empty: the whole repository.")
    digest: str | None
    outcome: Literal["copied", "skipped", "deleted", "refused", "failed"]
    bytes: int
    seconds: float
    side: Literal["source", "destination"] | None
    problem: str | None = Field(description="Why it failed, was refused, or is left out by the rule.")
    is_temporary: bool | None = Field(description="Whether trying again may help; a waiting run does so.")
    signed_by: str | None = Field(description="Who signed it, where the rule asks for a signature.")


class ArtifactPage(BaseModel):
    """A page of what became of tags, in the order in which it did."""

    artifacts: list[ArtifactBody]
    next_cursor: str | None


class RepositoryPage(BaseModel):
    """A page of the names of repositories, in order."""

    repositories: list[str]
    next_cursor: str | None


class TagBody(BaseModel):
    """A tag, and what it names."""

    name: str
    digest: str


class TagPage(BaseModel):
    """A page of tags, in order."""

    tags: list[TagBody]
    next_cursor: str | None
