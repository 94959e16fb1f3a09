"""What belongs to a tag comes with it, and comes later, whatever the source says of it."""

import json
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags
from entrepot.replication.companions import Companions
from entrepot.replication.source_specs import parse_source
from entrepot.replication.sources import Sources
from entrepot.replication.trust.cosign import make_payload
from tests.faults.conftest import Replicating
from tests.support.content import Image, index_of
from tests.support.hostile import HostileRegistry
from tests.support.signatures import put_referrer, put_simple_signing, sign_simply

NAME = "smm/api"
API = RepositoryName(NAME)
KEY = ec.generate_private_key(ec.SECP256R1())
SBOM = "application/spdx+json"


async def read_tags(replicating: Replicating) -> set[str]:
    return set((await replicating.served.parts.registry.list_tags(API, "", 1000)).names)


async def list_referrers(replicating: Replicating, subject: Digest) -> set[str]:
    found = await replicating.served.parts.registry.list_referrers(API, subject, None, "")
    return {str(entry.digest) for entry in found.entries}


@pytest.mark.parametrize("way", ["api", "api-in-pages", "fallback"])
async def test_signatures_sboms_and_theirs_follow(hostile: HostileRegistry, replicating: Replicating, way: str) -> None:
    child, other = Image(), Image()
    index = Manifest.parse(index_of(child, other))
    hostile.put_index(NAME, "v1", child, other)
    sign_simply(hostile, NAME, index.digest, KEY)
    sign_simply(hostile, NAME, child.digest, KEY)
    subjects = [index, Manifest.parse(child.manifest)]
    sboms = [put_referrer(hostile, NAME, subject, f"sbom {n}".encode(), SBOM) for n, subject in enumerate(subjects)]
    sboms += [put_referrer(hostile, NAME, index, b"another", SBOM)]
    of_sbom = put_referrer(hostile, NAME, Manifest.parse(hostile.manifests[NAME, sboms[0]][1]), b"signed", "a/b")
    hostile.has_referrers = way != "fallback"
    hostile.page = 1 if way == "api-in-pages" else 1000
    if way == "fallback":
        hostile.put_fallback(NAME, str(index.digest), sboms[0], sboms[2])
        hostile.put_fallback(NAME, str(child.digest), sboms[1])
        hostile.put_fallback(NAME, sboms[0], of_sbom)

    run = await replicating.run()

    assert run.status == "done", run.report
    assert run.report["referrers_copied"] == 6
    assert await read_tags(replicating) == {"v1", *(cosign_tags(one)[0].value for one in (index.digest, child.digest))}
    assert await list_referrers(replicating, index.digest) == {sboms[0], sboms[2]}
    assert await list_referrers(replicating, child.digest) == {sboms[1]}
    assert await list_referrers(replicating, Digest.parse(sboms[0])) == {of_sbom}


@pytest.mark.parametrize("way", ["api", "fallback", "tags"])
async def test_what_comes_late_is_found_without_reading_anything_twice(
    hostile: HostileRegistry, replicating: Replicating, way: str
) -> None:
    image = hostile.put_image(NAME, "v1")
    manifest = Manifest.parse(image.manifest)
    hostile.has_referrers = way == "api"
    await replicating.run()
    if way == "tags":
        late = sign_simply(hostile, NAME, image.digest, KEY)
    else:
        late = put_referrer(hostile, NAME, manifest, b"late", SBOM)
        if way == "fallback":
            hostile.put_fallback(NAME, str(image.digest), late)
    plan = await replicating.replications.plan("all")
    assert [str(companion.digest) for _, companion in plan.late] == [late]

    hostile.seen.clear()
    run = await replicating.run()

    assert (run.status, run.report["referrers_copied"], run.report["tags_copied"]) == ("done", 1, 0)
    if way == "tags":
        here = await replicating.served.parts.registry.read_tag_digests(API, cosign_tags(image.digest))
        assert {str(digest) for digest in here.values()} == {late}
    else:
        assert await list_referrers(replicating, image.digest) == {late}
    assert hostile.count("GET", str(Digest.of(image.layer))) == hostile.count("GET", "manifests/v1") == 0

    hostile.seen.clear()
    again = await replicating.run()
    assert (again.report["referrers_copied"], again.report["blobs_copied"]) == (0, 0)
    # A listing, a look at each tag, and a question for each list of referrers.
    expected = {"api": 1, "fallback": 2, "tags": 1}[way]
    assert len(hostile.seen) == 3 + expected + (way == "tags"), hostile.seen
    assert hostile.count("/blobs/") == 0


