"""An index may lack some of its children, if whoever keeps it says so; what arrives later is a child like any other."""

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from entrepot.access.globs import Glob
from entrepot.access.plans import TagLimits
from entrepot.access.tags import TagRules
from entrepot.errors import ManifestBlobUnknown, ManifestReferenced
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.storage import tables
from tests.support.content import Image, index_of
from tests.support.served import Served

NAME = RepositoryName("smm/sparse")


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def put_image(served: Served, image: Image) -> Manifest:
    registry = served.parts.registry
    for blob in (image.config, image.layer):
        await registry.put_blob(NAME, Digest.of(blob), pieces(blob))
    manifest = Manifest.parse(image.manifest)
    await registry.put_manifest(NAME, manifest)
    return manifest


async def test_only_what_may_be_lacking_is(anywhere: Served) -> None:
    registry = anywhere.parts.registry
    here, later, never = Image(), Image(), Image()
    index = Manifest.parse(index_of(here, later, never))
    await put_image(anywhere, here)
    with pytest.raises(ManifestBlobUnknown):
        await registry.put_manifest(NAME, index, may_lack={later.digest})
    await registry.put_manifest(NAME, index, tags=[Tag("v1")], may_lack={later.digest, never.digest})
    assert await registry.list_absences(NAME, {index.digest, here.digest}) == {
        index.digest: {later.digest, never.digest}
    }
    assert await registry.list_absences(RepositoryName("smm/none"), {index.digest}) == {}


async def test_what_arrives_later_belongs_to_the_index(anywhere: Served) -> None:
    registry = anywhere.parts.registry
    image, never = Image(), Image()
    index = Manifest.parse(index_of(image, never))
    other = Manifest.parse(index_of(image))
    limits = TagLimits("limited", (TagRules((Glob.parse("v1"),)),))
    for manifest, tag in ((index, "v1"), (other, "v2")):
        await registry.put_manifest(NAME, manifest, tags=[Tag(tag)], may_lack={image.digest, never.digest})
    await put_image(anywhere, image)

    assert await registry.list_absences(NAME, {index.digest, other.digest}) == {index.digest: {never.digest}}
    with pytest.raises(ManifestReferenced):
        await registry.delete_manifest(NAME, image.digest)
    assert await registry.reach.is_reached(NAME, image.digest, limits)
    assert await registry.reach.is_reached(NAME, Digest.of(image.layer), limits)


async def test_what_is_noted_as_absent_but_is_here_is_not_absent(anywhere: Served) -> None:
    """As it is when a child arrives in the same moment as its index."""
    registry = anywhere.parts.registry
    image = Image()
    index = Manifest.parse(index_of(image))
    await registry.put_manifest(NAME, index, may_lack={image.digest})
    await put_image(anywhere, image)

    def note_absent(connection: sa.Connection) -> None:
        repository_id = connection.scalar(sa.select(tables.repositories.c.id))
        row = {"repository_id": repository_id, "manifest": str(index.digest), "child": str(image.digest)}
        connection.execute(tables.manifest_absences.insert().values(row))

    await anywhere.parts.database.write(note_absent)
    assert await registry.list_absences(NAME, {index.digest}) == {}
