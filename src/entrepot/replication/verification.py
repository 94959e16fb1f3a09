"""Comparing what is here with what a rule's source has, digest by digest. Copies nothing."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from entrepot.errors import BlobUnknown, NameUnknown, StorageUnavailable
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry.service import MAX_PAGE, Registry
from entrepot.replication.concurrency import for_each
from entrepot.replication.copy import MAX_DEPTH
from entrepot.replication.deletions import Vanished
from entrepot.replication.differences import Change, Item
from entrepot.replication.listing import Survey
from entrepot.replication.rules import Rule

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found. Equal is what names the same digest on both sides, and with that is here as a whole.

    `kept` is here and selected by the rule, but gone from the source; that is no difference, since nothing deletes it,
    or not yet: `kept_until` says when. `gone` should not be here any more. What the rule leaves out is no difference
    either, `left_out` with the reason.
    """

    equal: int
    missing: list[Item]
    different: list[Item]
    kept: list[str]
    unlisted: list[str]
    broken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    gone: list[Vanished] = field(default_factory=list)
    kept_until: dict[str, datetime] = field(default_factory=dict)

    @property
    def is_equal(self) -> bool:
        """Whether all that the source has is here, the same, and nothing else that should not be."""
        return not (self.missing or self.different or self.gone or self.unlisted or self.broken)

    def to_document(self) -> dict[str, Any]:
        """As `replicate verify --json` shows it."""
        return {
            "is_equal": self.is_equal,
            "equal": self.equal,
            "missing": [{"what": f"{item.target}:{item.tag}", "there": str(item.digest)} for item in self.missing],
            "different": [
                {"what": f"{item.target}:{item.tag}", "there": str(item.digest), "here": str(item.here)}
                for item in self.different
            ],
            "gone": [
                {
                    "what": str(one.placed),
                    "here": str(one.placed.digest),
                    "refused": None if one.refused is None else str(one.refused),
                }
                for one in self.gone
            ],
            "kept": self.kept,
            "kept_until": self.kept_until,
            "unlisted": self.unlisted,
            "broken": self.broken,
            "left_out": self.left_out,
        }


class Verification:
    """Compares the tags of a rule; `is_deep`, also every manifest and blob that they lead to here."""

    def __init__(self, registry: Registry, rule: Rule, *, is_deep: bool) -> None:
        self._registry = registry
        self._rule = rule
        self._is_deep = is_deep
        # What is not here of a manifest, or of a blob; each is looked at once.
        self._gaps: dict[tuple[RepositoryName, Digest], list[str]] = {}

    async def compare(self, found: Survey, unlisted: list[str], vanished: list[Vanished], now: datetime) -> Comparison:
        """What differs, given all that the rule means, what of it could not be listed, and what vanished."""
        items = found.items
        same = [item for item in items if item.change is Change.SAME]
        lacking = [item for item in items if item.change is Change.CHANGED and item.here == item.digest]
        broken = {f"{item.target}:{item.tag}": "it is not as the rule's platforms want it" for item in lacking}

        async def check(item: Item) -> None:
            if gaps := await self._find_gaps(item.target, item.here or item.digest, 0):
                broken[f"{item.target}:{item.tag}"] = ", ".join(dict.fromkeys(gaps))

        if self._is_deep:
            await for_each(same, check, at_once=_AT_ONCE)
        gone = [one for one in vanished if one.is_due(now)]
        # Also what is kept for a while though the source has it, and repositories that the source has not at all.
        more = [one for one in vanished if one.due_at is not None or one.placed.origin not in found.listed]
        kept = {*await self._find_kept(found), *(str(one.placed) for one in more)} - {str(one.placed) for one in gone}
        return Comparison(
            equal=len(same) + len(lacking) - len(broken),
            missing=[item for item in items if item.change is Change.NEW],
            different=[item for item in items if item.change is Change.CHANGED and item.here != item.digest],
            kept=sorted(kept),
            unlisted=unlisted,
            broken=[f"{what}: {problem}" for what, problem in sorted(broken.items())],
            left_out=[f"{item.target}:{item.tag}: {reason}" for item, reason in found.left_out.items()],
            gone=gone,
            kept_until={str(one.placed): one.due_at for one in vanished if one.due_at is not None and one.due_at > now},
        )

    async def _find_kept(self, found: Survey) -> list[str]:
        """Tags here that the rule means, in the repositories that it copies to, of which the source has none."""
        there: dict[RepositoryName, set[str]] = {}
        for item in (*found.items, *found.left_out):
            there.setdefault(item.target, set()).add(item.tag.value)
        for origin, passed_over in found.passed_over.items():
            there.setdefault(self._rule.target_of(origin), set()).update(tag.value for tag in passed_over)
        kept = []

        def is_meant(name: str) -> bool:
            return self._rule.selects_tag(Tag(name))

        for target, tags in sorted(there.items()):
            last, is_last = "", False
            while not is_last:
                try:
                    page = await self._registry.list_tags(target, last, MAX_PAGE, is_meant)
                except NameUnknown:  # nothing of it is here yet
                    break
                kept += [f"{target}:{name}" for name in page.names if name not in tags]
                last, is_last = (page.names or [""])[-1], page.is_last
        return kept

    async def _find_gaps(self, name: RepositoryName, digest: Digest, depth: int) -> list[str]:
        """What is not here of all that a manifest leads to."""
        known = self._gaps.get((name, digest))
        if known is not None:
            return known
        manifest = await self._registry.find_manifest(name, digest)
        if manifest is None or depth > MAX_DEPTH:
            return [f"manifest {digest} is not here"]
        gaps: list[str] = []
        platforms = self._rule.platforms
        kept = None if platforms is None or not manifest.is_index else platforms.kept(manifest)
        for child in manifest.children:
            if kept is None or child.digest in kept:
                gaps += await self._find_gaps(name, child.digest, depth + 1)
        for blob in manifest.blobs:
            if not blob.is_foreign:
                gaps += await self._find_blob_gap(name, blob.digest)
        self._gaps[name, digest] = gaps
        return gaps

    async def _find_blob_gap(self, name: RepositoryName, digest: Digest) -> list[str]:
        if (name, digest) not in self._gaps:
            is_here = await self._has_blob(name, digest)
            self._gaps[name, digest] = [] if is_here else [f"blob {digest} is not here, or damaged"]
        return self._gaps[name, digest]

    async def _has_blob(self, name: RepositoryName, digest: Digest) -> bool:
        try:
            blob = await self._registry.open_blob(name, digest)
            # An object store tells only when it is asked for bytes.
            async for _ in await blob.read(ByteRange(0, min(1, blob.size))):
                pass
        except (BlobUnknown, StorageUnavailable):
            return False
        return True
