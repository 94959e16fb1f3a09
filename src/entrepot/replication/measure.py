"""How much a run would have to move, found out with few requests: by reading manifests, and no blob."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from entrepot.errors import SourceError, SourceUnreachable
from entrepot.oci.digest import Digest
from entrepot.registry.service import Registry
from entrepot.replication.concurrency import for_each
from entrepot.replication.copy import MAX_DEPTH, find_others
from entrepot.replication.differences import Item, Route
from entrepot.replication.platforms import Platforms
from entrepot.replication.source import Source

# Manifests that are read at most: some seconds of requests.
MAX_READS = 500
_READS_AT_ONCE = 16


@dataclass(slots=True)
class Size:
    """Bytes of manifests and blobs that are nowhere here; `is_whole` unless there are more manifests than are read.

    `failures` say which tags could not be read, and why.
    """

    bytes: int = 0
    is_whole: bool = True
    failures: dict[Item, SourceError] = field(default_factory=dict)


async def measure(
    source: Source, registry: Registry, items: Iterable[Item], platforms: Platforms | None = None
) -> Size:
    """What copying these items would move, for these platforms, without what follows them. Raises SourceUnreachable."""
    return await _Measurement(source, registry, platforms).run(items)


class _Measurement:
    def __init__(self, source: Source, registry: Registry, platforms: Platforms | None) -> None:
        self._source = source
        self._registry = registry
        self._platforms = platforms
        self._size = Size()
        self._reads = 0
        # Indexes that are here, but not all of their children.
        self._held: set[tuple[Route, Digest]] = set()
        self._seen: set[tuple[Route, Digest]] = set()
        self._blobs: dict[Digest, int] = {}

    async def run(self, items: Iterable[Item]) -> Size:
        """Measure them, level by level of their indexes, so that what is here is asked for in one go."""
        level = [(item, item.digest) for item in items]
        for _ in range(MAX_DEPTH + 1):
            level = await self._measure(await self._select_missing(level))
        self._size.is_whole = self._size.is_whole and not level
        held = await self._registry.select_blobs(self._blobs.keys())
        self._size.bytes += sum(size for digest, size in self._blobs.items() if digest not in held)
        return self._size

    async def _select_missing(self, level: list[tuple[Item, Digest]]) -> list[tuple[Item, Digest]]:
        """Those manifests that are not here, or lack something here, and were not seen before."""
        fresh: dict[tuple[Route, Digest], Item] = {}
        for item, digest in level:
            if (item.route, digest) not in self._seen:
                fresh.setdefault((item.route, digest), item)
        self._seen |= fresh.keys()
        by_route: dict[Route, list[Digest]] = {}
        for route, digest in fresh:
            by_route.setdefault(route, []).append(digest)
        missing = []
        for route, digests in by_route.items():
            held = await self._registry.select_held(route.target, digests)
            lacking = await self._registry.list_absences(route.target, held)
            self._held |= {(route, digest) for digest in lacking}
            held -= lacking.keys()
            missing += [(fresh[route, digest], digest) for digest in digests if digest not in held]
        return missing

    async def _measure(self, missing: list[tuple[Item, Digest]]) -> list[tuple[Item, Digest]]:
        """Count these manifests and note their blobs; answers what they name."""
        room = MAX_READS - self._reads
        if len(missing) > room:
            self._size.is_whole = False
        children: list[tuple[Item, Digest]] = []

        async def read(entry: tuple[Item, Digest]) -> None:
            item, digest = entry
            try:
                manifest = await self._source.get_manifest(item.origin, digest)
            except SourceUnreachable:
                raise
            except SourceError as error:
                self._size.failures.setdefault(item, error)
                return
            others = find_others(manifest, self._platforms)
            self._size.bytes += 0 if (item.route, digest) in self._held else manifest.size
            self._blobs.update({blob.digest: blob.size for blob in manifest.blobs if not blob.is_foreign})
            children.extend((item, child.digest) for child in manifest.children if child.digest not in others)

        chosen = missing[:room]
        self._reads += len(chosen)
        await for_each(chosen, read, at_once=_READS_AT_ONCE)
        return children
