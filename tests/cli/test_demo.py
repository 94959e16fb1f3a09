"""`entrepot demo`, against the vendor's registry that it starts itself, and against a real one."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.programs import docker_registry, run

DEMO = [sys.executable, "-m", "entrepot", "demo"]


def test_it_tells_the_whole_story_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(*DEMO, "--once", environment={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    story = done.stdout
    for words in (
        "pushed demo/hello:v1.0.0, signed",
        "copied demo/hello:v1.0.0",
        "REFUSED demo/hello:v1.1.0",
        "later the customer gets demo/hello:v1.1.0",
        "201  account ft-",
        "403, API key 'platform' lacks the scope audit:read",
        "every digest right",
        "docker login",
        "docker pull 127.0.0.1:",
        "helm pull --plain-http oci://127.0.0.1:",
        "kubectl create secret docker-registry",
        "pulled 3 times",
        "plan 'free' does not allow pull on 'demo/internal'",
    ):
        assert words in story, words
    lag = re.search(r"stopped working after (\d+) ms: 401", story)
    assert lag is not None
    assert int(lag[1]) < 1000
    assert list(tmp_path.iterdir()) == []


def test_it_takes_any_registry_as_the_vendors(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry", "vendor", "its-password") as host:
        arguments = ("--once", "--source", f"http://{host}", "--source-user", "vendor", "--source-password-stdin")
        done = run(*DEMO, *arguments, stdin="its-password\n")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "its-password" not in done.stdout + done.stderr
        catalog = httpx.get(f"http://{host}/v2/_catalog", auth=("vendor", "its-password")).json()
    assert catalog["repositories"] == ["demo/charts/hello", "demo/hello", "demo/internal"]


def test_a_wrong_password_for_the_source_is_said(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry", "vendor", "its-password") as host:
        arguments = ("--once", "--source", f"http://{host}", "--source-user", "vendor", "--source-password-stdin")
        done = run(*DEMO, *arguments, stdin="another\n")
    assert done.returncode == 1
    assert done.stderr.startswith("entrepot: ")
    assert "Traceback" not in done.stderr


def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        demo = subprocess.Popen(DEMO, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "Serving until Ctrl-C" not in log.read_text() or "metrics" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert demo.poll() is None, log.read_text()
            time.sleep(0.1)
        url = re.search(r"API docs +(http://\S+)/api/docs", log.read_text())
        assert url is not None
        assert httpx.get(f"{url[1]}/readyz").status_code == 200
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    finally:
        demo.kill()
        demo.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TimeoutException):
            try:
                httpx.get(f"{url[1]}/livez", timeout=1)
            except httpx.ConnectError:
                return
        time.sleep(0.1)
    raise AssertionError("the demo's server went on")
