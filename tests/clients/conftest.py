"""The server that clients talk to, and real content that reached it by replication from another registry."""

import gzip
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.clients.tools import Client, Containerd, Docker, Helm, Podman, Skopeo
from tests.support.content import CONFIG_TYPE, LAYER_TYPE, descriptor
from tests.support.programs import Credential, Entrepot, docker_registry, require, run_well

PLANS = {
    "free": {"grants": [{"repositories": ["smm/**", "charts/hello"], "actions": ["pull"]}]},
    "small": {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}], "limits": {"pulls_per_day": 1}},
    "publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]},
}
CLIENTS = ["docker", "podman", "skopeo", "containerd"]
_LARGE_LAYERS = 3
_LARGE_LAYER_BYTES = 40 * 1024 * 1024
_UNSEEN_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Layout:
    """An image as an OCI layout: every blob and manifest under its digest."""

    path: Path

    @property
    def digest(self) -> str:
        """The digest of the one image in it."""
        index = json.loads((self.path / "index.json").read_text())
        return str(index["manifests"][0]["digest"])

    def read(self, digest: str) -> bytes:
        """The content of a digest."""
        algorithm, _, name = digest.partition(":")
        return (self.path / "blobs" / algorithm / name).read_bytes()

    @property
    def digests(self) -> list[str]:
        """The manifest, the config and the layers."""
        manifest = json.loads(self.read(self.digest))
        return [self.digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]


def _build(folder: Path, containerfile: str, *options: str) -> Layout:
    """Build an image with buildah."""
    (folder / "Containerfile").write_text(containerfile)
    buildah = require("buildah")
    storage = [buildah, "--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs"]
    environment = {"BUILDAH_ISOLATION": "chroot"}
    run_well(*storage, "bud", "--layers", "-q", *options, "-t", "image", folder, environment=environment)
    run_well(*storage, "push", "image", f"oci:{folder}/layout:v1", environment=environment)
    return Layout(folder / "layout")


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("busybox")
    (folder / "busybox").write_bytes(Path(require("busybox")).read_bytes())
    (folder / "busybox").chmod(0o755)
    return _build(folder, 'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "echo", "hello"]\n')


