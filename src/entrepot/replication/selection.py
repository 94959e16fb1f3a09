"""What a rule leaves out of what tags name, by kind and by platform; and whether what is here is what it asks for.

Only what is due is looked at, by its manifest at the source, unless the list says enough. What is found out of a digest
stays true, so it is remembered, within bounds: a tag that is left out is never here, and would be looked at each time.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from entrepot.errors import (
    ManifestInvalid,
    SourceError,
    SourceLied,
    SourceUnreachable,
    SourceUnsupported,
    TagLeftOut,
)
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest, parse_platform, read_annotations
from entrepot.oci.reference import RepositoryName
from entrepot.registry.service import Registry
from entrepot.replication.concurrency import for_each
from entrepot.replication.differences import Change, Item
from entrepot.replication.kinds import IMAGE_CONFIGS, Kinds, kind_of
from entrepot.replication.listing import LISTINGS_AT_ONCE, Survey
from entrepot.replication.platforms import REBUILT_FOR, REBUILT_FROM, UNKNOWN, Platforms
from entrepot.replication.rules import Rule
from entrepot.replication.source import Source

# Digests of which something is remembered; each takes some 300 bytes.
_REMEMBERED = 100_000
# Configs of real images have some 10 KiB.
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
_SHOWN_PLATFORMS = 10

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """What was used last, up to a number of entries."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[K, V] = OrderedDict()

    def find(self, key: K) -> V | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def keep(self, key: K, value: V) -> None:
        self._entries[key] = value
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Here:
    """A manifest of ours: the children for certain platforms, whether it has others, and what it was rebuilt from."""

    kept: frozenset[Digest]
    has_others: bool
    rebuilt_from: str | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of digests from earlier runs in this process, under each rule's choice."""

    reasons: _Recent[tuple[str, Digest, Kinds | None, Platforms | None], str] = field(
        default_factory=lambda: _Recent(_REMEMBERED)
    )
    here: _Recent[tuple[Digest, Platforms], _Here] = field(default_factory=lambda: _Recent(_REMEMBERED))


