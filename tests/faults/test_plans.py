"""What a plan says of the bytes to move: true, whatever is here already, and found out with few requests."""

import json

import pytest

from entrepot.cli.replicate_plan import print_plan, to_document
from entrepot.oci import media_types
from entrepot.replication import measure as measuring
from entrepot.replication.events import Event, ItemFailed
from tests.faults.conftest import RULE, Replicating
from tests.support.content import CONFIG_TYPE, Image, descriptor, index_of
from tests.support.hostile import HostileRegistry

NAME = "smm/api"


def size_of(*images: Image) -> int:
    """Bytes of images that share nothing."""
    return sum(len(part) for image in images for part in (image.config, image.layer, image.manifest))


async def test_what_is_here_or_can_be_mounted_counts_nothing_and_the_rest_once(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    here = Image()
    publisher = await replicating.served.client("publisher")
    await publisher.push_image("elsewhere/api", "v1", here)
    first, second, child = Image(), Image(), Image()
    hostile.put_image(NAME, "v1", first)
    # The same under another tag, and in another repository; one whose layer is somewhere here.
    hostile.put_image(NAME, "latest", first)
    hostile.put_image("smm/web", "v1", first)
    sharing = Image(layer=here.layer)
    hostile.put_image(NAME, "v2", sharing)
    hostile.put_index(NAME, "v3", second, child)

    plan = await replicating.replications.plan(RULE)

    index = index_of(second, child)
    # A manifest is kept in each of its repositories.
    expected = size_of(first, second, child) + len(first.manifest) + len(index)
    expected += len(sharing.config) + len(sharing.manifest)
    assert (plan.size.bytes, plan.size.is_whole) == (expected, True)
    assert hostile.count("GET", "/manifests/") == 6
    assert hostile.count("/blobs/") == 0
    run = await replicating.run()
    manifests = 2 * len(first.manifest) + sum(len(one.manifest) for one in (second, child, sharing)) + len(index)
    assert run.report["bytes"] == expected - manifests
    hostile.seen.clear()
    plan = await replicating.replications.plan(RULE)
    assert (plan.size.bytes, hostile.count("GET", "/manifests/")) == (0, 0)


async def test_what_a_layer_elsewhere_weighs_is_not_moved(hostile: HostileRegistry, replicating: Replicating) -> None:
    config, foreign = b"{}", descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", b"x" * 5000)
    hostile.blobs[descriptor(CONFIG_TYPE, config)["digest"]] = config
    layers = [foreign | {"urls": ["https://example.com/x"]}]
    manifest = {"schemaVersion": 2, "config": descriptor(CONFIG_TYPE, config), "layers": layers}
    content = json.dumps(manifest).encode()
    hostile.put_manifest(NAME, content, media_types.OCI_MANIFEST, "v1")
    assert (await replicating.replications.plan(RULE)).size.bytes == len(content) + len(config)


async def test_of_very_many_manifests_some_are_read_and_the_rest_is_said_to_be_missing(
    hostile: HostileRegistry,
    replicating: Replicating,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measuring, "MAX_READS", 5)
    for number in range(12):
        hostile.put_index(NAME, f"v{number}", Image())
    plan = await replicating.replications.plan(RULE)
    assert hostile.count("GET", "/manifests/") == 5
    assert not plan.size.is_whole
    assert to_document(plan)["bytes_are_all"] is False
    print_plan(plan)
    assert "12 of them are due; at least 0.0 MB to move" in capsys.readouterr().out


async def test_what_cannot_be_read_is_told_and_the_rest_is_measured(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image = hostile.put_image(NAME, "v1")
    bad = json.dumps({"schemaVersion": 1}).encode()
    hostile.put_manifest(NAME, bad, "application/vnd.docker.distribution.manifest.v1+json", "old")
    index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX}
    missing = descriptor(media_types.OCI_MANIFEST, b"gone")
    content = json.dumps(index | {"manifests": [missing]}).encode()
    hostile.put_manifest(NAME, content, media_types.OCI_INDEX, "gaps")
    events: list[Event] = []
    plan = await replicating.replications.plan(RULE, events.append)
    failed = {event.item.tag.value: str(event.error) for event in events if isinstance(event, ItemFailed)}
    assert set(failed) == {"old", "gaps"}
    assert "404" in failed["gaps"]
    assert plan.size.bytes == size_of(image) + len(content)
    assert to_document(plan)["bytes_are_all"] is False
    # A run says the same of them.
    run = await replicating.run()
    assert {failure["what"] for failure in run.report["failures"]} == {"smm/api:old", "smm/api:gaps"}


async def test_an_index_that_nests_without_end_ends_the_measurement(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    image = hostile.put_image(NAME)
    content, media_type = image.manifest, media_types.OCI_MANIFEST
    for _ in range(40):
        index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [descriptor(media_type, content)]}
        content, media_type = json.dumps(index).encode(), media_types.OCI_INDEX
        hostile.put_manifest(NAME, content, media_type)
    hostile.put_manifest(NAME, content, media_type, "deep")
    plan = await replicating.replications.plan(RULE)
    assert hostile.count("GET", "/manifests/") < 12
    assert not plan.size.is_whole