@pytest.fixture(scope="session")
def multi(tmp_path_factory: pytest.TempPathFactory, busybox: Layout) -> Layout:
    """An index: the image for this platform, and one for another."""
    folder = tmp_path_factory.mktemp("multi")
    buildah = require("buildah")
    storage = [buildah, "--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs"]
    run_well(*storage, "manifest", "create", "multi")
    run_well(*storage, "manifest", "add", "multi", f"oci:{busybox.path}:v1")
    other = folder / "other"
    other.mkdir()
    (other / "hello").write_text("hello\n")
    arm = _build(other, "FROM scratch\nCOPY hello /hello\n", "--arch", "arm64")
    run_well(*storage, "manifest", "add", "--arch", "arm64", "multi", f"oci:{arm.path}:v1")
    run_well(*storage, "manifest", "push", "-q", "--all", "multi", f"oci:{folder}/layout:v1")
    return Layout(folder / "layout")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("large")
    lines = ["FROM scratch"]
    for number in range(_LARGE_LAYERS):
        (folder / f"data-{number}").write_bytes(os.urandom(_LARGE_LAYER_BYTES))
        lines.append(f"COPY data-{number} /data-{number}")
    return _build(folder, "\n".join(lines) + '\nCMD ["/none"]\n')


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged Helm chart."""
    folder = tmp_path_factory.mktemp("chart")
    source = folder / "hello"
    source.mkdir()
    (source / "Chart.yaml").write_text("apiVersion: v2\nname: hello\nversion: 1.0.0\ndescription: A test.\n")
    (source / "values.yaml").write_text("greeting: hello\n")
    packaged = folder / "hello-1.0.0.tgz"
    with tarfile.open(packaged, "w:gz") as archive:
        archive.add(source, "hello")
    return packaged


@pytest.fixture(scope="session")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layout]:
    """An image for each client, of two platforms, that nobody pulled before."""
    return {client: _make_platforms(tmp_path_factory.mktemp("unseen")) for client in CLIENTS}


def _make_platforms(folder: Path) -> Layout:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def keep(media_type: str, content: bytes) -> dict[str, Any]:
        (blobs / Digest.of(content).hex).write_bytes(content)
        return descriptor(media_type, content)

    def make(architecture: str) -> dict[str, Any]:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            (folder / "data").write_bytes(os.urandom(_UNSEEN_BYTES))
            archive.add(folder / "data", "data")
        diff = str(Digest.of(layer.getvalue()))
        config = {"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": [diff]}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": keep(CONFIG_TYPE, json.dumps(config).encode()),
            # Compressed, or skopeo would do it on the way.
            "layers": [keep(f"{LAYER_TYPE}+gzip", gzip.compress(layer.getvalue(), 1))],
        }
        platform = {"os": "linux", "architecture": architecture}
        return keep(media_types.OCI_MANIFEST, json.dumps(manifest).encode()) | {"platform": platform}

    index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [make("arm64"), make("amd64")]}
    named = keep(media_types.OCI_INDEX, json.dumps(index).encode())
    named["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return Layout(folder)


@pytest.fixture(scope="session")
def registry(
    tmp_path_factory: pytest.TempPathFactory,
    busybox: Layout,
    large: Layout,
    multi: Layout,
    chart: Path,
    unseen: dict[str, Layout],
) -> Iterator[Entrepot]:
    """A served Entrepot whose content was replicated from Debian's docker-registry."""
    folder = tmp_path_factory.mktemp("registry")
    entrepot = Entrepot(folder / "data")
    entrepot.apply_plans(PLANS)
    with docker_registry(folder / "source", "reader", "secret-of-the-source") as source:
        skopeo, helm = require("skopeo"), require("helm3")
        images = {"smm/busybox": busybox, "smm/large": large, "smm/multi": multi, "internal/busybox": busybox}
        images |= {f"lazy/{client}": layout for client, layout in unseen.items()}
        for name, layout in images.items():
            login = ("--dest-tls-verify=false", "--dest-creds", "reader:secret-of-the-source")
            run_well(skopeo, "copy", "--all", *login, f"oci:{layout.path}:v1", f"docker://{source}/{name}:v1")
        homes = {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CONFIG", "CACHE", "DATA")}
        run_well(
            *(helm, "registry", "login", "--insecure", source, "-u", "reader", "-p", "secret-of-the-source"),
            environment=homes,
        )
        run_well(helm, "push", "--plain-http", chart, f"oci://{source}/charts", environment=homes)
        (folder / "password").write_text("secret-of-the-source\n")
        rules = {
            "sources": {
                "debian": {
                    "type": "oci",
                    "url": f"http://{source}",
                    "username": "reader",
                    "password_file": str(folder / "password"),
                }
            },
            "rules": {
                "all": {
                    "source": "debian",
                    "repositories": ["smm/*", "internal/*", "charts/*"],
                    "tags": {"include": ["*"]},
                },
                "lazy": {
                    "source": "debian",
                    "repositories": ["lazy/*"],
                    "tags": {"include": ["*"]},
                    "target": "smm/{repository}",
                    "pull_through": True,
                },
            },
        }
        (folder / "replication.yaml").write_text(json.dumps(rules))
        entrepot.run("replicate", "apply", folder / "replication.yaml")
        with entrepot.serving("--workers", "2"):
            entrepot.run("replicate", "run", "all", "--wait")
            yield entrepot


@pytest.fixture(scope="session")
def customer(registry: Entrepot) -> Credential:
    return registry.issue("customer", "free")


@pytest.fixture(scope="session")
def publisher(registry: Entrepot) -> Credential:
    return registry.issue("publisher", "publisher")


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with Docker.running(tmp_path_factory.mktemp("docker")) as client:
        yield client


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with Containerd.running(tmp_path_factory.mktemp("containerd")) as client:
        yield client


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    # It refuses a path of more than 50 characters for this one.
    with tempfile.TemporaryDirectory(prefix="podman-", ignore_cleanup_errors=True) as run:
        yield Podman(tmp_path_factory.mktemp("podman"), Path(run))


@pytest.fixture(scope="session")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Skopeo:
    return Skopeo(tmp_path_factory.mktemp("skopeo"))


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Client:
    """Each client of images in turn."""
    found: Client = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, tmp_path: Path) -> Helm:
    """Each Helm in turn, with an empty home."""
    return Helm(request.param, tmp_path)
