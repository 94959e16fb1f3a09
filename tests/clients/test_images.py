"""docker, podman, skopeo and containerd log in, pull and push."""

import json
import time
import uuid
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import Layout
from tests.clients.tools import Client, Containerd
from tests.support.programs import Credential, Entrepot, require, run_well

OTHER_SECRET = "entp_" + "0" * 36


def said(done: object) -> str:
    """All that a client printed."""
    return f"{done.stdout}\n{done.stderr}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("image", ["busybox", "large"])
def test_pulls_what_was_replicated_byte_for_byte(
    client: Client, registry: Entrepot, customer: Credential, image: str, request: pytest.FixtureRequest
) -> None:
    layout: Layout = request.getfixturevalue(image)
    name = f"smm/{image}:v1"
    assert client.login(registry.host, customer.username, customer.secret).returncode == 0
    done = client.pull(registry.host, name, customer)
    assert done.returncode == 0, said(done)
    # Every client checks each blob against the manifest, and the manifest against its digest.
    assert client.digest(registry.host, name) == layout.digest
    for digest in layout.digests:
        content = client.read(digest)
        assert content is None or content == layout.read(digest)


def test_pulls_its_own_platform_out_of_a_replicated_index(
    client: Client, registry: Entrepot, customer: Credential, busybox: Layout, multi: Layout
) -> None:
    name = "smm/multi:v1"
    client.login(registry.host, customer.username, customer.secret)
    done = client.pull(registry.host, name, customer)
    assert done.returncode == 0, said(done)
    # Some clients tell the digest of the index, some that of the image which they chose.
    assert client.digest(registry.host, name) in {multi.digest, busybox.digest}


def test_pulls_what_is_not_here_yet(
    client: Client,
    registry: Entrepot,
    customer: Credential,
    unseen: dict[str, Layout],
    request: pytest.FixtureRequest,
) -> None:
    own = request.node.callspec.params["client"]
    name = f"smm/lazy/{own}:v1"
    client.login(registry.host, customer.username, customer.secret)
    done = client.pull(registry.host, name, customer)
    assert done.returncode == 0, said(done)
    index = json.loads(unseen[own].read(unseen[own].digest))
    digests = {unseen[own].digest, *(entry["digest"] for entry in index["manifests"])}
    assert client.digest(registry.host, name) in digests


def test_a_replicated_index_arrives_whole(
    registry: Entrepot, customer: Credential, multi: Layout, tmp_path: Path
) -> None:
    options = ("--all", "--src-tls-verify=false", "--src-creds", f"{customer.username}:{customer.secret}")
    run_well(require("skopeo"), "copy", *options, f"docker://{registry.host}/smm/multi:v1", f"oci:{tmp_path}/layout:v1")
    arrived = Layout(tmp_path / "layout")
    assert arrived.digest == multi.digest
    blobs = [
        {path.name: path.read_bytes() for path in (one.path / "blobs" / "sha256").iterdir()} for one in (arrived, multi)
    ]
    assert blobs[0] == blobs[1]


def test_wrong_secret_is_refused(client: Client, registry: Entrepot, customer: Credential) -> None:
    wrong = Credential(customer.account, customer.id, customer.username, OTHER_SECRET)
    done = client.login(registry.host, wrong.username, wrong.secret)
    if isinstance(client, Containerd):
        done = client.pull(registry.host, "smm/busybox:v1", wrong)
    assert done.returncode != 0
    assert "unauthorized" in said(done).lower() or "invalid username/password" in said(done)


def test_plan_refuses_with_its_reason(client: Client, registry: Entrepot, customer: Credential) -> None:
    client.login(registry.host, customer.username, customer.secret)
    done = client.pull(registry.host, "internal/busybox:v1", customer)
    assert done.returncode != 0
    # containerd prints the status alone.
    expected = "403" if isinstance(client, Containerd) else "plan 'free' does not allow pull on 'internal/busybox'"
    assert expected in said(done)


def test_revoked_credential_pulls_nothing(client: Client, registry: Entrepot) -> None:
    credential = registry.issue(str(uuid.uuid4()), "free")
    assert client.login(registry.host, credential.username, credential.secret).returncode == 0
    assert client.pull(registry.host, "smm/busybox:v1", credential).returncode == 0
    registry.run(
        "account", "rotate", credential.account, "--grace-seconds", "0"
    )  # without a grace the old secret dies now
    done = client.pull(registry.host, "smm/busybox:v1", credential)
    assert done.returncode != 0
    # containerd prints the status alone.
    assert ("unauthorized" if isinstance(client, Containerd) else "this credential was revoked") in said(done).lower()


# skopeo and podman wait for a minute and try again, four times.
@pytest.mark.parametrize("client", ["docker", "containerd"], indirect=True)
def test_a_used_up_limit_is_told(client: Client, registry: Entrepot) -> None:
    credential = registry.issue(str(uuid.uuid4()), "small")
    assert client.login(registry.host, credential.username, credential.secret).returncode == 0
    # Not by the client: docker asks only for the digest of what it has under another name, which is no pull.
    auth = (credential.username, credential.secret)
    assert httpx.get(f"{registry.url}/v2/smm/busybox/manifests/v1", auth=auth).status_code == 200
    deadline = time.monotonic() + 30
    # Where a busy machine keeps a process from asking the others in time, it lets a pull through.
    while (done := client.pull(registry.host, "smm/multi:v1", credential)).returncode == 0:
        assert time.monotonic() < deadline
    # containerd prints the status alone.
    expected = "429" if isinstance(client, Containerd) else "plan 'small' allows 1 pull per day, and nothing is left"
    assert expected in said(done)


@pytest.mark.parametrize("image", ["busybox", "large"])
def test_pushes_what_others_then_pull(
    client: Client, registry: Entrepot, publisher: Credential, image: str, request: pytest.FixtureRequest
) -> None:
    layout: Layout = request.getfixturevalue(image)
    name = f"pushed/{type(client).__name__.lower()}-{image}:v1"
    assert client.login(registry.host, publisher.username, publisher.secret).returncode == 0
    done = client.push(registry.host, name, layout.path, publisher)
    assert done.returncode == 0, said(done)
    done = client.pull(registry.host, name, publisher)
    assert done.returncode == 0, said(done)


def test_customer_cannot_push(client: Client, registry: Entrepot, customer: Credential, busybox: Layout) -> None:
    client.login(registry.host, customer.username, customer.secret)
    done = client.push(registry.host, "smm/busybox:v2", busybox.path, customer)
    assert done.returncode != 0
