"""What a run tells of itself while it goes on."""

from collections.abc import Callable
from dataclasses import dataclass

from entrepot.errors import EntrepotError
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.companions import Companion
from entrepot.replication.differences import Item, Route
from entrepot.replication.trust.cosign import Signed


@dataclass(frozen=True, slots=True)
class Listed:
    """The source was listed, and these are all its tags that the rule means."""

    items: list[Item]


@dataclass(frozen=True, slots=True)
class RepositoryFailed:
    """The tags of a repository that the rule names could not be listed."""

    repository: RepositoryName
    error: EntrepotError


@dataclass(frozen=True, slots=True)
class BlobFound:
    """A blob is in its repository already."""

    blob: Descriptor


@dataclass(frozen=True, slots=True)
class BlobMounted:
    """A blob was here already, in another repository, and costs no transfer."""

    blob: Descriptor


@dataclass(frozen=True, slots=True)
class BlobStarted:
    """A blob's transfer begins, for the sake of a tag where that is known."""

    target: RepositoryName
    blob: Descriptor
    item: Item | None = None


@dataclass(frozen=True, slots=True)
class BlobResumed:
    """The first `size` bytes of a blob had arrived before, and are not asked for again."""

    blob: Descriptor
    size: int


@dataclass(frozen=True, slots=True)
class BlobAdvanced:
    """`size` more bytes of a blob have arrived."""

    blob: Descriptor
    size: int


@dataclass(frozen=True, slots=True)
class BlobEnded:
    """A blob's transfer is over."""

    blob: Descriptor
    is_complete: bool


@dataclass(frozen=True, slots=True)
class CompanionCopied:
    """A signature, attestation, SBOM or other referrer is here now."""

    route: Route
    companion: Companion


@dataclass(frozen=True, slots=True)
class CompanionNamed:
    """A tag that speaks of a digest names here what was copied, or what we signed; or it was found to do so."""

    route: Route
    tag: Tag
    digest: Digest


@dataclass(frozen=True, slots=True)
class CompanionFailed:
    """Something that belongs to a tag that was here before could not be copied, or not be signed."""

    route: Route
    what: str
    error: EntrepotError


@dataclass(frozen=True, slots=True)
class ManifestSigned:
    """What a tag names was signed with the rule's key."""

    route: Route
    digest: Digest


@dataclass(frozen=True, slots=True)
class ItemStarted:
    """A tag begins to be copied."""

    item: Item


@dataclass(frozen=True, slots=True)
class ItemAdmitted:
    """A tag was judged: what it names may be published, or the `stand_in` for it, and is about to be copied."""

    item: Item
    stand_in: Manifest | None = None


@dataclass(frozen=True, slots=True)
class ItemFinished:
    """A tag is here now, with all that it names; `signed` by whom, where the rule asks for a signature."""

    item: Item
    signed: Signed | None = None


@dataclass(frozen=True, slots=True)
class ItemLeftOut:
    """A tag names what the rule does not copy; told after the list, or when it came to do so meanwhile."""

    item: Item
    reason: str


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """A tag could not be copied."""

    item: Item
    error: EntrepotError


@dataclass(frozen=True, slots=True)
class TagDeleted:
    """A tag is not here any more, since it is gone at the source."""

    route: Route
    tag: Tag
    digest: Digest


@dataclass(frozen=True, slots=True)
class CompanionDeleted:
    """A tag is not here any more that spoke of what no tag leads to any more."""

    target: RepositoryName
    tag: Tag


@dataclass(frozen=True, slots=True)
class DeletionFailed:
    """A tag is gone at the source, but stays here."""

    route: Route
    tag: Tag
    digest: Digest
    error: EntrepotError


Event = (
    Listed
    | RepositoryFailed
    | BlobFound
    | BlobMounted
    | BlobStarted
    | BlobResumed
    | BlobAdvanced
    | BlobEnded
    | CompanionCopied
    | CompanionNamed
    | CompanionFailed
    | ManifestSigned
    | ItemStarted
    | ItemAdmitted
    | ItemFinished
    | ItemLeftOut
    | ItemFailed
    | TagDeleted
    | CompanionDeleted
    | DeletionFailed
)

Tell = Callable[[Event], None]
"""Is told what happens; returns at once and raises nothing."""


def silent(_: Event) -> None:
    """Tells nobody."""
