"""A source that is an OCI image layout: a folder or a tar file, carried by hand to where no network leads.

Names are read as the common tools write them: `org.opencontainers.image.ref.name` with a tag (oras), with `name:tag`
(skopeo, podman, our own export), or beside containerd's `io.containerd.image.name` (ctr, docker).
"""

import asyncio
import errno
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from entrepot.errors import (
    DigestInvalid,
    ManifestInvalid,
    NameInvalid,
    SourceLied,
    SourceMissing,
    SourceUnreachable,
    SourceUnsupported,
    TagInvalid,
)
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.replication.layouts import (
    CONTAINERD_NAME,
    INDEX,
    MARKER,
    MAX_INDEX_BYTES,
    REF_NAME,
    Layout,
    LayoutBroken,
    blob_name,
    open_layout,
    read_pieces,
    read_small,
)
from entrepot.replication.source import MAX_REFERRERS, TagEntry
from entrepot.replication.source_specs import ArchiveSpec

Tags = dict[RepositoryName, dict[Tag, Digest]]

_MARKER_BYTES = 4096


class ArchiveSource:
    """An open layout, and the tags that its index names."""

    def __init__(self, name: str, layout: Layout, tags: Tags, unnamed: list[Descriptor]) -> None:
        self._name = name
        self._layout = layout
        self._tags = tags
        self._unnamed = unnamed
        self._referrers: dict[Digest, list[Descriptor]] | None = None
        self._lock = asyncio.Lock()

    @property
    def name(self) -> str:
        """What the rule file calls it."""
        return self._name

    async def list_repositories(self) -> AsyncIterator[RepositoryName]:
        """Every repository that a tag belongs to."""
        for name in self._tags:
            yield name

    async def list_tags(self, repository: RepositoryName) -> AsyncIterator[TagEntry]:
        """Every tag of a repository, with the digest it names. Raises SourceMissing."""
        for tag, digest in self._get_tags(repository).items():
            yield TagEntry(tag, digest)

    async def get_digest(self, repository: RepositoryName, tag: Tag) -> Digest:
        """What `tag` names. Raises SourceMissing."""
        digest = self._get_tags(repository).get(tag)
        if digest is None:
            raise SourceMissing(f"source {self._name} has no {repository}:{tag}")
        return digest

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> Manifest:
        """A manifest, which has the digest that it is named by. Raises SourceMissing or SourceLied."""
        digest = reference if isinstance(reference, Digest) else await self.get_digest(repository, reference)
        what = f"source {self._name}: manifest {repository}@{digest}"
        with _file_errors(what):
            content = await asyncio.to_thread(read_small, self._layout, blob_name(digest), MAX_MANIFEST_BYTES)
        if content is None:
            raise SourceLied(f"{what} has more than the {MAX_MANIFEST_BYTES} bytes allowed for it")
        if not digest.is_of(content):
            raise SourceLied(f"{what} has another digest, {Digest.of(content, digest.algorithm)}")
        try:
            return Manifest.parse(content, _guess_type(content), digest.algorithm)
        except ManifestInvalid as error:
            raise SourceLied(f"{what} is no manifest: {error}") from error

    async def list_referrers(
        self,
        repository: RepositoryName,
        subject: Digest,
        *,
        has_fallback: bool = True,  # noqa: ARG002 - layouts need no such tag
    ) -> list[Descriptor]:
        """What in the index has no name, and says that it speaks of `subject`. Raises SourceUnsupported."""
        if repository not in self._tags:
            return []
        async with self._lock:
            if self._referrers is None:
                self._referrers = await self._read_referrers(repository)
        found = self._referrers.get(subject, [])
        if len(found) > MAX_REFERRERS:
            raise SourceUnsupported(f"source {self._name}: more than {MAX_REFERRERS} manifests speak of {subject}")
        return list(found)

    async def _read_referrers(self, repository: RepositoryName) -> dict[Digest, list[Descriptor]]:
        """By subject, what has no name in the index: only the manifests themselves say what they speak of."""
        found: dict[Digest, list[Descriptor]] = {}
        for entry in self._unnamed:
            try:
                manifest = await self.get_manifest(repository, entry.digest)
            except SourceMissing:
                continue
            if manifest.subject is not None:
                found.setdefault(manifest.subject.digest, []).append(entry)
        return found

    @asynccontextmanager
    async def open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of a blob from `start` on. Raises SourceMissing or SourceLied when they are read."""
        pieces = self._read_blob(f"source {self._name}: blob {blob.digest} of {repository}", blob, start)
        try:
            yield pieces
        finally:
            await pieces.aclose()

    async def _read_blob(self, what: str, blob: Descriptor, start: int) -> AsyncGenerator[bytes, None]:
        with _file_errors(what):
            found = await asyncio.to_thread(self._layout.open, blob_name(blob.digest))
            try:
                if found.size != blob.size:
                    raise SourceLied(f"{what} has {found.size} bytes, its manifest says {blob.size}")
                async for piece in read_pieces(found, start):
                    yield piece
            finally:
                found.close()

    def _get_tags(self, repository: RepositoryName) -> dict[Tag, Digest]:
        tags = self._tags.get(repository)
        if tags is None:
            raise SourceMissing(f"source {self._name} has no repository {repository}")
        return tags


@asynccontextmanager
async def open_archive(spec: ArchiveSpec) -> AsyncIterator[ArchiveSource]:
    """The layout of `spec`. Raises SourceError."""
    what = f"source {spec.name}: {spec.path}"
    with _file_errors(what):
        layout = await asyncio.to_thread(open_layout, Path(spec.path))
    try:
        tags, unnamed = await asyncio.to_thread(_read_index, what, layout, spec.repository)
        yield ArchiveSource(spec.name, layout, tags, unnamed)
    finally:
        layout.close()


def _read_index(what: str, layout: Layout, default: RepositoryName | None) -> tuple[Tags, list[Descriptor]]:
    """The tags that a layout's index names, and its entries without a name."""
    with _file_errors(f"{what}: it is no OCI layout, which has the files {MARKER} and {INDEX}"):
        marker, index = read_small(layout, MARKER, _MARKER_BYTES), read_small(layout, INDEX, MAX_INDEX_BYTES)
    if _find(marker, "imageLayoutVersion") != "1.0.0":
        raise SourceUnsupported(f"{what}: {MARKER} does not say version 1.0.0")
    if index is None:
        raise SourceLied(f"{what}: {INDEX} has more than the {MAX_INDEX_BYTES} bytes allowed for it")
    tags: Tags = {}
    entries = _find(index, "manifests")
    for number, (repository, tag, digest) in enumerate(_parse_entries(what, entries, default)):
        known = tags.setdefault(repository, {}).setdefault(tag, digest)
        if known != digest:
            raise SourceLied(f"{what}: {INDEX} names {repository}:{tag} twice, at last in tag {number + 1}")
    return tags, list(_parse_unnamed(what, entries))


