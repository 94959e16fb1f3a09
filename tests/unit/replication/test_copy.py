"""Copying a graph leaves no dangling reference, whatever the graph, and wherever it is cut off."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrepot.errors import EntrepotError, SourceMissing
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.replication.copy import GraphCopy
from entrepot.replication.differences import Item
from entrepot.replication.events import silent
from entrepot.replication.source import TagEntry
from entrepot.replication.transfers import Transfers
from entrepot.storage import tables
from tests.support.content import LAYER_TYPE, descriptor
from tests.support.served import Served

NAMES = [RepositoryName("a/one"), RepositoryName("a/two")]


class MemorySource:
    """A source that holds its content in memory, and fails at the reads whose number is in `failing`."""

    name = "memory"

    def __init__(self) -> None:
        self.manifests: dict[Digest, Manifest] = {}
        self.blobs: dict[Digest, bytes] = {}
        self.failing: set[int] = set()
        self.reads = 0
        self.blob_reads: list[Digest] = []
        self.open_now = self.open_most = 0

    def add_image(self, layers: list[bytes]) -> Manifest:
        config = json.dumps({"id": len(self.manifests)}).encode()
        document = {
            "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor(LAYER_TYPE, layer) for layer in layers],
        }
        for content in (config, *layers):
            self.blobs[Digest.of(content)] = content
        return self._add(document, media_types.OCI_MANIFEST)

    def add_index(self, children: list[Manifest]) -> Manifest:
        entries = [descriptor(child.media_type, child.content) for child in children]
        return self._add({"schemaVersion": 2, "manifests": entries}, media_types.OCI_INDEX)

    def _add(self, document: dict[str, Any], media_type: str) -> Manifest:
        manifest = Manifest.parse(json.dumps(document | {"mediaType": media_type}).encode())
        self.manifests[manifest.digest] = manifest
        return manifest

    def _read(self) -> None:
        self.reads += 1
        if self.reads in self.failing:
            raise SourceMissing(f"read {self.reads} fails")

    async def list_repositories(self) -> AsyncIterator[RepositoryName]:
        for name in NAMES:
            yield name

    async def list_tags(self, repository: RepositoryName) -> AsyncIterator[TagEntry]:
        yield TagEntry(Tag("v1"))

    async def get_digest(self, repository: RepositoryName, tag: Tag) -> Digest:
        raise SourceMissing(f"{repository} has no {tag}")

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> Manifest:
        self._read()
        assert isinstance(reference, Digest)
        return self.manifests[reference]

    @asynccontextmanager
    async def open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            self._read()
            self.blob_reads.append(blob.digest)
            content = self.blobs[blob.digest][start:]
            yield content[: len(content) // 2]
            yield content[len(content) // 2 :]

        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        await asyncio.sleep(0.005)
        yield pieces()
        self.open_now -= 1


@st.composite
def graphs(draw: st.DrawFn) -> tuple[MemorySource, list[Manifest]]:
    """Images that share layers, and indexes that share images and indexes; each may be what a tag names."""
    source = MemorySource()
    layers = [bytes([number]) * (number * 7) for number in range(5)]
    nodes = [
        source.add_image(draw(st.lists(st.sampled_from(layers), max_size=4)))
        for _ in range(draw(st.integers(min_value=1, max_value=4)))
    ]
    for _ in range(draw(st.integers(min_value=0, max_value=3))):
        nodes.append(source.add_index(draw(st.lists(st.sampled_from(nodes), max_size=4))))
    return source, draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=4))


def dangling(served: Served) -> list[Any]:
    """What is named by a manifest, or a tag, but not there. The database forbids it; storage cannot."""

    def work(connection: sa.Connection) -> list[Any]:
        held = set(
            connection.execute(sa.select(tables.repository_blobs.c.repository_id, tables.repository_blobs.c.digest))
        )
        named = set(connection.execute(sa.select(tables.manifest_blobs.c.repository_id, tables.manifest_blobs.c.blob)))
        manifests = set(connection.execute(sa.select(tables.manifests.c.repository_id, tables.manifests.c.digest)))
        children = set(
            connection.execute(sa.select(tables.manifest_children.c.repository_id, tables.manifest_children.c.child))
        )
        tags = set(connection.execute(sa.select(tables.tags.c.repository_id, tables.tags.c.digest)))
        keys = {row.digest: row.key for row in connection.execute(sa.select(tables.blobs))}
        lost = [row for row in held if not (served.parts.settings.data / "blobs" / keys[row[1]]).is_file()]
        return [*(named - held), *(children - manifests), *(tags - manifests), *lost]

    return served.parts.database.read_now(work)


def copying(source: MemorySource, served: Served, *, concurrency: int) -> GraphCopy:
    parts = served.parts
    # Parts so small that some blobs come in several.
    transfers = Transfers(parts.database, parts.registry, parts.uploads, part_bytes=10)
    return GraphCopy(source, parts.registry, transfers, concurrency=concurrency, tell=silent)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs(), failing=st.sets(st.integers(min_value=1, max_value=12), max_size=3), data=st.data())
async def test_a_copy_leaves_no_dangling_reference_and_can_be_repeated(
    served: Served, graph: tuple[MemorySource, list[Manifest]], failing: set[int], data: st.DataObject
) -> None:
    source, roots = graph
    source.failing = failing
    copy = copying(source, served, concurrency=3)
    # Other content every time, so that nothing is here yet.
    suffix = os.urandom(6).hex()
    items = [
        Item(NAMES[0], RepositoryName(f"{data.draw(st.sampled_from(NAMES))}-{suffix}"), Tag(f"t{n}"), root.digest, None)
        for n, root in enumerate(roots)
    ]
    for item in items:
        try:
            await copy.copy(item)
        except EntrepotError:
            assert await served.parts.registry.read_tag_digests(item.target, [item.tag]) == {}
    assert dangling(served) == []

    source.failing = set()
    for item in items:
        await copy.copy(item)
        assert await served.parts.registry.read_tag_digests(item.target, [item.tag]) == {item.tag: item.digest}
    assert dangling(served) == []
    for root in roots:
        for item in items:
            if item.digest == root.digest:
                assert await served.parts.registry.find_manifest(item.target, root.digest) == root
    # However many tags and repositories name a blob, it came over once.
    assert len(source.blob_reads) == len(set(source.blob_reads))


async def test_what_is_copied_by_many_at_once_is_read_once(served: Served) -> None:
    source = MemorySource()
    image = source.add_image([os.urandom(100_000)])
    index = source.add_index([image])
    copy = copying(source, served, concurrency=8)
    items = [Item(NAMES[0], NAMES[n % 2], Tag(f"t{n}"), (image, index)[n % 2].digest, None) for n in range(16)]
    await asyncio.gather(*(copy.copy(item) for item in items))
    assert len(source.blob_reads) == len(set(source.blob_reads)) == 2
    # Both repositories need the image's manifest; the index is in one.
    assert source.reads == 2 + 3


async def test_no_more_blobs_are_on_their_way_than_allowed(served: Served) -> None:
    source = MemorySource()
    images = [source.add_image([os.urandom(100) for _ in range(5)]) for _ in range(4)]
    copy = copying(source, served, concurrency=3)
    items = [Item(NAMES[0], NAMES[0], Tag(f"t{n}"), image.digest, None) for n, image in enumerate(images)]
    await asyncio.gather(*(copy.copy(item) for item in items))
    assert source.open_most == 3


async def test_a_foreign_layer_stays_where_it_is(served: Served) -> None:
    source = MemorySource()
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": str(Digest.of(b"elsewhere")),
        "size": 9,
        "urls": ["https://example.com/layer"],
    }
    config = b"{}"
    source.blobs[Digest.of(config)] = config
    document = {"schemaVersion": 2, "config": descriptor("application/json", config), "layers": [foreign]}
    manifest = source._add(document, media_types.DOCKER_MANIFEST)
    copy = copying(source, served, concurrency=2)
    await copy.copy(Item(NAMES[0], NAMES[0], Tag("v1"), manifest.digest, None))
    assert source.blob_reads == [Digest.of(config)]


@pytest.mark.parametrize("media_type", [media_types.DOCKER_LIST, media_types.OCI_INDEX])
async def test_an_index_without_entries_is_copied(served: Served, media_type: str) -> None:
    source = MemorySource()
    manifest = source._add({"schemaVersion": 2, "manifests": []}, media_type)
    copy = copying(source, served, concurrency=2)
    await copy.copy(Item(NAMES[0], NAMES[0], Tag("v1"), manifest.digest, None))
    assert await served.parts.registry.find_manifest(NAMES[0], Tag("v1")) == manifest
