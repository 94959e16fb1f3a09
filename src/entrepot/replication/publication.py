"""Publishing a tag: judged, copied with what belongs to it, signed, and only then named.

What a tag names may get new signatures long after it was copied; `find_late` finds them for what one listing and one
question per tag cost, or for nothing but the listing where a registry has no API for referrers.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from weakref import WeakValueDictionary

from entrepot.errors import (
    EntrepotError,
    PreconditionFailed,
    SourceMissing,
    SourceUnreachable,
    SourceUnsupported,
)
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags, referrers_tag, subject_of
from entrepot.registry.service import Registry
from entrepot.replication.admission import Admission
from entrepot.replication.companions import Companion, Companions, Tags
from entrepot.replication.concurrency import for_each
from entrepot.replication.copy import MAX_DEPTH, GraphCopy
from entrepot.replication.differences import Change, Item, Route
from entrepot.replication.events import CompanionCopied, CompanionNamed, ItemAdmitted, ManifestSigned, Tell
from entrepot.replication.selection import Selection
from entrepot.replication.signing import Signing, is_merged
from entrepot.replication.source import Source
from entrepot.replication.transfers import Transfers
from entrepot.replication.trust.cosign import Signed

# Signatures of SBOMs of images: what speaks of what speaks of ... a tag.
_MAX_LEVELS = 4
# All that may belong to one tag.
_MAX_COMPANIONS = 5000
_QUESTIONS_AT_ONCE = 16
# Times that a tag is looked at again because it moved while it was copied.
_MAX_MOVES = 5


class Publication:
    """Brings tags over by one rule, with what belongs to them if `follow`."""

    def __init__(
        self,
        source: Source,
        registry: Registry,
        transfers: Transfers,
        *,
        concurrency: int,
        tell: Tell,
        follow: bool = True,
        admission: Admission | None = None,
        signing: Signing | None = None,
        only_tagged: bool = False,
        selection: Selection | None = None,
    ) -> None:
        self._source = source
        self._registry = registry
        self._concurrency = concurrency
        self._tell = tell
        self._follow = follow
        self._admission = admission
        self._signing = signing
        # What no tag leads to gets no late signatures: they would only be taken away again.
        self._only_tagged = only_tagged
        self._selection = selection
        self._graph = GraphCopy(
            source,
            registry,
            transfers,
            concurrency=concurrency,
            tell=tell,
            platforms=None if selection is None else selection.platforms,
        )
        self._locks: WeakValueDictionary[tuple[RepositoryName, Digest], asyncio.Lock] = WeakValueDictionary()
        # Whose companions were asked for, so that nothing is late of which that is true.
        self._asked: set[tuple[RepositoryName, Digest]] = set()

    async def judge(self, item: Item, tags: Tags | None) -> Signed | None:
        """Who signed what `item` names, None when the rule does not ask.

        Raises TagImmutable when its tag may not move, SignatureRefused or SourceError.
        """
        self._verify_movable(item)
        if self._admission is None:
            return None
        companions = Companions(self._source, item.origin, tags)
        return await self._admission.verify(item, companions, await companions.find(item.digest))

    async def publish(self, item: Item, tags: Tags | None) -> tuple[Item, Signed | None]:
        """Copy what `item` names and what belongs to it, then its tag; answers the item as it is and who signed it.

        A tag that moved meanwhile, at the source so that what it named is gone, or here, is looked at again: the later
        push wins, whichever of two runs is quicker. Raises TagLeftOut, SignatureRefused, SourceError, or what storing
        and signing raise.
        """
        for _ in range(_MAX_MOVES):
            try:
                digest, signed = await self._publish(item, tags)
            except (SourceMissing, PreconditionFailed) as error:
                item = await self._look_again(item, error)
                # What the list said of signatures is about what the tag named then.
                tags = None
            else:
                return replace(item, here=digest, verdict=Change.SAME), signed
        raise SourceUnreachable(f"source {self._source.name}: {item.origin}:{item.tag} moves all the time")

    async def _look_again(self, item: Item, error: EntrepotError) -> Item:
        """The item as it is now. Raises `error` when that explains nothing."""
        digest = await self._source.get_digest(item.origin, item.tag)
        if isinstance(error, SourceMissing) and digest == item.digest:
            raise error
        here = await self._registry.read_tag_digests(item.target, [item.tag])
        return replace(item, digest=digest, here=here.get(item.tag), verdict=None)

    async def _publish(self, item: Item, tags: Tags | None) -> tuple[Digest, Signed | None]:
        """One try; answers what the tag names here then, and who signed what it names at the source.

        The signatures that were judged are those that are copied, whatever their tags name by then.
        """
        # What can never be published is not copied either.
        self._verify_movable(item)
        companions = Companions(self._source, item.origin, tags)
        # One at a time for one digest: several tags often name the same.
        async with self._locks.setdefault((item.target, item.digest), asyncio.Lock()):
            stand_in = None
            if self._selection is not None:
                await self._selection.verify(item)
                stand_in = await self._selection.find_stand_in(item)
            listed = await self.find(item.route, companions, item.digest) if self._follow or self._admission else []
            signed = await self._admission.verify(item, companions, listed) if self._admission else None

            digest = item.digest if stand_in is None else stand_in.digest

            async def before_tag() -> None:
                # What speaks of the source's index says nothing of one that was rebuilt.
                if self._follow:
                    await self._bring_all(item.route, companions, digest, listed if stand_in is None else [])
                await self.sign(item.route, digest)

            self._tell(ItemAdmitted(item, stand_in))
            await self._graph.copy(item, stand_in=stand_in, before_tag=before_tag)
        return digest, signed

    def _verify_movable(self, item: Item) -> None:
        # An index that only lacked something here stays what it is, unless it is made anew.
        is_remade = self._selection is not None and self._selection.rebuilds
        if item.change is Change.CHANGED and (is_remade or item.here != item.digest):
            self._registry.verify_movable(item.target, item.tag)

    async def find(self, route: Route, companions: Companions, subject: Digest) -> list[Companion]:
        """What belongs to a manifest now. Raises SourceError."""
        self._asked.add((route.target, subject))
        return await companions.find(subject)

    async def sign(self, route: Route, digest: Digest) -> None:
        """Sign a manifest that is here, if the rule says so and it was not done before."""
        signed = None if self._signing is None else await self._signing.sign(route.target, digest)
        if signed is not None:
            self._tell(ManifestSigned(route, digest))
            self._tell(CompanionNamed(route, cosign_tags(digest)[0], signed))

    async def bring(self, route: Route, tags: Tags | None, companion: Companion) -> None:
        """Copy a late companion, and what belongs to it. Raises SourceError, or what storing raises."""
        await _Follower(self, route, Companions(self._source, route.origin, tags)).bring(companion, level=1)

    async def find_late(self, route: Route, tags: Tags, digests: Iterable[Digest]) -> list[Companion]:
        """What was attached at the source since `digests`, which tags here and there name, were copied: not just now.

        Looks at cosign's tags of everything that is here, or that tags here lead to, and at the referrers of `digests`
        themselves; those of an index's children are looked at when its tag changes.
        """
        if not self._follow:
            return []
        companions = Companions(self._source, route.origin, tags)
        spoken_of = {
            tag: subject
            for tag in tags
            if (subject := subject_of(tag)) is not None and (route.target, subject) not in self._asked
        }
        select = self._registry.select_reached if self._only_tagged else self._registry.select_held
        held = await select(route.target, set(spoken_of.values()))
        late = await self._find_late_tags(route, companions, {t: s for t, s in spoken_of.items() if s in held})
        with_fallback = {
            subject for tag, subject in spoken_of.items() if subject in held and tag == referrers_tag(subject)
        }
        unchanged = {digest for digest in digests if (route.target, digest) not in self._asked}
        late += await self._find_late_referrers(route, companions, with_fallback | unchanged)
        return late

    async def _find_late_tags(
        self, route: Route, companions: Companions, spoken_of: dict[Tag, Digest]
    ) -> list[Companion]:
        there: list[Companion] = []
        tags = [(tag, subject) for tag, subject in sorted(spoken_of.items()) if tag in cosign_tags(subject)]

        async def ask(entry: tuple[Tag, Digest]) -> None:
            there.extend(await companions.list_tagged(entry[:1], entry[1]))

        await for_each(tags, ask, at_once=_QUESTIONS_AT_ONCE)
        here = await self._registry.read_tag_digests(route.target, [tag for tag, _ in tags])
        late = []
        for companion in there:
            if companion.tag is None:
                continue
            if here.get(companion.tag) == companion.digest:
                self._tell(CompanionNamed(route, companion.tag, companion.digest))
                continue
            ours = await self._registry.find_manifest(route.target, companion.tag) if self._signing else None
            if ours is None or not is_merged(ours, companion.digest):
                late.append(companion)
            else:
                self._tell(CompanionNamed(route, companion.tag, ours.digest))
        return late

    async def _find_late_referrers(
        self, route: Route, companions: Companions, subjects: Iterable[Digest]
    ) -> list[Companion]:
        late: list[Companion] = []

        async def ask(subject: Digest) -> None:
            listed = await companions.list_referrers(subject)
            held = await self._registry.select_held(route.target, [one.digest for one in listed]) if listed else set()
            missing = [one for one in listed if one.digest not in held]
            # What a list names, but is gone or speaks of something else, never comes.
            late.extend([one for one in missing if await companions.read(one) is not None])

        await for_each(sorted(set(subjects)), ask, at_once=_QUESTIONS_AT_ONCE)
        return late

    async def _bring_all(self, route: Route, companions: Companions, digest: Digest, listed: list[Companion]) -> None:
        """Copy what belongs to a manifest that is here, which is `listed`, and to its children."""
        follower = _Follower(self, route, companions)
        await for_each(listed, lambda one: follower.bring(one, level=1), at_once=self._concurrency)
        children = [child async for child in self._list_graph(route.target, digest) if child != digest]
        await for_each(children, lambda child: follower.bring_all(child, level=1), at_once=self._concurrency)

    async def copy_companion(self, route: Route, companions: Companions, companion: Companion) -> bool:
        """Copy a companion by itself; False when it is gone at the source."""
        manifest = await companions.read(companion)
        if manifest is None:
            return False
        is_new = await self._graph.copy_manifest(route, companion.digest, known=manifest)
        if companion.tag is not None:
            named = companion.digest
            if self._signing is not None and companion.tag.value.endswith(".sig"):
                named = await self._signing.merge(route.target, companion.tag, manifest)
            else:
                await self._registry.put_tag(route.target, companion.tag, companion.digest)
            self._tell(CompanionNamed(route, companion.tag, named))
        if is_new:
            self._tell(CompanionCopied(route, companion))
        return True

    async def list_graph(self, target: RepositoryName, digest: Digest) -> list[Digest]:
        """A manifest that is here, and all manifests here that it names, each once."""
        return [one async for one in self._list_graph(target, digest)]

    async def _list_graph(self, target: RepositoryName, digest: Digest) -> AsyncIterator[Digest]:
        yield digest
        seen, level = {digest}, [digest]
        for _ in range(MAX_DEPTH):
            further = []
            for one in level:
                manifest = await self._registry.find_manifest(target, one)
                children = () if manifest is None else manifest.children
                held = await self._registry.select_held(target, {child.digest for child in children})
                for child in children:
                    if child.digest in held and child.digest not in seen:
                        seen.add(child.digest)
                        yield child.digest
                        if child.media_type in media_types.INDEXES:
                            further.append(child.digest)
            level = further


class _Follower:
    """Follows what belongs to one tag, and what belongs to that, within bounds."""

    def __init__(self, publication: Publication, route: Route, companions: Companions) -> None:
        self._publication = publication
        self._route = route
        self._companions = companions
        self._count = 0

    async def bring_all(self, subject: Digest, level: int) -> None:
        """Copy what belongs to `subject`."""
        for companion in await self._publication.find(self._route, self._companions, subject):
            await self.bring(companion, level)

    async def bring(self, companion: Companion, level: int) -> None:
        """Copy a companion, after what belongs to it in turn."""
        self._count += 1
        if level > _MAX_LEVELS or self._count > _MAX_COMPANIONS:
            raise SourceUnsupported(
                f"{self._route.origin}: {companion.subject} has signatures and referrers on more than {_MAX_LEVELS} "
                f"levels, or more than {_MAX_COMPANIONS}; copy without them (referrers: none)"
            )
        if not await self._publication.copy_companion(self._route, self._companions, companion):
            return
        for digest in await self._publication.list_graph(self._route.target, companion.digest):
            await self.bring_all(digest, level + 1)