async def test_the_tag_comes_after_all_that_belongs_to_it(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.has_referrers = True
    image = hostile.put_image(NAME, "v1")
    sign_simply(hostile, NAME, image.digest, KEY)
    put_referrer(hostile, NAME, Manifest.parse(image.manifest), b"sbom", SBOM)
    seen: list[bool] = []

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" in request.path:
            seen.append(Tag("v1") in await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]))
        return None

    hostile.misbehave = misbehave
    assert (await replicating.run()).status == "done"
    assert seen == [False] * 5  # config, layer, payload, SBOM, and the empty object of both signature and SBOM


async def test_another_signature_under_the_same_tag_comes_too(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image = hostile.put_image(NAME, "v1")
    first = sign_simply(hostile, NAME, image.digest, KEY)
    await replicating.run()
    payload = make_payload(image.digest, "second")
    second = put_simple_signing(hostile, NAME, [(payload, "c2ln"), (payload, "c2ln")], image.digest)
    assert second != first
    assert (await replicating.run()).report["referrers_copied"] == 1
    here = await replicating.served.parts.registry.read_tag_digests(API, cosign_tags(image.digest))
    assert [str(digest) for digest in here.values()] == [second]


@pytest.mark.parametrize("has_api", [True, False])
async def test_without_a_listing_what_belongs_to_a_digest_is_asked_for(
    hostile: HostileRegistry, *, has_api: bool
) -> None:
    image = hostile.put_image(NAME)
    signature = sign_simply(hostile, NAME, image.digest, KEY)
    sbom = put_referrer(hostile, NAME, Manifest.parse(image.manifest), b"sbom", SBOM)
    hostile.has_referrers = has_api
    hostile.put_fallback(NAME, str(image.digest), sbom)
    async with Sources().open(parse_source("hostile", {"type": "oci", "url": hostile.url})) as source:
        found = await Companions(source, API, None).find(image.digest)
    assert [str(companion.digest) for companion in found] == [signature, sbom]
    assert hostile.count("HEAD", "manifests/sha256-") == 3  # signatures, attestations, SBOMs


async def test_nothing_follows_where_the_rule_says_so(hostile: HostileRegistry, replicating: Replicating) -> None:
    await replicating.apply_rule(referrers="none")
    image = hostile.put_image(NAME, "v1")
    hostile.has_referrers = True
    sign_simply(hostile, NAME, image.digest, KEY)
    put_referrer(hostile, NAME, Manifest.parse(image.manifest), b"sbom", SBOM)
    for _ in range(2):
        assert (await replicating.run()).status == "done"
    assert await read_tags(replicating) == {"v1"}
    assert await list_referrers(replicating, image.digest) == set()
    assert hostile.count("referrers") == hostile.count(".sig") == 0


async def test_what_belongs_to_a_tag_that_is_not_meant_stays(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    await replicating.apply_rule(tags={"include": ["v*"]})
    hostile.put_image(NAME, "v1")
    other = hostile.put_image(NAME, "dev")
    sign_simply(hostile, NAME, other.digest, KEY)
    for _ in range(2):
        assert (await replicating.run()).status == "done"
    assert await read_tags(replicating) == {"v1"}


async def test_a_list_may_name_what_is_gone_or_speaks_of_something_else(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image, other = hostile.put_image(NAME, "v1"), hostile.put_image(NAME)
    stray = put_referrer(hostile, NAME, Manifest.parse(other.manifest), b"of another", SBOM)
    gone = put_referrer(hostile, NAME, Manifest.parse(image.manifest), b"gone", SBOM)
    good = put_referrer(hostile, NAME, Manifest.parse(image.manifest), b"good", SBOM)
    hostile.put_fallback(NAME, str(image.digest), stray, gone, good, str(other.digest))
    del hostile.manifests[NAME, gone]
    for copied in (1, 0):
        run = await replicating.run()
        assert (run.status, run.report["referrers_copied"]) == ("done", copied)
    assert await list_referrers(replicating, image.digest) == {good}
    assert await replicating.served.parts.registry.find_manifest(API, other.digest) is None
    assert (await replicating.replications.plan("all")).late == []


async def test_a_fallback_tag_that_is_no_index_lists_nothing(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image = hostile.put_image(NAME, "v1")
    hostile.put_image(NAME, str(image.digest).replace(":", "-"))
    assert (await replicating.run()).status == "done"
    assert await read_tags(replicating) == {"v1"}


def answering(status: int, body: str, content_type: str) -> Any:
    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        if "/referrers/" not in request.path:
            return None
        return web.Response(status=status, text=body, content_type=content_type)

    return misbehave


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        pytest.param(404, "404 page not found", "text/plain", id="not-found"),
        pytest.param(405, "", "text/plain", id="method-not-allowed"),
        pytest.param(400, "{}", "application/json", id="bad-request"),
        pytest.param(501, "", "text/plain", id="not-implemented"),
        pytest.param(200, "<html>", "text/html", id="a-page"),
    ],
)
async def test_a_registry_without_the_api_is_asked_once_and_then_by_tag(
    hostile: HostileRegistry, replicating: Replicating, status: int, body: str, content_type: str
) -> None:
    hostile.misbehave = answering(status, body, content_type)
    images = [hostile.put_image(NAME, f"v{number}") for number in range(3)]
    sbom = put_referrer(hostile, NAME, Manifest.parse(images[1].manifest), b"sbom", SBOM)
    hostile.put_fallback(NAME, str(images[1].digest), sbom)
    await replicating.apply_rule(tags={"include": ["v1"]})
    assert (await replicating.run()).status == "done"
    assert await list_referrers(replicating, images[1].digest) == {sbom}
    assert hostile.count("/referrers/") == 1


MANY = {
    "schemaVersion": 2,
    "manifests": [
        {"mediaType": media_types.OCI_MANIFEST, "digest": str(Digest.of(str(n).encode())), "size": 7}
        for n in range(1001)
    ],
}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        pytest.param(json.dumps(MANY), "more than 1000 manifests speak of", id="too-many"),
        pytest.param("nonsense", "sent no index of referrers", id="no-json"),
        pytest.param('{"schemaVersion": 2, "manifests": [{}]}', "sent no index of referrers", id="no-descriptor"),
        pytest.param(" " * 5_000_000, "sent more than the 4194304 bytes", id="huge"),
    ],
)
async def test_a_list_that_is_none_or_too_long_fails_the_tag(
    hostile: HostileRegistry, replicating: Replicating, body: str, problem: str
) -> None:
    hostile.misbehave = answering(200, body, media_types.OCI_INDEX)
    hostile.put_image(NAME, "v1")
    run = await replicating.run()
    assert problem in run.report["failures"][0]["problem"]
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}


