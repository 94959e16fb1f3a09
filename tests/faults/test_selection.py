"""What a rule leaves out of what tags name: platforms, kinds, what is not new enough; and what comes of that here."""

import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot.errors import RuleInvalid
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest, read_annotations
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags
from entrepot.registry.garbage import GarbageCollector
from entrepot.replication import records
from entrepot.replication.differences import Change
from entrepot.replication.export import Export, Wanted
from entrepot.replication.layout_writers import open_writer
from entrepot.replication.listing import Spot
from entrepot.replication.platforms import REBUILT_FROM
from entrepot.replication.report import Report
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Run
from entrepot.replication.source_specs import parse_source
from entrepot.replication.sources import Sources
from entrepot.storage.clock import utc_now
from tests.faults.conftest import RULE, Replicating, eventually, working
from tests.support.content import Image, descriptor, image_for, platform_index
from tests.support.hostile import HostileRegistry
from tests.support.served import TESTER, RegistryClient
from tests.support.signatures import private_pem, public_pem, put_referrer, sign_simply

NAME = "smm/api"
API = RepositoryName(NAME)
AMD64, ARM64, S390X = "linux/amd64", "linux/arm64", "linux/s390x"
KEEP, ALL = [AMD64, ARM64], (AMD64, ARM64, S390X)
KEY = ec.generate_private_key(ec.SECP256R1())


class MultiArch:
    """An index at the source, of images for three platforms, each with an attestation."""

    def __init__(
        self, hostile: HostileRegistry, tag: str = "v1", platforms: Iterable[str] = (AMD64, ARM64, S390X)
    ) -> None:
        self.images = {platform: image_for(platform) for platform in platforms}
        self.attestations = {platform: Image() for platform in platforms}
        for image in (*self.images.values(), *self.attestations.values()):
            hostile.put_image(NAME, image=image)
        self.content = platform_index(self.images, self.attestations)
        self.digest = Digest.parse(hostile.put_manifest(NAME, self.content, media_types.OCI_INDEX, tag))

    def digests(self, *platforms: str) -> set[Digest]:
        """Of the images for these, and of their attestations."""
        return {some[one].digest for one in platforms for some in (self.images, self.attestations)}


def chart(hostile: HostileRegistry, tag: str, config_type: str = media_types.HELM_CONFIG) -> Digest:
    """Something at the source that is no image."""
    image = Image()
    document = json.loads(image.manifest) | {"config": descriptor(config_type, image.config)}
    for content in (image.config, image.layer):
        hostile.blobs[str(Digest.of(content))] = content
    return Digest.parse(hostile.put_manifest(NAME, json.dumps(document).encode(), media_types.OCI_MANIFEST, tag))


async def read_tags(replicating: Replicating) -> dict[str, Digest]:
    registry = replicating.served.parts.registry
    names = [Tag(name) for name in (await registry.list_tags(API, "", 1000)).names]
    return {tag.value: digest for tag, digest in (await registry.read_tag_digests(API, names)).items()}


async def held(replicating: Replicating, digests: set[Digest]) -> set[Digest]:
    return await replicating.served.parts.registry.select_held(API, digests)


async def verify(replicating: Replicating) -> dict[str, Any]:
    return (await replicating.replications.verify(RULE, is_deep=True)).to_document()


async def lag_of(replicating: Replicating) -> dict[str, str] | None:
    """What is known not to be here of the rule."""
    return await replicating.served.parts.database.read(lambda connection: records.lock_unreplicated(connection, RULE))


async def skipped(replicating: Replicating, run: Run) -> dict[str, str]:
    """The reasons that a run's report has for what was left out."""
    rows = await replicating.runs.list_artifacts(run.id, 0, 1000)
    return {row["tag"]: row["problem"] for row in rows if row["outcome"] == "skipped" and row["problem"]}


