"""Which tags that speak of a digest are left over, on each database."""

from itertools import pairwise

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags
from tests.support.content import Image, index_of
from tests.support.served import Served

NAME = "smm/api"
API = RepositoryName(NAME)


def tag_of(digest: Digest) -> Tag:
    return cosign_tags(digest)[0]


async def test_what_a_tag_leads_to_keeps_what_speaks_of_it(anywhere: Served) -> None:
    publisher = await anywhere.client("publisher")
    child, tagged, loose, signature, of_signature = (Image() for _ in range(5))
    for image in (child, loose):
        await publisher.push_image(NAME, str(image.digest), image)
    await publisher.push_image(NAME, "v1", tagged)
    await publisher.push_manifest(NAME, "multi", index_of(child), media_types.OCI_INDEX)
    # Signed: the child, the signature of the child, what is tagged, and what nothing leads to, with its signature.
    placed: dict[Tag, Digest] = {}
    for subject, speaking in pairwise((child, signature, of_signature)):
        await publisher.push_image(NAME, tag_of(subject.digest).value, speaking)
        placed[tag_of(subject.digest)] = speaking.digest
    last = Image()
    for subject in (tagged, loose):
        await publisher.push_image(NAME, tag_of(subject.digest).value, last)
        placed[tag_of(subject.digest)] = last.digest
    await publisher.push_image(NAME, tag_of(last.digest).value, Image())
    placed[tag_of(last.digest)] = Digest.of(b"something else")

    registry = anywhere.parts.registry
    # What speaks of `last` stays: one of the two tags that name it is needed.
    assert await registry.delete_leftovers(API, placed) == [tag_of(loose.digest)]
    assert await registry.select_reached(API, [child.digest, loose.digest, last.digest]) == {child.digest, last.digest}
    await registry.delete_manifest(API, Tag("multi"))
    deleted = await registry.delete_leftovers(API, placed)
    assert set(deleted) == {tag_of(child.digest), tag_of(signature.digest)}
    await registry.delete_manifest(API, Tag("v1"))
    # The last one names something else than it was put there for.
    assert await registry.delete_leftovers(API, placed) == [tag_of(tagged.digest)]
    assert (await registry.list_tags(API, "", 10)).names == [tag_of(last.digest).value]
    assert await registry.delete_leftovers(RepositoryName("no/such"), placed) == []
