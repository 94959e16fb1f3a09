"""The lines that an answer has to paste, pasted."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.tools import Docker
from tests.support.programs import Entrepot, require


@pytest.fixture(scope="module")
def lines(registry: Entrepot) -> dict[str, str]:
    """The lines of a new account."""
    created = json.loads(registry.run("account", "create", "who-pastes", "--plan", "free", "--json"))
    return dict(created["login"])


def paste(line: str, folder: Path, programs: dict[str, str], environment: dict[str, str]) -> None:
    """Run a line in a shell that finds `programs` by the names that the line uses."""
    places = folder / "bin"
    places.mkdir(exist_ok=True)
    for name, program in programs.items():
        (places / name).unlink(missing_ok=True)
        (places / name).symlink_to(program)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env={**os.environ, **environment, "PATH": f"{places}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_docker(lines: dict[str, str], docker: Docker, tmp_path: Path) -> None:
    environment = {"DOCKER_HOST": docker.address, "DOCKER_CONFIG": str(tmp_path)}
    paste(lines["docker"], tmp_path, {"docker": docker.program}, environment)


def test_podman(lines: dict[str, str], tmp_path: Path) -> None:
    environment = {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
    paste(lines["podman"], tmp_path, {"podman": require("podman")}, environment)


def test_helm(lines: dict[str, str], tmp_path: Path) -> None:
    four, three = lines["helm"].removeprefix("# Helm 4\n").split("\n# Helm 3\n")
    for line, program in ((four, "helm4"), (three, "helm3")):
        homes = {f"HELM_{kind}_HOME": str(tmp_path / program / kind) for kind in ("CONFIG", "CACHE", "DATA")}
        paste(line, tmp_path, {"helm": require(program)}, homes)
