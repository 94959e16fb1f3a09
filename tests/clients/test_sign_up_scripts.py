"""The scripts of the how-to, as somebody would copy them: they let a customer in, and out again."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.clients.test_login_lines import paste
from tests.clients.tools import Docker
from tests.support.programs import Entrepot, require, run, run_well

FOLDER = Path(__file__).parents[2] / "docs" / "how-to" / "sign-up"


@pytest.fixture(scope="module")
def environment(registry: Entrepot) -> dict[str, str]:
    """What the scripts read: where the server is, and the key that the how-to makes."""
    key = json.loads(
        registry.run("api-key", "create", "how-to", "--scope", "accounts:write", "--plan", "free", "--json")
    )
    return {"REGISTRY_URL": registry.url, "REGISTRY_API_KEY": key["secret"]}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((sys.executable, FOLDER / "sign_up.py"), id="python"),
        pytest.param(("sh", FOLDER / "sign-up.sh"), id="shell"),
    ],
)
def test_a_customer_joins_comes_again_and_leaves(
    registry: Entrepot, environment: dict[str, str], docker: Docker, tmp_path: Path, script: tuple[str | Path, ...]
) -> None:
    require("jq")
    user = f'O\'Neil & {Path(script[-1]).suffix} "x" é'

    def call(*words: str) -> str:
        return run_well(*script, *words, environment=environment).strip()

    def status(line: str) -> int:
        secret, name = line.split("'")[1], line.split("--username ")[1].split(maxsplit=1)[0]
        return httpx.get(f"{registry.url}/token", auth=(name, secret)).status_code

    line = call("join", user, "oneil@example.com")
    paste(line, tmp_path, {"docker": docker.program}, {"DOCKER_HOST": docker.address, "DOCKER_CONFIG": str(tmp_path)})
    again = call("join", user, "oneil@example.com")
    assert again != line
    assert (status(line), status(again)) == (200, 200)
    assert call("leave", user).endswith(" left")
    # Other processes hear of it within a second.
    deadline = time.monotonic() + 20
    while (status(line), status(again)) != (401, 401):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert run(*script, "leave", user, environment=environment).returncode != 0


def test_they_are_as_short_as_the_how_to_says() -> None:
    for script in ("sign_up.py", "sign-up.sh"):
        lines = [line for line in (FOLDER / script).read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) <= 20, script


def test_the_key_does_not_show_in_the_list_of_processes(environment: dict[str, str], tmp_path: Path) -> None:
    """curl's arguments, as anybody on the machine sees them."""
    fake = tmp_path / "curl"
    fake.write_text('#!/bin/sh\ncat > /dev/null\necho "$@" >&2\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", FOLDER / "sign-up.sh", "join", "x", "y"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "/api/v1/accounts" in done.stderr
    assert environment["REGISTRY_API_KEY"] not in done.stderr
