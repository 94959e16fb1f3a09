"""Exporting repositories as an OCI image layout, to be carried to where no network leads.

What a tag names comes with all that it needs, and with what speaks of it: signatures, attestations and the like, found
as referrers and by cosign's tags.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Self

from entrepot.errors import BlobUnknown, ManifestUnknown, Unsupported
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry.service import MAX_PAGE, Registry
from entrepot.replication.events import BlobAdvanced, BlobEnded, BlobFound, BlobStarted, Tell
from entrepot.replication.layout_writers import Entry, LayoutWriter
from entrepot.replication.layouts import REF_NAME

# cosign's "Signature Specification", and distribution-spec 1.1, "Referrers Tag Schema".
_SUBJECT_TAGS = ("", ".sig", ".att", ".sbom")
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """A repository, and the one tag of it that is meant; None: all of them."""

    repository: RepositoryName
    tag: Tag | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `REPOSITORY[:TAG]` spells. Raises NameInvalid or TagInvalid."""
        name, colon, tag = text.partition(":")
        return cls(RepositoryName.parse(name), Tag.parse(tag) if colon else None)


class Export:
    """Writes what is wanted into a layout. What is asked for twice is written once."""

    def __init__(self, registry: Registry, writer: LayoutWriter, tell: Tell) -> None:
        self._registry = registry
        self._writer = writer
        self._tell = tell
        self._done: set[tuple[RepositoryName, Digest]] = set()
        self._entries: dict[tuple[str, Digest], Entry] = {}

    async def run(self, wanted: Iterable[Wanted]) -> list[str]:
        """Write it, the index last; answers the names of the tags. Raises NotFound, or what writing raises."""
        for one in wanted:
            tags = [one.tag] if one.tag is not None else [tag async for tag in self._list_tags(one.repository)]
            for tag in tags:
                await self._write_tag(one.repository, tag)
        await self._writer.finish(list(self._entries.values()))
        return sorted({name for name, _ in self._entries if name})

    async def _list_tags(self, repository: RepositoryName) -> AsyncIterator[Tag]:
        last, is_last = "", False
        while not is_last:
            page = await self._registry.list_tags(repository, last, MAX_PAGE)
            for name in page.names:
                yield Tag(name)
            last, is_last = (page.names or [""])[-1], page.is_last

    async def _write_tag(self, repository: RepositoryName, tag: Tag) -> None:
        manifest = await self._registry.find_manifest(repository, tag)
        if manifest is None:
            raise ManifestUnknown(f"repository {repository} has no tag {tag}")
        await self._write_graph(repository, manifest, 0)
        self._add_entry(manifest, f"{repository}:{tag}")

    async def _write_graph(self, repository: RepositoryName, manifest: Manifest, depth: int) -> None:
        """Write a manifest after all that it names, and then what speaks of it."""
        if (repository, manifest.digest) in self._done:
            return
        if depth > _MAX_DEPTH:
            raise Unsupported(f"{repository}@{manifest.digest} is nested more than {_MAX_DEPTH} deep")
        self._done.add((repository, manifest.digest))
        absent = await self._registry.list_absences(repository, [manifest.digest]) if manifest.is_index else {}
        for child in manifest.children:
            # What an index lacks here, it lacks there.
            if child.digest not in absent.get(manifest.digest, ()):
                await self._write_graph(repository, await self._get_manifest(repository, child.digest), depth + 1)
        for blob in manifest.blobs:
            await self._write_blob(repository, blob)
        if not await self._writer.has(manifest.digest, manifest.size):
            await self._writer.put(manifest.digest, manifest.size, _once(manifest.content))
        await self._write_what_speaks_of(repository, manifest.digest, depth)

    async def _write_what_speaks_of(self, repository: RepositoryName, subject: Digest, depth: int) -> None:
        last, is_last = "", False
        while not is_last:
            page = await self._registry.list_referrers(repository, subject, None, last)
            for referrer in page.entries:
                manifest = await self._get_manifest(repository, referrer.digest)
                await self._write_graph(repository, manifest, depth + 1)
                # Without a name, as oras looks for them.
                self._add_entry(manifest, "")
                last = str(referrer.digest)
            is_last = page.is_last or not page.entries
        tags = [Tag(f"{subject.algorithm}-{subject.hex}{suffix}") for suffix in _SUBJECT_TAGS]
        for tag in await self._registry.read_tag_digests(repository, tags):
            await self._write_tag(repository, tag)

    async def _write_blob(self, repository: RepositoryName, blob: Descriptor) -> None:
        if await self._writer.has(blob.digest, blob.size):
            self._tell(BlobFound(blob))
            return
        try:
            opened = await self._registry.open_blob(repository, blob.digest)
        except BlobUnknown:
            if blob.is_foreign:
                return
            raise
        self._tell(BlobStarted(repository, blob))
        is_complete = False
        try:
            pieces = await opened.read(ByteRange(0, opened.size))
            await self._writer.put(blob.digest, opened.size, self._metered(blob, pieces))
            is_complete = True
        finally:
            self._tell(BlobEnded(blob, is_complete))

    async def _metered(self, blob: Descriptor, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._tell(BlobAdvanced(blob, len(piece)))
            yield piece

    async def _get_manifest(self, repository: RepositoryName, digest: Digest) -> Manifest:
        manifest = await self._registry.find_manifest(repository, digest)
        if manifest is None:
            raise ManifestUnknown(f"repository {repository} has no manifest {digest}, which another one names")
        return manifest

    def _add_entry(self, manifest: Manifest, name: str) -> None:
        entry: Entry = {"mediaType": manifest.media_type, "digest": str(manifest.digest), "size": manifest.size}
        if name:
            entry["annotations"] = {REF_NAME: name}
        elif manifest.artifact_type:
            entry["artifactType"] = manifest.artifact_type
        self._entries[name, manifest.digest] = entry


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
