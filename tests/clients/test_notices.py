"""A registry that calls when something is pushed: the CNCF distribution with its notifications."""

import json
import time
from pathlib import Path

import httpx

from tests.clients.conftest import Layout
from tests.support.programs import Entrepot, docker_registry, require, run_well

PATIENCE_SECONDS = 60


def test_what_is_pushed_there_is_here_soon(tmp_path: Path, busybox: Layout, multi: Layout) -> None:
    entrepot = Entrepot(tmp_path / "data")
    entrepot.apply_plans({"all": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}})
    credential = entrepot.issue("customer", "all")
    api_key = json.loads(entrepot.run("api-key", "create", "notices", "--scope", "replication:run", "--json"))["secret"]
    endpoint = {
        "name": "entrepot",
        "url": f"{entrepot.url}/api/v1/replication/sources/there/pushes",
        "headers": {"Authorization": [f"Bearer {api_key}"]},
        "timeout": "10s",
        "threshold": 5,
        "backoff": "1s",
    }
    notifications = {"endpoints": [endpoint]}
    with docker_registry(tmp_path / "there", "reader", "secret", notifications=notifications) as there:
        (tmp_path / "password").write_text("secret")
        source = {"type": "oci", "url": f"http://{there}", "username": "reader"}
        rule = {"source": "there", "repositories": ["smm/*"], "tags": {"include": ["v*"]}}
        document = {
            "sources": {"there": source | {"password_file": str(tmp_path / "password")}},
            "rules": {"smm": rule},
        }
        (tmp_path / "replication.yaml").write_text(json.dumps(document))
        entrepot.run("replicate", "apply", tmp_path / "replication.yaml")
        with entrepot.serving(), httpx.Client(base_url=entrepot.url) as http:
            http.auth = (credential.username, credential.secret)
            for name, layout in (("smm/busybox", busybox), ("smm/multi", multi)):
                login = ("--dest-tls-verify=false", "--dest-creds", "reader:secret")
                copy = (require("skopeo"), "copy", "-q", "--all", *login)
                run_well(*copy, f"oci:{layout.path}:v1", f"docker://{there}/{name}:v1")
                deadline = time.monotonic() + PATIENCE_SECONDS
                while http.get(f"/v2/{name}/manifests/v1").status_code != 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert http.get(f"/v2/{name}/manifests/v1").headers["docker-content-digest"] == layout.digest
            runs = json.loads(entrepot.run("replicate", "status", "smm", "--json"))["runs"]
            assert {run["cause"] for run in runs} == {"push"}