async def test_a_list_without_end_is_given_up(hostile: HostileRegistry, replicating: Replicating) -> None:
    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        if "/referrers/" not in request.path:
            return None
        headers = {"Link": f'<{request.path}?last=x>; rel="next"', "Content-Type": media_types.OCI_INDEX}
        return web.Response(body=b'{"schemaVersion": 2, "manifests": []}', headers=headers)

    hostile.misbehave = misbehave
    hostile.put_image(NAME, "v1")
    run = await replicating.run()
    assert "more than 1000 manifests speak of" in run.report["failures"][0]["problem"]


async def test_what_speaks_of_what_speaks_of_what_is_given_up(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.has_referrers = True
    subject = Manifest.parse(hostile.put_image(NAME, "v1").manifest)
    for level in range(6):
        digest = put_referrer(hostile, NAME, subject, f"level {level}".encode(), SBOM)
        subject = Manifest.parse(hostile.manifests[NAME, digest][1])
    run = await replicating.run()
    assert "on more than 4 levels" in run.report["failures"][0]["problem"]
    assert Tag("v1") not in await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")])


async def test_a_failure_to_look_for_what_is_late_is_told_and_spoils_nothing(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(NAME, "v1")
    await replicating.run()
    hostile.put_image("smm/web", "v1")
    hostile.misbehave = answering(200, "nonsense", media_types.OCI_INDEX)
    run = await replicating.run()
    assert run.status == "failed"
    places = {failure["what"] for failure in run.report["failures"]}
    assert places == {"smm/api, referrers", "smm/web:v1"}
