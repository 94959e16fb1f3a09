"""What only a source that tells more than names lets a rule select: ECR as moto plays it, with a registry behind."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Run
from tests.faults.conftest import Replicating
from tests.support.aws import ACCOUNT, TOKEN_OF, Moto
from tests.support.content import Image, descriptor, index_of
from tests.support.programs import docker_registry
from tests.support.served import TESTER, Served

REGION = "eu-north-1"
NAME = "smm/selected"
KEY_VARIABLE = "SELECTION_KEY"
# moto tells times in whole seconds.
_TICK_SECONDS = 1.1


@dataclass(frozen=True)
class Filled:
    """An ECR with these tags: a chart and an image, and pushed later, an older version and an index."""

    document: dict[str, Any]
    tags: tuple[str, ...] = ("chart-1", "v1.10.0", "v1.9.0", "multi")


@pytest.fixture(scope="module")
def filled(moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    token = TOKEN_OF.format(account=ACCOUNT)
    with docker_registry(tmp_path_factory.mktemp("selection"), "AWS", token) as host:
        images = [Image() for _ in range(3)]
        chart = json.loads(images[0].manifest) | {"config": descriptor(media_types.HELM_CONFIG, images[0].config)}
        contents = [json.dumps(chart).encode(), images[1].manifest, images[2].manifest, index_of(*images[1:])]
        filled = Filled(
            {
                "type": "ecr",
                "account": ACCOUNT,
                "region": REGION,
                "endpoint": moto.url,
                "url": f"http://{host}",
                "access_key_id": "AKIAIOSFODNN7EXAMPLE",
                "secret_access_key_env": KEY_VARIABLE,
            }
        )
        with httpx.Client(base_url=f"http://{host}", auth=("AWS", token), timeout=60) as http:
            for blob in {blob for image in images for blob in (image.config, image.layer)}:
                location = http.post(f"/v2/{NAME}/blobs/uploads/").headers["location"]
                http.put(f"{location}&digest={Digest.of(blob)}", content=blob).raise_for_status()
            for tag, content in zip(filled.tags, contents, strict=True):
                media_type = json.loads(content)["mediaType"]
                headers = {"Content-Type": media_type}
                http.put(f"/v2/{NAME}/manifests/{tag}", content=content, headers=headers).raise_for_status()
                moto.put_manifest(REGION, NAME, tag, content, media_type)
                if tag == "v1.10.0":
                    time.sleep(_TICK_SECONDS)
        yield filled


class Selecting:
    """A rule over it."""

    def __init__(self, served: Served, filled: Filled) -> None:
        self._replicating = Replicating(served)
        self._filled = filled

    async def run(self, **fields: Any) -> tuple[Run, set[str]]:
        """Apply the rule with these fields, and run it; answers the run and the tags that are here then."""
        rule = {"source": "internal", "repositories": ["smm/sel*"], "tags": {"include": ["*"]}} | fields
        document = {"sources": {"internal": self._filled.document}, "rules": {"selected": rule}}
        await self._replicating.rulebook.apply(parse_rule_file(document), TESTER)
        run = await self._replicating.replications.run("selected", TESTER)
        assert run.status == "done", run.report
        comparison = await self._replicating.replications.verify("selected", is_deep=True)
        assert comparison.is_equal
        page = await self._replicating.served.parts.registry.list_tags(RepositoryName(NAME), "", 100)
        return run, set(page.names)


@pytest.fixture
async def selecting(served: Served, filled: Filled, monkeypatch: pytest.MonkeyPatch) -> Selecting:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    return Selecting(served, filled)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"newest": 2}, {"v1.9.0", "multi"}),
        ({"include": ["v*"], "newest": 1}, {"v1.9.0"}),
        ({"regex": "v1[.].*", "since": "1h"}, {"v1.10.0", "v1.9.0"}),
    ],
)
async def test_the_newest_are_copied(selecting: Selecting, tags: dict[str, Any], expected: set[str]) -> None:
    _, here = await selecting.run(tags=tags)
    assert here == expected


async def test_what_was_pushed_since_an_instant_is_copied(selecting: Selecting, moto: Moto) -> None:
    images = moto.client("ecr", REGION).describe_images(repositoryName=NAME)["imageDetails"]
    pushed_at: datetime = next(image["imagePushedAt"] for image in images if "v1.9.0" in image["imageTags"])
    _, here = await selecting.run(tags={"since": pushed_at.astimezone(UTC).isoformat()})
    assert here == {"v1.9.0", "multi"}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["charts"], {"chart-1"}),
        ([media_types.OCI_INDEX], {"multi"}),
    ],
)
async def test_kinds_are_told_apart(selecting: Selecting, kinds: list[str], expected: set[str]) -> None:
    run, here = await selecting.run(media_types=kinds)
    assert here == expected
    assert run.report["left_out"] == 4 - len(expected)