def _parse_entries(
    what: str, entries: object, default: RepositoryName | None
) -> Iterator[tuple[RepositoryName, Tag, Digest]]:
    """What the tags in an index name; entries without a tag are what others refer to."""
    if not isinstance(entries, list):
        raise SourceLied(f"{what}: {INDEX} has no list of manifests")
    for number, entry in enumerate(entries):
        text = _name_of(entry)
        if text is None:
            continue
        place = f"{what}: {INDEX}: manifests[{number}]"
        try:
            repository, tag = _parse_name(text, default)
            yield repository, tag, Descriptor.parse(entry, f"manifests[{number}]").digest
        except (NameInvalid, TagInvalid) as error:
            raise SourceLied(f"{place} is called {text[:150]!r}, which is no image: {error}") from error
        except (ManifestInvalid, DigestInvalid) as error:
            raise SourceLied(f"{place}: {error}") from error
        except LookupError:
            raise SourceUnsupported(
                f"{place} is called {text[:150]!r}, a tag without a repository; give the source a repository"
            ) from None


def _parse_unnamed(what: str, entries: list[object]) -> Iterator[Descriptor]:
    """Entries without a tag, as far as they are manifests."""
    for number, entry in enumerate(entries):
        if _name_of(entry) is None:
            try:
                descriptor = Descriptor.parse(entry, f"manifests[{number}]")
            except ManifestInvalid as error:
                raise SourceLied(f"{what}: {INDEX}: {error}") from error
            if descriptor.media_type in media_types.ACCEPTED:
                yield descriptor


def _name_of(entry: object) -> str | None:
    """What an entry is called, None where it has no tag."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    if not isinstance(annotations, dict):
        return None
    text = annotations.get(CONTAINERD_NAME) or annotations.get(REF_NAME)
    # containerd names what was pulled by digest alone name@digest.
    return text if isinstance(text, str) and "@" not in text else None


def _parse_name(text: str, default: RepositoryName | None) -> tuple[RepositoryName, Tag]:
    """Repository and tag of `[HOST/]name[:tag]`, or of a tag alone, which takes a default; LookupError without one."""
    if "/" not in text and ":" not in text:
        if default is None:
            raise LookupError(text)
        return default, Tag.parse(text)
    first, slash, rest = text.partition("/")
    # As docker tells a host from a path.
    if slash and ("." in first or ":" in first or first == "localhost"):
        text = rest
    name, _, tag = text.partition(":")
    return RepositoryName.parse(name), Tag.parse(tag or "latest")


def _guess_type(content: bytes) -> str:
    """The media type of a manifest that does not state it, as image-spec allows and older tools write."""
    if _find(content, "mediaType") is not None:
        return ""
    return media_types.OCI_INDEX if _find(content, "manifests") is not None else media_types.OCI_MANIFEST


def _find(content: bytes | None, field: str) -> Any:
    """A field of a JSON object; None where there is none, or no object."""
    try:
        document = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return document.get(field) if isinstance(document, dict) else None


@contextmanager
def _file_errors(what: str) -> Iterator[None]:
    """The one place where the system's errors become ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceMissing(f"{what}: no such file") from error
    except EOFError as error:
        raise SourceLied(f"{what}: the file ends too early") from error
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise SourceLied(f"{what}: a symbolic link, which is not followed") from error
        raise SourceUnreachable(f"{what}: {error.strerror}") from error
    except LayoutBroken as error:
        raise SourceLied(f"{what}: {error}") from error