class Selection:
    """Applies the platforms and kinds of one rule."""

    def __init__(self, source: Source, registry: Registry, rule: Rule, memory: Memory) -> None:
        self._source = source
        self._registry = registry
        self.platforms = rule.platforms
        self._kinds = rule.kinds
        self._memory = memory

    @property
    def rebuilds(self) -> bool:
        """Whether an index may be published that is another than the source's."""
        return self.platforms is not None and self.platforms.rebuild

    async def sort(self, found: Survey) -> Survey:
        """The survey after a closer look: what is here judged by its platforms, and without what the rule leaves out.

        What cannot be looked at now stays due, so that copying it tells why. Raises DatabaseUnavailable.
        """
        found = replace(found, items=await self._judge_here(found.items))
        if self.platforms is None and self._kinds is None:
            return found
        left_out: dict[Item, str] = {}
        is_reachable = True

        async def judge(item: Item) -> None:
            nonlocal is_reachable
            await asyncio.sleep(0)  # what is remembered of very many must not keep others waiting
            if not is_reachable:
                return
            try:
                reason = await self._explain(item, found.kinds.get(item.digest))
            except (SourceError, ManifestInvalid) as error:
                is_reachable = not isinstance(error, SourceUnreachable)
                return
            if reason:
                left_out[item] = reason

        await for_each(found.due, judge, at_once=LISTINGS_AT_ONCE)
        items = [item for item in found.items if item not in left_out]
        return replace(found, items=items, left_out=dict(sorted(left_out.items(), key=_place)))

    async def verify(self, item: Item) -> None:
        """Raises TagLeftOut with the reason, or SourceError."""
        if self.platforms is None and self._kinds is None:
            return
        reason = await self._explain(item, None)
        if reason:
            raise TagLeftOut(reason)

    async def find_stand_in(self, item: Item) -> Manifest | None:
        """What is published in place of what a tag names: the index rebuilt, if the rule says so and it has to be.

        Raises SourceError, ManifestInvalid or ManifestTooLarge.
        """
        if self.platforms is None or not self.rebuilds:
            return None
        manifest = await self._source.get_manifest(item.origin, item.digest)
        return self.platforms.rebuilt(manifest) if self._has_others(manifest, self.platforms) else None

    def _has_others(self, manifest: Manifest, platforms: Platforms) -> bool:
        """Whether an index has children that are kept, and others."""
        if not manifest.is_index:
            return False
        kept = platforms.kept(manifest)
        return bool(kept) and not kept.issuperset(child.digest for child in manifest.children)

    async def _judge_here(self, items: list[Item]) -> list[Item]:
        """The items, with a verdict where digests alone do not tell whether a tag is as the rule wants it."""
        verdicts: dict[Item, Change] = {}
        targets: dict[RepositoryName, list[Item]] = {}
        for item in items:
            if item.here is not None:
                targets.setdefault(item.target, []).append(item)
        for target, some in targets.items():
            lacking = await self._registry.list_absences(target, {one.digest for one in some if one.here == one.digest})

            async def judge(item: Item, lacking: dict[Digest, set[Digest]] = lacking) -> None:
                verdict = await self._judge(item, lacking.get(item.digest, set()))
                if verdict is not item.change:
                    verdicts[item] = verdict

            doubtful = [one for one in some if self.rebuilds or one.digest in lacking]
            await for_each(doubtful, judge, at_once=LISTINGS_AT_ONCE)
        return [replace(item, verdict=verdicts[item]) if item in verdicts else item for item in items]

    async def _judge(self, item: Item, absent: set[Digest]) -> Change:
        """How a tag that is here differs from what the rule wants of it; `absent` is not here of it."""
        if item.here is None or (self.platforms is None and not absent):
            return item.change
        if self.platforms is None:
            return Change.CHANGED
        here = await self._look_here(item.target, item.here, self.platforms)
        if item.here != item.digest:
            return Change.SAME if here.rebuilt_from == str(item.digest) else Change.CHANGED
        is_as_wanted = not (absent & here.kept) and not (self.platforms.rebuild and here.has_others)
        return Change.SAME if is_as_wanted else Change.CHANGED

    async def _look_here(self, target: RepositoryName, digest: Digest, platforms: Platforms) -> _Here:
        known = self._memory.here.find((digest, platforms))
        if known is not None:
            return known
        manifest = await self._registry.find_manifest(target, digest)
        if manifest is None:  # gone since it was listed
            return _Here(frozenset(), False, None)
        annotations = read_annotations(manifest.content) if manifest.is_index else {}
        found = _Here(
            kept=platforms.kept(manifest) if manifest.is_index else frozenset(),
            has_others=self._has_others(manifest, platforms),
            rebuilt_from=annotations.get(REBUILT_FROM) if annotations.get(REBUILT_FOR) == platforms.text else None,
        )
        self._memory.here.keep((digest, platforms), found)
        return found

    async def _explain(self, item: Item, kind: str | None) -> str:
        """Why the rule leaves out what a tag names, empty when it does not; `kind` is what a list said of it."""
        key = (self._source.name, item.digest, self._kinds, self.platforms)
        reason = self._memory.reasons.find(key)
        if reason is None:
            reason = await self._find_reason(item, kind)
            self._memory.reasons.keep(key, reason)
        return reason

    async def _find_reason(self, item: Item, kind: str | None) -> str:
        manifest = None
        if self._kinds is not None:
            if kind is None:
                manifest = await self._source.get_manifest(item.origin, item.digest)
                kind = kind_of(manifest)
            if not self._kinds.takes(kind):
                return f"it is of type {kind}; the rule copies {self._kinds}"
        if self.platforms is None:
            return ""
        manifest = manifest or await self._source.get_manifest(item.origin, item.digest)
        others = await self._find_other_platforms(item.origin, manifest, self.platforms)
        return f"it is for {others}; the rule keeps {self.platforms.text}" if others else ""

    async def _find_other_platforms(self, repository: RepositoryName, manifest: Manifest, platforms: Platforms) -> str:
        """What a manifest is for where nothing of it is for a platform that is kept; else empty."""
        if manifest.is_index:
            if platforms.kept(manifest) or not manifest.children:
                return ""
            names = sorted({child.platform for child in manifest.children if child.platform not in {None, UNKNOWN}})
            return ", ".join(names[:_SHOWN_PLATFORMS]) + (", ..." if len(names) > _SHOWN_PLATFORMS else "")
        if kind_of(manifest) not in IMAGE_CONFIGS:
            return ""
        platform = await self._read_platform(repository, manifest.blobs[0])
        return "" if platforms.takes(platform) else str(platform)

    async def _read_platform(self, repository: RepositoryName, config: Descriptor) -> str | None:
        """The platform that an image's config names. Raises SourceError."""
        what = f"source {self._source.name}: config {config.digest} of {repository}"
        if config.size > _MAX_CONFIG_BYTES:
            raise SourceUnsupported(f"{what} has {config.size} bytes, at most {_MAX_CONFIG_BYTES} are looked at")
        async with self._source.open_blob(repository, config) as pieces:
            content = b"".join([piece async for piece in pieces])
        if not config.digest.is_of(content):
            raise SourceLied(f"{what} has other bytes than those of its digest")
        try:
            return parse_platform(json.loads(content))
        except (ValueError, RecursionError):  # whoever runs it finds out
            return None


def _place(entry: tuple[Item, str]) -> tuple[object, ...]:
    return (entry[0].origin, entry[0].tag)