async def test_an_index_stays_as_it_is_and_lacks_what_is_not_kept(
    hostile: HostileRegistry, replicating: Replicating, customer: RegistryClient
) -> None:
    source = MultiArch(hostile)
    await replicating.apply_rule(platforms=KEEP)
    run = await replicating.run()
    assert run.status == "done", run.report
    assert await read_tags(replicating) == {"v1": source.digest}
    assert await held(replicating, source.digests(AMD64, ARM64, S390X)) == source.digests(AMD64, ARM64)
    other = source.images[S390X]
    assert hostile.count(str(other.digest)) == hostile.count(str(Digest.of(other.layer))) == 0
    found = await verify(replicating)
    assert (found["is_equal"], found["equal"], found["broken"]) == (True, 1, [])

    for digest in source.digests(AMD64, ARM64):
        assert (await customer.call("GET", f"/v2/{NAME}/manifests/{digest}")).status_code == 200
    assert (await customer.call("GET", f"/v2/{NAME}/manifests/v1")).content == source.content
    absent = await customer.call("GET", f"/v2/{NAME}/manifests/{other.digest}")
    assert (absent.status_code, absent.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")

    hostile.seen.clear()
    again = await replicating.run()
    assert again.report["tags"] == {"new": 0, "changed": 0, "same": 1}
    assert hostile.count("GET", "/manifests/") + hostile.count("/blobs/") == 0


async def test_the_collector_leaves_a_sparse_index_alone(hostile: HostileRegistry, replicating: Replicating) -> None:
    source = MultiArch(hostile)
    await replicating.apply_rule(platforms=KEEP)
    await replicating.run()
    parts = replicating.served.parts
    collector = GarbageCollector(
        parts.database,
        parts.blobs,
        parts.signals,
        lambda: utc_now() + timedelta(days=1),
        grace=timedelta(hours=1),
        untagged=True,
    )
    await collector.collect()
    assert await held(replicating, {source.digest, *source.digests(AMD64, ARM64)}) == {
        source.digest,
        *source.digests(AMD64, ARM64),
    }
    assert (await verify(replicating))["is_equal"]


async def test_platforms_that_are_kept_from_now_on_come_with_the_next_run(
    hostile: HostileRegistry, replicating: Replicating, customer: RegistryClient
) -> None:
    source = MultiArch(hostile)
    await replicating.apply_rule(platforms=[AMD64])
    await replicating.run()
    for fields, kept in ({"platforms": KEEP}, (AMD64, ARM64)), ({}, (AMD64, ARM64, S390X)):
        await replicating.apply_rule(**fields)
        plan = await replicating.replications.plan(RULE)
        assert [item.change for item in plan.items] == [Change.CHANGED]
        found = await verify(replicating)
        assert found["broken"] == [f"{NAME}:v1: it is not as the rule's platforms want it"]
        assert (found["is_equal"], found["equal"], found["different"]) == (False, 0, [])
        run = await replicating.run()
        assert (run.status, run.report["tags_copied"]) == ("done", 1)
        assert await held(replicating, source.digests(AMD64, ARM64, S390X)) == source.digests(*kept)
        assert (await verify(replicating))["is_equal"]
    # What has arrived belongs to the index now: it is not deleted under it.
    publisher = await replicating.served.client("publisher")
    answer = await publisher.call("DELETE", f"/v2/{NAME}/manifests/{source.images[S390X].digest}")
    assert answer.status_code in {405, 409}, answer.text
    # Fewer again: what is here stays, and nothing is due.
    await replicating.apply_rule(platforms=[AMD64])
    assert (await replicating.run()).report["tags"]["same"] == 1


@pytest.mark.parametrize("way", ["folder", "tar"])
async def test_a_sparse_index_is_exported_and_read_again(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path, way: str
) -> None:
    source = MultiArch(hostile)
    await replicating.apply_rule(platforms=KEEP)
    await replicating.run()
    path = tmp_path / ("layout.tar" if way == "tar" else "layout")
    with open_writer(path) as writer:
        names = await Export(replicating.served.parts.registry, writer, Report().note).run([Wanted.parse(NAME)])
    assert names == [f"{NAME}:v1"]
    async with Sources().open(parse_source("usb", {"type": "archive", "path": str(path)})) as archive:
        assert (await archive.get_manifest(API, source.digest)).content == source.content
    document = {
        "sources": {"usb": {"type": "archive", "path": str(path)}},
        "rules": {
            "usb": {
                "source": "usb",
                "repositories": [NAME],
                "tags": {"include": ["*"]},
                "target": "usb/{repository}",
                "platforms": KEEP,
            }
        },
    }
    await replicating.rulebook.apply(parse_rule_file(document), TESTER)
    run = await replicating.replications.run("usb", TESTER)
    assert (run.status, run.report["tags_copied"]) == ("done", 1)


async def test_signatures_of_what_is_not_kept_do_not_follow(hostile: HostileRegistry, replicating: Replicating) -> None:
    source = MultiArch(hostile)
    hostile.has_referrers = True
    for subject in (source.digest, source.images[AMD64].digest, source.images[S390X].digest):
        sign_simply(hostile, NAME, subject, KEY)
    late = put_referrer(hostile, NAME, Manifest.parse(source.images[S390X].manifest), b"sbom", "application/spdx+json")
    await replicating.apply_rule(platforms=KEEP)
    for _ in range(2):
        assert (await replicating.run()).status == "done"
        expected = {"v1", *(cosign_tags(one)[0].value for one in (source.digest, source.images[AMD64].digest))}
        assert set(await read_tags(replicating)) == expected
        assert await held(replicating, {Digest.parse(late)}) == set()


async def test_a_rebuilt_index_has_only_what_is_kept(
    hostile: HostileRegistry, replicating: Replicating, customer: RegistryClient
) -> None:
    source = MultiArch(hostile)
    hostile.has_referrers = True
    sign_simply(hostile, NAME, source.digest, KEY)
    sign_simply(hostile, NAME, source.images[AMD64].digest, KEY)
    await replicating.apply_rule(platforms={"keep": KEEP, "rebuild": True})
    run = await replicating.run()
    assert run.status == "done", run.report
    here = await read_tags(replicating)
    # The signature of the source's index could not verify, that of an image can.
    assert set(here) == {"v1", cosign_tags(source.images[AMD64].digest)[0].value}
    rebuilt = Manifest.parse((await customer.call("GET", f"/v2/{NAME}/manifests/v1")).content)
    assert rebuilt.digest == here["v1"] != source.digest
    assert {child.digest for child in rebuilt.children} == source.digests(AMD64, ARM64)
    assert read_annotations(rebuilt.content)[REBUILT_FROM] == str(source.digest)
    assert (await verify(replicating))["is_equal"]

    hostile.seen.clear()
    assert [item.change for item in (await replicating.replications.plan(RULE)).items] == [Change.SAME]
    for one in (replicating, replicating.beside()):  # another process remembers nothing
        again = await one.run()
        assert again.report["tags"] == {"new": 0, "changed": 0, "same": 1}
    assert hostile.count("/blobs/") == hostile.count("GET", "/manifests/v1") == 0


async def test_other_platforms_make_another_index(hostile: HostileRegistry, replicating: Replicating) -> None:
    source = MultiArch(hostile)
    seen = []
    for platforms in (
        {"keep": [AMD64], "rebuild": True},
        {"keep": KEEP, "rebuild": True},
        KEEP,
        {"keep": KEEP, "rebuild": True},
        {"keep": [AMD64, ARM64, S390X], "rebuild": True},
    ):
        await replicating.apply_rule(platforms=platforms)
        run = await replicating.run()
        assert (run.status, run.report["tags"]["same"]) == ("done", 0)
        seen.append((await read_tags(replicating))["v1"])
        assert (await replicating.run()).report["tags"]["same"] == 1
        assert (await verify(replicating))["is_equal"]
    assert seen[1] == seen[3]
    assert seen[2] == seen[4] == source.digest  # when all is kept, nothing is rebuilt
    assert len(set(seen)) == 3


async def test_a_rebuilt_index_is_signed_and_trust_is_in_the_source(
    hostile: HostileRegistry, replicating: Replicating, tmp_path: Path
) -> None:
    source, unsigned = MultiArch(hostile), MultiArch(hostile, "v2")
    sign_simply(hostile, NAME, source.digest, KEY)
    key = tmp_path / "key.pem"
    key.write_bytes(private_pem(KEY))
    public = tmp_path / "key.pub"
    public.write_text(public_pem(KEY))
    await replicating.apply_rule(
        platforms={"keep": KEEP, "rebuild": True},
        trust={"cosign": {"keys": [str(public)]}},
        sign={"key_file": str(key)},
    )
    run = await replicating.run()
    assert (run.status, run.report["refused"], run.report["signed"]) == ("failed", 1, 1)
    here = await read_tags(replicating)
    assert set(here) == {"v1", cosign_tags(here["v1"])[0].value}
    assert unsigned.digest not in here.values()
    assert (await replicating.run()).report["signed"] == 0


async def test_what_is_for_other_platforms_is_left_out_with_the_reason(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    MultiArch(hostile, "other-index", [S390X])
    hostile.put_image(NAME, "other", image_for(S390X))
    single, quiet = hostile.put_image(NAME, "amd64", image_for(AMD64)), hostile.put_image(NAME, "quiet", Image())
    helm = chart(hostile, "chart")
    await replicating.apply_rule(platforms=KEEP)
    reasons = {
        "other": "it is for linux/s390x; the rule keeps linux/amd64,linux/arm64",
        "other-index": "it is for linux/s390x; the rule keeps linux/amd64,linux/arm64",
    }
    plan = await replicating.replications.plan(RULE)
    assert {item.tag.value: reason for item, reason in plan.left_out.items()} == reasons

    run = await replicating.run()
    assert (run.status, run.report["left_out"], run.report["failed"]) == ("done", 2, 0)
    assert await read_tags(replicating) == {"amd64": single.digest, "quiet": quiet.digest, "chart": helm}
    assert await skipped(replicating, run) == reasons
    found = await verify(replicating)
    assert (found["is_equal"], found["equal"], found["missing"], found["kept"]) == (True, 3, [], [])
    assert found["left_out"] == [f"{NAME}:{tag}: {reason}" for tag, reason in sorted(reasons.items())]
    assert await lag_of(replicating) == {}

    hostile.seen.clear()
    again = await replicating.run()
    assert (again.status, again.report["left_out"]) == ("done", 2)
    assert hostile.count("GET", "/manifests/") + hostile.count("/blobs/") == 0
    assert await lag_of(replicating) == {}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["images"], {"image", "index"}),
        (["charts"], {"chart"}),
        (["artifacts"], {"wasm"}),
        (["charts", "application/vnd.wasm.*"], {"chart", "wasm"}),
    ],
)
async def test_only_what_is_of_a_kind_is_copied(
    hostile: HostileRegistry, replicating: Replicating, kinds: list[str], expected: set[str]
) -> None:
    hostile.put_image(NAME, "image")
    hostile.put_index(NAME, "index", Image())
    chart(hostile, "chart")
    chart(hostile, "wasm", "application/vnd.wasm.config.v0+json")
    await replicating.apply_rule(media_types=kinds)
    run = await replicating.run()
    assert (run.status, run.report["left_out"]) == ("done", 4 - len(expected))
    assert set(await read_tags(replicating)) == expected
    assert hostile.count("GET", "/manifests/") <= 4 + 1 + len(expected)  # one look each, and then the copy
    assert (await verify(replicating))["is_equal"]
    assert await lag_of(replicating) == {}
    hostile.seen.clear()
    assert (await replicating.run()).status == "done"
    assert hostile.count("GET", "/manifests/") + hostile.count("/blobs/") == 0


