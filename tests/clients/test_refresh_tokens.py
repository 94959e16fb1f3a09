"""A client that can do without the secret stores a refresh token; others that read its file get on with that."""

import base64
import json
import uuid
from pathlib import Path
from typing import Any

from tests.clients.conftest import Layout
from tests.clients.test_images import said
from tests.clients.tools import Docker, Helm, Skopeo
from tests.support.programs import Credential, Entrepot, require, run


def stored(docker: Docker, registry: Entrepot) -> dict[str, Any]:
    """What docker keeps of its login at this registry."""
    document: dict[str, Any] = json.loads(docker.config.read_text())["auths"][registry.host]
    return document


def log_in(docker: Docker, registry: Entrepot) -> Credential:
    credential = registry.issue(str(uuid.uuid4()), "free")
    done = docker.login(registry.host, credential.username, credential.secret)
    assert done.returncode == 0, said(done)
    return credential


def test_docker_stores_no_secret_and_pulls(docker: Docker, registry: Entrepot, busybox: Layout) -> None:
    credential = log_in(docker, registry)
    kept = stored(docker, registry)
    assert kept["identitytoken"].startswith("entr_")
    # The username, and no password behind it.
    assert base64.b64decode(kept["auth"]).decode().rstrip("\0") == f"{credential.username}:"
    assert credential.secret not in docker.config.read_text()
    done = docker.pull(registry.host, "smm/busybox:v1")
    assert done.returncode == 0, said(done)
    assert docker.digest(registry.host, "smm/busybox:v1") == busybox.digest


def test_docker_pulls_through_the_grace_of_a_rotation_and_no_longer(docker: Docker, registry: Entrepot) -> None:
    credential = log_in(docker, registry)
    registry.run("account", "rotate", credential.account, "--grace-seconds", "3600")
    done = docker.pull(registry.host, "smm/busybox:v1")
    assert done.returncode == 0, said(done)
    registry.run("account", "rotate", credential.account, "--grace-seconds", "0")
    done = docker.pull(registry.host, "smm/busybox:v1")
    assert done.returncode != 0
    assert "this credential was revoked" in said(done)


def test_helm_3_stores_no_secret_and_pulls(registry: Entrepot, chart: Path, tmp_path: Path) -> None:
    credential = registry.issue(str(uuid.uuid4()), "free")
    helm = Helm("helm3", tmp_path)
    assert helm.login(registry.host, credential.username, credential.secret).returncode == 0
    kept = (tmp_path / "CONFIG" / "registry" / "config.json").read_text()
    assert json.loads(kept)["auths"][registry.host]["identitytoken"].startswith("entr_")
    assert credential.secret not in kept
    done = helm.pull(registry.host, "charts/hello", "1.0.0")
    assert done.returncode == 0, said(done)
    assert helm.pulled.read_bytes() == chart.read_bytes()
    registry.run("account", "suspend", credential.account)
    assert helm.pull(registry.host, "charts/hello", "1.0.0").returncode != 0


def test_others_read_what_docker_stored(docker: Docker, registry: Entrepot, tmp_path: Path) -> None:
    """podman, skopeo and buildah take docker's file where they have none of their own."""
    log_in(docker, registry)
    skopeo = require("skopeo")
    options = ("--src-tls-verify=false", "--authfile", docker.config)
    name = f"docker://{registry.host}/smm/busybox:v1"
    done = run(skopeo, "copy", *options, name, f"dir:{tmp_path}/pulled")
    assert done.returncode == 0, said(done)
    done = run(skopeo, "inspect", "--tls-verify=false", "--authfile", docker.config, name)
    assert done.returncode == 0, said(done)


def test_skopeo_stores_the_secret(skopeo: Skopeo, registry: Entrepot, customer: Credential) -> None:
    """It asks for no refresh token; should it begin to, the reference needs another line."""
    assert skopeo.login(registry.host, customer.username, customer.secret).returncode == 0
    kept = json.loads(skopeo.authfile.read_text())["auths"][registry.host]
    assert base64.b64decode(kept["auth"]).decode() == f"{customer.username}:{customer.secret}"
    assert "identitytoken" not in kept
