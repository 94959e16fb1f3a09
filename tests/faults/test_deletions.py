"""What is gone at the source goes here where a rule says so, and only what the rule put here; doubt deletes nothing."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot.cli.replicate_plan import print_plan, to_document
from entrepot.errors import RunInterrupted
from entrepot.oci import media_types
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, cosign_tags
from entrepot.replication.listing import Spot
from entrepot.replication.provenance import Provenance
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Run
from entrepot.storage.clock import utc_now
from entrepot.storage.tables import replicated_tags
from tests.conftest import make_variant
from tests.faults.conftest import RULE, FakeClock, Replicating, rule_of
from tests.support.content import Image, descriptor, image_for, index_of, platform_index
from tests.support.hostile import HostileRegistry, serving
from tests.support.served import TESTER, Served, serve
from tests.support.signatures import private_pem, sign_simply

NAME = "smm/api"
API = RepositoryName(NAME)
WEB = "smm/web"
KEY = ec.generate_private_key(ec.SECP256R1())


async def tags_of(replicating: Replicating, name: str = NAME) -> set[str]:
    """The tags that are here."""
    return set((await replicating.served.parts.registry.list_tags(RepositoryName(name), "", 1000)).names)


async def outcomes_of(replicating: Replicating, run: Run) -> dict[str, str]:
    """What became of each tag in a run."""
    return {row["tag"]: row["outcome"] for row in await replicating.runs.list_artifacts(run.id, 0, 100)}


def count_rows(replicating: Replicating) -> int:
    query = sa.select(sa.func.count()).select_from(replicated_tags)
    return replicating.served.parts.database.read_now(lambda connection: connection.scalar(query)) or 0


@pytest.fixture
async def mirroring(hostile: HostileRegistry, replicating: Replicating) -> Replicating:
    """A rule that mirrors, and has brought three tags."""
    for number in (1, 2, 3):
        hostile.put_image(NAME, f"v{number}")
    await replicating.apply_rule(deletions="mirror")
    assert (await replicating.run()).status == "done"
    return replicating


@pytest.fixture(params=["folder-sqlite", "folder-postgresql"])
async def mirroring_anywhere(
    request: pytest.FixtureRequest, hostile: HostileRegistry, tmp_path: Path
) -> AsyncIterator[Replicating]:
    """The same, on each database."""
    for number in (1, 2, 3):
        hostile.put_image(NAME, f"v{number}")
    async with serve(tmp_path / "data", **make_variant(request)) as served:
        replicating = Replicating(served)
        await replicating.apply(hostile.url)
        await replicating.apply_rule(deletions="mirror")
        assert (await replicating.run()).status == "done"
        yield replicating


async def test_a_tag_that_is_gone_goes_at_once_and_everybody_forgets_it(
    hostile: HostileRegistry, mirroring_anywhere: Replicating
) -> None:
    customer = await mirroring_anywhere.served.client("free")
    assert (await customer.call("GET", f"/v2/{NAME}/manifests/v1")).status_code == 200
    hostile.delete_tag(NAME, "v1")
    run = await mirroring_anywhere.run()
    assert run.status == "done", run.report
    assert (run.report["tags_deleted"], run.report["tags_copied"]) == (1, 0)
    assert await outcomes_of(mirroring_anywhere, run) == {"v1": "deleted", "v2": "skipped", "v3": "skipped"}
    assert await tags_of(mirroring_anywhere) == {"v2", "v3"}
    assert (await customer.call("GET", f"/v2/{NAME}/manifests/v1")).status_code == 404
    figures = await mirroring_anywhere.runs.read_figures()
    assert (f"rule:{RULE}", "tags_deleted", 1) in figures.totals
    assert count_rows(mirroring_anywhere) == 2
    # It may come back.
    hostile.put_image(NAME, "v1")
    assert (await mirroring_anywhere.run()).report["tags_copied"] == 1
    assert await tags_of(mirroring_anywhere) == {"v1", "v2", "v3"}


async def test_by_default_everything_stays(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(NAME, "v1")
    hostile.put_image(NAME, "v2")
    await replicating.run()
    hostile.delete_tag(NAME, "v1")
    run = await replicating.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 0)
    assert await tags_of(replicating) == {"v1", "v2"}
    # A rule that mirrors from now on knows what it has brought before.
    await replicating.apply_rule(deletions="mirror")
    assert (await replicating.run()).report["tags_deleted"] == 1
    assert await tags_of(replicating) == {"v2"}


async def test_what_earlier_versions_brought_is_known_once_it_was_seen_to_be_equal(
    hostile: HostileRegistry, mirroring: Replicating
) -> None:
    mirroring.served.parts.database.write_now(lambda connection: connection.execute(replicated_tags.delete()))
    hostile.delete_tag(NAME, "v1")
    assert (await mirroring.run()).report["tags_deleted"] == 0
    hostile.delete_tag(NAME, "v2")
    assert (await mirroring.run()).report["tags_deleted"] == 1
    assert await tags_of(mirroring) == {"v1", "v3"}


async def test_what_others_pushed_stays(hostile: HostileRegistry, mirroring: Replicating) -> None:
    publisher = await mirroring.served.client("publisher")
    hostile.delete_tag(NAME, "v1")
    await publisher.push_image(NAME, "v1")
    await publisher.push_image(NAME, "v9")
    assert (await mirroring.replications.plan(RULE)).absences.vanished == []
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 0)
    assert await tags_of(mirroring) == {"v1", "v2", "v3", "v9"}
    # Also later: what somebody else moved is the rule's no more.
    assert (await mirroring.run()).report["tags_deleted"] == 0
    assert count_rows(mirroring) == 2


async def test_what_is_kept_for_a_while_goes_when_its_time_is_over(hostile: HostileRegistry, served: Served) -> None:
    clock = FakeClock(utc_now())
    replicating = Replicating(served, clock=clock)
    await replicating.apply(hostile.url)
    await replicating.apply_rule(deletions="30d")
    for tag in ("v1", "v2", "v3"):
        hostile.put_image(NAME, tag)
    await replicating.run()
    kept = {name: hostile.manifests[NAME, name] for name in ("v1", "v2")}
    for tag in kept:
        hostile.delete_tag(NAME, tag)
    since = clock.now
    assert (await replicating.run()).report["tags_deleted"] == 0
    verified = await replicating.replications.verify(RULE, is_deep=False)
    assert verified.is_equal
    assert verified.kept == [f"{NAME}:v1", f"{NAME}:v2"]
    assert verified.kept_until == dict.fromkeys(verified.kept, since + timedelta(days=30))
    # What comes back has all its time again.
    clock.now += timedelta(days=29)
    hostile.put_manifest(NAME, kept["v2"][1], kept["v2"][0], "v2")
    await replicating.run()
    hostile.delete_tag(NAME, "v2")
    clock.now += timedelta(days=1)
    assert not (await replicating.replications.verify(RULE, is_deep=False)).is_equal
    run = await replicating.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 1)
    assert await tags_of(replicating) == {"v2", "v3"}
    clock.now += timedelta(days=30)
    assert (await replicating.run()).report["tags_deleted"] == 1


@pytest.mark.parametrize("way", ["tags", "repositories", "nothing-selected"])
async def test_a_source_that_has_nothing_left_empties_nothing(
    hostile: HostileRegistry, mirroring: Replicating, way: str
) -> None:
    if way == "repositories":
        hostile.tags.clear()
        hostile.manifests.clear()
    else:
        for tag in ("v1", "v2", "v3"):
            hostile.delete_tag(NAME, tag)
    if way == "nothing-selected":
        await mirroring.apply_rule(deletions="mirror", tags={"include": ["v*"]})
        hostile.put_image(NAME, "latest")
    plan = await mirroring.replications.plan(RULE)
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("failed", 0)
    problem = run.report["problem"]
    assert (problem["side"], problem["is_temporary"]) == ("source", False)
    assert re.search(r"nothing is there any more .*\(3 tags, smm/api:v1 first\).*deletions: keep", problem["problem"])
    assert str(plan.absences.problem) == problem["problem"]
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}
    # Once there is anything, the others may go.
    hostile.put_image(NAME, "v4")
    assert (await mirroring.run()).report["tags_deleted"] == 3
    assert await tags_of(mirroring) == {"v4"}


async def test_a_repository_that_is_gone_takes_its_tags_along(hostile: HostileRegistry, mirroring: Replicating) -> None:
    hostile.put_image(WEB, "v1")
    await mirroring.run()
    del hostile.tags[WEB]
    hostile.manifests = {place: found for place, found in hostile.manifests.items() if place[0] != WEB}
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 1)
    assert await tags_of(mirroring, WEB) == set()


async def test_a_repository_that_the_rule_names_and_cannot_be_listed_keeps_its_tags(
    hostile: HostileRegistry, mirroring: Replicating
) -> None:
    hostile.put_image(WEB, "v1")
    await mirroring.apply_rule(deletions="mirror", repositories=[NAME, WEB])
    await mirroring.run()
    del hostile.tags[WEB]
    hostile.delete_tag(NAME, "v1")
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("failed", 1)
    assert [failure["what"] for failure in run.report["failures"]] == [WEB]
    assert await tags_of(mirroring, WEB) == {"v1"}


def failing(*words: str) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500) if all(word in str(request.url) for word in words) else None

    return misbehave


@pytest.mark.parametrize(
    "words", [("tags/list", "last="), ("_catalog",), (WEB, "tags/list")], ids=["second-page", "catalog", "other"]
)
async def test_a_list_that_breaks_off_deletes_nothing(
    hostile: HostileRegistry, mirroring: Replicating, words: tuple[str, ...]
) -> None:
    hostile.put_image(WEB, "v1")
    hostile.page = 1
    hostile.delete_tag(NAME, "v1")
    hostile.misbehave = failing(*words)
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("failed", 0)
    assert run.report["problem"]["side"] == "source"
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}


async def test_a_tag_that_a_list_forgets_is_asked_for(hostile: HostileRegistry, mirroring: Replicating) -> None:
    hostile.tags[NAME].remove("v1")
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("failed", 0)
    (failure,) = run.report["failures"]
    assert (failure["what"], failure["kind"], failure["side"]) == (f"{NAME}:v1, deleting", "failed", "source")
    assert "smm/api:v1 is there, but its list of tags does not name it" in failure["problem"]
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}


async def test_a_tag_that_is_listed_but_cannot_be_had_stays(hostile: HostileRegistry, mirroring: Replicating) -> None:
    lost = hostile.manifests.pop((NAME, "v1"))
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 0)
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}
    hostile.manifests[NAME, "v1"] = lost
    assert (await mirroring.run()).report["tags"] == {"new": 0, "changed": 0, "same": 3}


async def test_a_tag_that_is_listed_and_cannot_be_had_for_a_moment_stays(
    hostile: HostileRegistry, mirroring: Replicating
) -> None:
    """As one of a cluster of registries answers that lags behind, or while a tag is replaced by deleting it first."""
    asked: list[str] = []

    async def lag(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith("/manifests/v1"):
            asked.append(request.method)
            if len(asked) == 1:
                return web.Response(status=404)
        return None

    hostile.misbehave = lag
    assert (await mirroring.replications.plan(RULE)).absences.vanished == []
    asked.clear()
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 0)
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}


async def test_a_tag_that_came_back_meanwhile_stays(hostile: HostileRegistry, mirroring: Replicating) -> None:
    hostile.delete_tag(NAME, "v1")

    async def push(request: web.Request) -> web.StreamResponse | None:
        if request.method == "HEAD" and request.path.endswith("/v1") and "v1" not in hostile.tags[NAME]:
            hostile.put_image(NAME, "v1")
        return None

    hostile.misbehave = push
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 0)
    assert (await mirroring.run()).report["tags_copied"] == 1


async def test_where_something_failed_nothing_is_deleted(hostile: HostileRegistry, mirroring: Replicating) -> None:
    """What replaces a tag may be what failed: then the old one is better than none."""
    for tag in ("v1", "v2"):
        hostile.put_image(WEB, tag)
    await mirroring.run()
    hostile.delete_tag(NAME, "v1")
    hostile.delete_tag(WEB, "v1")
    new = hostile.put_image(NAME, "v4")
    hostile.misbehave = failing(str(new.digest))
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"], run.report["failed"]) == ("failed", 1, 1)
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}
    assert await tags_of(mirroring, WEB) == {"v2"}
    hostile.misbehave = None
    assert (await mirroring.run()).report["tags_deleted"] == 1
    assert await tags_of(mirroring) == {"v2", "v3", "v4"}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tags": {"include": ["v3"]}}, id="tags"),
        pytest.param({"repositories": ["smm/web"]}, id="repositories"),
        pytest.param({"target": "public/{repository}"}, id="target"),
    ],
)
async def test_what_the_rule_does_not_mean_any_more_is_not_gone(
    hostile: HostileRegistry, mirroring: Replicating, fields: dict[str, Any]
) -> None:
    hostile.put_image(WEB, "v1")
    await mirroring.apply_rule(deletions="mirror", **fields)
    hostile.delete_tag(NAME, "v1")
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"]) == ("done", 0)
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}


@pytest.mark.parametrize("change", ["rule", "url", "login", "anew"])
async def test_another_source_has_not_deleted_what_it_never_had(
    hostile: HostileRegistry, mirroring: Replicating, change: str
) -> None:
    async with serving() as other:
        other.put_image(NAME, "v7")
        sources: dict[str, Any] = {"hostile": {"type": "oci", "url": hostile.url}}
        rule = rule_of("smm/*", deletions="mirror")
        if change == "rule":
            sources["other"] = {"type": "oci", "url": other.url}
            rule["source"] = "other"
        elif change == "url":
            sources["hostile"]["url"] = other.url
        elif change == "login":
            sources["hostile"]["private_redirects"] = "allow"
        else:
            await mirroring.rulebook.delete_rule(RULE, TESTER)
        await mirroring.rulebook.apply(parse_rule_file({"sources": sources, "rules": {RULE: rule}}), TESTER)
        hostile.delete_tag(NAME, "v1")
        run = await mirroring.run()
        assert run.status == "done", run.report
        assert run.report["tags_deleted"] == (1 if change == "login" else 0)


@pytest.mark.parametrize("change", ["rule", "url", "anew", "gone"])
async def test_what_a_run_brings_from_a_source_that_was_changed_meanwhile_is_not_gone_from_the_next(
    hostile: HostileRegistry, mirroring: Replicating, change: str
) -> None:
    async with serving() as other:
        other.put_image(NAME, "v7")
        image = hostile.put_image(NAME, "v4")
        sources: dict[str, Any] = {"hostile": {"type": "oci", "url": hostile.url}}
        rule = rule_of("smm/*", deletions="mirror")
        if change == "url":
            sources["hostile"]["url"] = other.url
        elif change != "gone":
            sources["other"] = {"type": "oci", "url": other.url}
            rule["source"] = "other"
        document = {"sources": sources, "rules": {RULE: rule}}
        changed = False

        async def change_rule(request: web.Request) -> web.StreamResponse | None:
            nonlocal changed
            if str(image.digest) in request.path and not changed:
                changed = True
                if change in {"anew", "gone"}:
                    await mirroring.rulebook.delete_rule(RULE, TESTER)
                if change != "gone":
                    await mirroring.rulebook.apply(parse_rule_file(document), TESTER)
            return None

        hostile.misbehave = change_rule
        with contextlib.suppress(RunInterrupted):
            await mirroring.run()
        assert changed
        assert count_rows(mirroring) == 0
        if change == "gone":
            return
        before = await tags_of(mirroring)
        run = await mirroring.run()
        assert (run.status, run.report["tags_deleted"]) == ("done", 0), run.report
        assert await tags_of(mirroring) == before | {"v7"}


async def test_a_rule_that_was_changed_while_its_run_went_on_deletes_nothing_by_that_run(
    hostile: HostileRegistry, mirroring: Replicating
) -> None:
    hostile.delete_tag(NAME, "v1")
    image = hostile.put_image(NAME, "v4")

    async def change_rule(request: web.Request) -> web.StreamResponse | None:
        if str(image.digest) in request.path:
            await mirroring.apply_rule(deletions="keep")
        return None

    hostile.misbehave = change_rule
    run = await mirroring.run()
    assert (run.status, run.report["tags_deleted"], run.report["tags_copied"]) == ("done", 0, 1)
    hostile.misbehave = None
    await mirroring.apply_rule(deletions="mirror")
    assert (await mirroring.run()).report["tags_deleted"] == 1


async def test_an_immutable_tag_is_neither_moved_nor_deleted_and_both_are_told(
    hostile: HostileRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tag in ("v1", "v2", "latest"):
        hostile.put_image(NAME, tag)
    async with serve(tmp_path / "data", repositories={"immutable_tags": ["smm/**:v*"]}) as served:
        replicating = Replicating(served)
        await replicating.apply(hostile.url)
        await replicating.apply_rule(deletions="mirror")
        assert (await replicating.run()).status == "done"
        hostile.delete_tag(NAME, "v1")
        moved = hostile.put_image(NAME, "v2")
        plan = await replicating.replications.plan(RULE)
        document = to_document(plan)
        (due,), (gone,) = document["due"], document["gone"]
        assert "tag v2 of smm/api is immutable and names another manifest" in due["refused"]
        assert gone["refused"] == "tag v1 of smm/api is immutable and cannot be deleted"
        assert not gone["deleted"]
        assert document["bytes"] == 0
        print_plan(plan)
        shown = capsys.readouterr().out
        assert len(re.findall(r"^refused ", shown, re.MULTILINE)) == 2
        assert "smm/api:v1: tag v1 of smm/api is immutable and cannot be deleted" in shown

        hostile.seen.clear()
        run = await replicating.run()
        assert (run.status, run.report["refused"], run.report["tags_deleted"]) == ("failed", 2, 0)
        assert [(one["kind"], one["is_temporary"]) for one in run.report["failures"]] == [("refused", False)] * 2
        assert await outcomes_of(replicating, run) == {"latest": "skipped", "v1": "refused", "v2": "refused"}
        # What can never be published is not brought over again and again.
        assert hostile.count(str(moved.digest)) == hostile.count("GET", "/blobs/") == 0
        assert not await served.parts.registry.hold_manifest(API, moved.digest)
        assert await tags_of(replicating) == {"v1", "v2", "latest"}
        verified = await replicating.replications.verify(RULE, is_deep=False)
        assert [str(one.placed) for one in verified.gone] == [f"{NAME}:v1"]
        # A worker does not try it again either.
        await replicating.runs.queue(RULE, TESTER)
        claimed = await replicating.runs.claim()
        assert claimed is not None
        assert (await replicating.replications.carry_out(claimed)).status == "failed"


async def test_signatures_go_with_the_last_tag_that_leads_to_what_they_speak_of(
    hostile: HostileRegistry, mirroring_anywhere: Replicating
) -> None:
    replicating = mirroring_anywhere
    image, child, loose = hostile.put_image(NAME, "v4"), Image(), Image()
    hostile.put_image(NAME, "stable", image)
    index = Manifest.parse(index_of(child))
    hostile.put_index(NAME, "multi", child)
    hostile.put_image(NAME, "child", child)
    for digest in (image.digest, child.digest, index.digest):
        sign_simply(hostile, NAME, digest, KEY)
    assert (await replicating.run()).report["referrers_copied"] == 3
    # One that somebody else pushed is none of the rule's.
    publisher = await replicating.served.client("publisher")
    foreign = cosign_tags(loose.digest)[0].value
    await publisher.push_image(NAME, foreign)

    async def signatures() -> set[str]:
        return {tag for tag in await tags_of(replicating) if tag.startswith("sha256-")} - {foreign}

    of_image, of_child, of_index = (cosign_tags(one)[0].value for one in (image.digest, child.digest, index.digest))
    hostile.delete_tag(NAME, "v4")
    hostile.delete_tag(NAME, "child")
    run = await replicating.run()
    assert (run.report["tags_deleted"], run.report["referrers_deleted"]) == (2, 0)
    assert await signatures() == {of_image, of_child, of_index}
    hostile.delete_tag(NAME, "stable")
    run = await replicating.run()
    assert (run.status, run.report["tags_deleted"], run.report["referrers_deleted"]) == ("done", 1, 1)
    assert await signatures() == {of_child, of_index}
    hostile.delete_tag(NAME, "multi")
    assert (await replicating.run()).report["referrers_deleted"] == 2
    assert await tags_of(replicating) == {"v1", "v2", "v3", foreign}


async def test_signatures_of_our_own_go_too(hostile: HostileRegistry, replicating: Replicating, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(private_pem(KEY))
    await replicating.apply_rule(deletions="mirror", sign={"key_file": str(tmp_path / "key.pem")})
    signed, _ = hostile.put_image(NAME, "v1"), hostile.put_image(NAME, "v2")
    sign_simply(hostile, NAME, signed.digest, ec.generate_private_key(ec.SECP256R1()))
    run = await replicating.run()
    assert (run.status, run.report["signed"]) == ("done", 2), run.report
    assert len(await tags_of(replicating)) == 4
    hostile.delete_tag(NAME, "v1")
    run = await replicating.run()
    assert (run.status, run.report["tags_deleted"], run.report["referrers_deleted"]) == ("done", 1, 1)
    assert len(await tags_of(replicating)) == 2


@pytest.mark.parametrize("step", ["keep", "update", "forget"])
async def test_what_ends_a_process_between_two_steps_does_no_harm(
    hostile: HostileRegistry, mirroring: Replicating, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sign_simply(hostile, NAME, hostile.put_image(NAME, "v0").digest, KEY)
    await mirroring.run()
    hostile.delete_tag(NAME, "v0")
    hostile.delete_tag(NAME, "v1")
    hostile.put_image(NAME, "v5")

    async def die(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as context:
        context.setattr(Provenance, step, die)
        with pytest.raises(asyncio.CancelledError):
            await mirroring.run()
    run = await mirroring.run()
    assert run.status == "done", run.report
    assert await tags_of(mirroring) == {"v2", "v3", "v5"}
    assert count_rows(mirroring) == 3


async def test_a_push_deletes_nothing_and_a_list_of_one_repository_only_there(
    hostile: HostileRegistry, mirroring: Replicating
) -> None:
    hostile.put_image(WEB, "v1")
    hostile.put_image(WEB, "v2")
    await mirroring.run()
    hostile.delete_tag(NAME, "v1")
    hostile.delete_tag(WEB, "v1")
    hostile.put_image(NAME, "v4")

    async def push(*spots: Spot, emptied: tuple[Spot, ...] = ()) -> Run | None:
        assert await mirroring.runs.queue_pushes("hostile", spots, emptied)
        claimed = await mirroring.runs.claim()
        return None if claimed is None else await mirroring.replications.carry_out(claimed)

    run = await push(Spot(NAME, "v4"))
    assert run is not None
    assert (run.report["tags_copied"], run.report["tags_deleted"]) == (1, 0)
    run = await push(emptied=(Spot(NAME), Spot("other/api")))
    assert run is not None
    assert (run.status, run.cause, run.report["tags_deleted"]) == ("done", "push", 1)
    assert run.scope == [{"repository": NAME, "tag": ""}]
    assert await tags_of(mirroring) == {"v2", "v3", "v4"}
    assert await tags_of(mirroring, WEB) == {"v1", "v2"}
    # Who keeps everything does not even look.
    await mirroring.apply_rule()
    assert await push(emptied=(Spot(WEB),)) is None


async def test_a_plan_and_a_comparison_tell_what_is_to_go_and_change_nothing(
    hostile: HostileRegistry, mirroring: Replicating, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.delete_tag(NAME, "v1")
    hostile.put_image(NAME, "v4")
    rows = count_rows(mirroring)
    plan = await mirroring.replications.plan(RULE)
    (gone,) = to_document(plan)["gone"]
    assert (gone["what"], gone["deleted"], gone["refused"]) == (f"{NAME}:v1", True, None)
    print_plan(plan)
    shown = capsys.readouterr().out
    assert re.search(r"^delete +smm/api:v1 ", shown, re.MULTILINE)
    assert re.search(r"^new +smm/api:v4 ", shown, re.MULTILINE)
    assert shown.endswith("3 tags at the source match, 1 of them are due; 0.0 MB to move; 1 to delete\n")
    verified = await mirroring.replications.verify(RULE, is_deep=True)
    assert not verified.is_equal
    assert [one["what"] for one in verified.to_document()["gone"]] == [f"{NAME}:v1"]
    assert verified.kept == []
    assert (await tags_of(mirroring), count_rows(mirroring)) == ({"v1", "v2", "v3"}, rows)
    # For who keeps it, it is no difference.
    await mirroring.run()
    await mirroring.apply_rule()
    hostile.delete_tag(NAME, "v2")
    verified = await mirroring.replications.verify(RULE, is_deep=False)
    assert (verified.is_equal, verified.kept) == (True, [f"{NAME}:v2"])


async def test_a_run_of_nothing_new_writes_no_tag_down_again(
    hostile: HostileRegistry, mirroring: Replicating, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[Any]] = []
    put = Provenance._put

    async def count(self: Provenance, rows: list[Any]) -> None:
        written.append(rows)
        await put(self, rows)

    monkeypatch.setattr(Provenance, "_put", count)
    hostile.seen.clear()
    assert (await mirroring.run()).status == "done"
    assert sum(map(len, written)) == 0
    assert hostile.count("GET", "/manifests/") == hostile.count("/blobs/") == 0


async def test_what_is_not_among_the_newest_any_more_goes(hostile: HostileRegistry, replicating: Replicating) -> None:
    for version in ("1.0", "1.1", "1.2"):
        hostile.put_image(NAME, version)
    newest = {"newest": {"count": 2, "by": "version"}}
    await replicating.apply_rule(tags=newest, deletions="mirror")
    assert (await replicating.run()).report["tags_copied"] == 2
    hostile.put_image(NAME, "1.3")
    verified = await replicating.replications.verify(RULE, is_deep=False)
    assert [str(one.placed) for one in verified.gone] == [f"{NAME}:1.1"]
    run = await replicating.run()
    assert (run.status, run.report["tags_copied"], run.report["tags_deleted"]) == ("done", 1, 1)
    assert await tags_of(replicating) == {"1.2", "1.3"}
    # What is gone at the source lets the next one in.
    hostile.delete_tag(NAME, "1.3")
    run = await replicating.run()
    assert (run.report["tags_copied"], run.report["tags_deleted"]) == (1, 1)
    assert await tags_of(replicating) == {"1.1", "1.2"}


async def test_an_index_that_was_made_anew_goes_with_its_tag(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    images = {platform: image_for(platform) for platform in ("linux/amd64", "linux/arm64")}
    for image in images.values():
        hostile.put_image(NAME, image=image)
    hostile.put_manifest(NAME, platform_index(images, {}), media_types.OCI_INDEX, "v1")
    hostile.put_image(NAME, "v2", images["linux/amd64"])
    platforms = {"keep": ["linux/amd64"], "rebuild": True}
    await replicating.apply_rule(platforms=platforms, deletions="mirror")
    plan = await replicating.replications.plan(RULE)
    # The other platform is not brought over.
    kept = images["linux/amd64"]
    assert plan.size.bytes == len(platform_index(images, {})) + sum(map(len, (kept.config, kept.layer, kept.manifest)))
    assert (await replicating.run()).status == "done"
    assert (await replicating.run()).report["tags"]["same"] == 2
    hostile.delete_tag(NAME, "v1")
    assert (await replicating.run()).report["tags_deleted"] == 1
    assert await tags_of(replicating) == {"v2"}


async def test_a_tag_that_became_something_that_the_rule_leaves_out_is_not_gone(
    hostile: HostileRegistry, mirroring: Replicating
) -> None:
    await mirroring.apply_rule(deletions="mirror", media_types=["images"])
    hostile.delete_tag(NAME, "v1")
    chart = {"schemaVersion": 2, "config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}"), "layers": []}
    hostile.put_manifest(NAME, json.dumps(chart).encode(), media_types.OCI_MANIFEST, "v1")
    run = await mirroring.run()
    assert (run.status, run.report["left_out"], run.report["tags_deleted"]) == ("done", 1, 0)
    assert await tags_of(mirroring) == {"v1", "v2", "v3"}