async def test_a_tag_that_moves_to_something_else_meanwhile_is_left_out(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image = hostile.put_image(NAME, "v1")
    moved: list[Digest] = []

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        """Once the copy has begun, the tag names a chart, and the image is gone."""
        if "/blobs/" in request.path and not moved:
            hostile.tags[NAME].remove("v1")
            moved.append(chart(hostile, "v1"))
            del hostile.blobs[str(Digest.of(image.config))], hostile.blobs[str(Digest.of(image.layer))]
        return None

    hostile.misbehave = misbehave
    await replicating.apply_rule(media_types=["images"])
    run = await replicating.run()
    assert (run.status, run.report["left_out"], run.report["failed"]) == ("done", 1, 0), run.report
    assert (await skipped(replicating, run))["v1"].startswith("it is of type application/vnd.cncf.helm")
    assert await lag_of(replicating) == {}


async def test_a_tag_that_became_something_else_stays_here_as_it_was(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image = hostile.put_image(NAME, "v1")
    await replicating.apply_rule(media_types=["images"])
    await replicating.run()
    hostile.tags[NAME].remove("v1")
    chart(hostile, "v1")
    run = await replicating.run()
    assert (run.status, run.report["left_out"]) == ("done", 1)
    assert await read_tags(replicating) == {"v1": image.digest}
    found = await verify(replicating)
    assert (found["is_equal"], found["kept"], len(found["left_out"])) == (True, [], 1)


async def test_what_cannot_be_looked_at_fails_by_itself(hostile: HostileRegistry, replicating: Replicating) -> None:
    good = hostile.put_image(NAME, "good", image_for(AMD64))
    liar = hostile.put_image(NAME, "liar", image_for(AMD64))
    hostile.blobs[str(Digest.of(liar.config))] = liar.config.replace(b"amd64", b"s390x")
    await replicating.apply_rule(platforms=KEEP)
    run = await replicating.run()
    assert (run.status, run.report["failed"], run.report["left_out"]) == ("failed", 1, 0)
    assert run.report["failures"][0]["what"] == f"{NAME}:liar"
    assert run.report["failures"][0]["side"] == "source"
    assert await read_tags(replicating) == {"good": good.digest}


async def test_the_newest_versions_are_copied_and_older_ones_stay(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    for tag in ("v1.9.0", "v1.10.0", "latest", "v1.2.0-dev"):
        hostile.put_image(NAME, tag)
    tags = {"exclude": ["*-dev"], "newest": {"count": 1, "by": "version"}}
    await replicating.apply_rule(tags=tags)
    assert (await replicating.run()).report["tags"] == {"new": 1, "changed": 0, "same": 0}
    assert set(await read_tags(replicating)) == {"v1.10.0"}
    assert hostile.count("HEAD") == 1  # nothing is asked about the others

    hostile.put_image(NAME, "v2.0.0")
    assert (await replicating.run()).status == "done"
    assert set(await read_tags(replicating)) == {"v1.10.0", "v2.0.0"}
    found = await verify(replicating)
    assert (found["is_equal"], found["equal"], found["kept"]) == (True, 1, [])


async def test_what_was_pulled_is_looked_after_though_it_is_not_the_newest(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    for tag in ("v1.0.0", "v2.0.0", "latest"):
        hostile.put_image(NAME, tag)
    tags = {"include": ["*"], "newest": {"count": 1, "by": "version"}}
    await replicating.apply_rule(tags=tags, pull_through=True, deletions="mirror")
    rule = (await replicating.rulebook.get_rule(RULE)).rule
    pull = await replicating.runs.claim_pull(rule, Spot(NAME, "latest"), API, timedelta(seconds=5))
    assert pull is not None
    assert (await replicating.replications.carry_out(pull)).status == "done"
    assert (await replicating.run()).report["tags_deleted"] == 0
    assert set(await read_tags(replicating)) == {"v2.0.0", "latest"}

    hostile.delete_tag(NAME, "latest")
    moved = hostile.put_image(NAME, "latest")
    assert [item["what"] for item in (await verify(replicating))["different"]] == [f"{NAME}:latest"]
    assert (await replicating.run()).report["tags"] == {"new": 0, "changed": 1, "same": 1}
    assert (await read_tags(replicating))["latest"] == moved.digest
    assert (await verify(replicating))["is_equal"]

    hostile.delete_tag(NAME, "latest")
    assert (await replicating.run()).report["tags_deleted"] == 1
    assert set(await read_tags(replicating)) == {"v2.0.0"}


async def test_a_push_is_judged_among_all_tags_of_its_repository(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    for tag in ("v1.0.0", "v3.0.0"):
        hostile.put_image(NAME, tag)
    await replicating.apply_rule(tags={"include": ["*"], "newest": {"count": 1, "by": "version"}})
    await replicating.runs.queue_pushes("hostile", [Spot(NAME, "v1.0.0")])
    async with working(replicating):

        async def is_done() -> bool:
            return await replicating.status() == "done"

        await eventually(is_done)
    assert set(await read_tags(replicating)) == {"v3.0.0"}


async def test_a_rule_asks_only_what_its_source_can_tell(hostile: HostileRegistry, replicating: Replicating) -> None:
    for tags in ({"newest": 3}, {"since": "7d"}):
        with pytest.raises(RuleInvalid, match=f"^rules.{RULE}.tags.{next(iter(tags))}: source 'hostile' does not tell"):
            await replicating.apply_rule(tags=tags)
    # Nor may a source become one that cannot, under a rule that asks it.
    ecr = {"type": "ecr", "account": "123456789012", "region": "eu-west-1"}
    rule = {"source": "hostile", "repositories": ["smm/*"], "tags": {"newest": 3}}
    await replicating.rulebook.apply(parse_rule_file({"sources": {"hostile": ecr}, "rules": {RULE: rule}}), TESTER)
    with pytest.raises(RuleInvalid, match=f"^rules.{RULE}.tags.newest"):
        await replicating.rulebook.apply(
            parse_rule_file({"sources": {"hostile": {"type": "oci", "url": hostile.url}}}), TESTER
        )
