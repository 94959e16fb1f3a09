"""skopeo and crane pull by platform from indexes that lack some, and from indexes that were rebuilt."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image, image_for, platform_index
from tests.support.programs import Credential, Entrepot, docker_registry, require, run

READER = ("reader", "secret-of-the-source")
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/s390x")
KEEP = list(PLATFORMS[:2])


@dataclass
class World:
    """A source with an index of three platforms, and an Entrepot that has two of them, in two ways."""

    folder: Path
    entrepot: Entrepot
    customer: Credential
    images: dict[str, Image]
    index: bytes

    def crane(self, *arguments: str) -> Any:
        config = {"auths": {self.entrepot.host: {"username": self.customer.username, "password": self.customer.secret}}}
        (self.folder / "config.json").write_text(json.dumps(config))
        return run(require("crane"), *arguments, environment={"DOCKER_CONFIG": str(self.folder)})

    def skopeo(self, architecture: str, name: str, *options: str) -> Any:
        """Copy what a name has for an architecture into a layout."""
        login = ["--src-tls-verify=false", "--src-creds", f"{self.customer.username}:{self.customer.secret}"]
        to = f"oci:{self.folder}/{architecture}-{name.replace('/', '-')}:v1"
        overrides = ["--override-os", "linux", "--override-arch", architecture]
        command = [require("skopeo"), *overrides, "copy", "--retry-times", "0", *options, *login]
        return run(*command, f"docker://{self.entrepot.host}/{name}:v1", to)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("platforms")
    images = {platform: image_for(platform) for platform in PLATFORMS}
    index = platform_index(images)
    entrepot = Entrepot(folder / "data")
    entrepot.apply_plans({"reader": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}})
    with docker_registry(folder / "source", *READER) as source:
        with httpx.Client(base_url=f"http://{source}", auth=READER) as http:
            for image in images.values():
                for blob in (image.config, image.layer):
                    location = http.post("/v2/smm/api/blobs/uploads/").headers["location"]
                    http.put(f"{location}&digest={Digest.of(blob)}", content=blob).raise_for_status()
            manifests = [(str(image.digest), image.manifest, media_types.OCI_MANIFEST) for image in images.values()]
            for reference, content, media_type in (*manifests, ("v1", index, media_types.OCI_INDEX)):
                headers = {"Content-Type": media_type}
                path = f"/v2/smm/api/manifests/{reference}"
                http.put(path, content=content, headers=headers).raise_for_status()
        rule = {"source": "internal", "repositories": ["smm/api"], "tags": {"include": ["*"]}}
        password = folder / "password"
        password.write_text(READER[1])
        login = {"username": READER[0], "password_file": str(password)}
        document = {
            "sources": {"internal": {"type": "oci", "url": f"http://{source}", **login}},
            "rules": {
                "sparse": rule | {"target": "sparse/{repository}", "platforms": KEEP},
                "none": rule | {"target": "none/{repository}", "platforms": ["linux/riscv64"]},
                "rebuilt": rule | {"target": "rebuilt/{repository}", "platforms": {"keep": KEEP, "rebuild": True}},
            },
        }
        (folder / "replication.yaml").write_text(json.dumps(document))
        entrepot.run("replicate", "apply", folder / "replication.yaml")
        for name in ("sparse", "rebuilt"):
            assert "1 tags copied" in entrepot.run("replicate", "run", name, "--wait")
            assert "equal, 1 tags" in entrepot.run("replicate", "verify", name, "--deep")
        customer = entrepot.issue("customer", "reader")
        with entrepot.serving("--no-jobs"):
            yield World(folder, entrepot, customer, images, index)


@pytest.mark.parametrize("kind", ["sparse", "rebuilt"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_kept_platforms_are_pulled_and_others_are_refused(world: World, kind: str, platform: str) -> None:
    name = f"{kind}/smm/api"
    crane = world.crane("config", "--insecure", "--platform", platform, f"{world.entrepot.host}/{name}:v1")
    skopeo = world.skopeo(platform.partition("/")[2], name)
    if platform in KEEP:
        assert (crane.returncode, skopeo.returncode) == (0, 0), crane.stderr + skopeo.stderr
        assert json.loads(crane.stdout) == json.loads(world.images[platform].config)
        return
    assert crane.returncode != 0
    assert skopeo.returncode != 0
    expected = "manifest unknown" if kind == "sparse" else "no image found"
    assert expected in skopeo.stderr.lower()


def test_digests_stay_equal_unless_the_rule_says_otherwise(world: World) -> None:
    reference = f"{world.entrepot.host}/{{}}/smm/api:v1"
    sparse, rebuilt = (
        world.crane("digest", "--insecure", reference.format(kind)).stdout.strip() for kind in ("sparse", "rebuilt")
    )
    assert sparse == str(Digest.of(world.index)) != rebuilt


def test_all_of_a_rebuilt_index_is_there_and_not_of_one_that_lacks_some(world: World) -> None:
    done = world.skopeo("all", "rebuilt/smm/api", "--all")
    assert done.returncode == 0, done.stderr
    assert world.skopeo("all", "sparse/smm/api", "--all").returncode != 0


def test_what_is_left_out_is_told_with_the_reason(world: World) -> None:
    program = world.entrepot
    reason = "it is for linux/amd64, linux/arm64, linux/s390x; the rule keeps linux/riscv64"
    assert program.run("replicate", "plan", "none") == (
        f"smm/api:v1 is left out: {reason}\n0 tags at the source match, 0 of them are due; 1 more are left out\n"
    )
    left_out = [{"from": "smm/api:v1", "digest": str(Digest.of(world.index)), "reason": reason}]
    assert json.loads(program.run("replicate", "plan", "none", "--json"))["left_out"] == left_out
    assert "1 left out" in program.run("replicate", "run", "none", "--wait")
    assert "none: equal, 0 tags; 1 more are left out by the rule" in program.run("replicate", "verify", "none")
