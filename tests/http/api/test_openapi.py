"""Requests made from the OpenAPI document, thousands of them, right ones and wrong ones (schemathesis)."""

import json
import re
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.programs import Entrepot, run
from tests.support.served import Served

PLAN = {"free": {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}]}}
# It finds names in answers, and would end the only key that it has.
HOOKS = """
import schemathesis

@schemathesis.hook
def filter_case(context, case):
    return (case.path_parameters or {}).get("name") != "root"
"""
# What a schema cannot say, such as that a plan must exist, is refused in requests that fit it.
UNCHECKED = "positive_data_acceptance"
# What is followed to its end may have none for long.
ENDLESS = "/api/v1/replication/runs/{run_id}/events"


@pytest.fixture
def entrepot(tmp_path: Path) -> Entrepot:
    entrepot = Entrepot(tmp_path / "data")
    entrepot.apply_plans(PLAN)
    return entrepot


def test_every_answer_is_as_the_document_says(entrepot: Entrepot, tmp_path: Path) -> None:
    secret = json.loads(entrepot.run("api-key", "create", "root", "--scope", "admin", "--json"))["secret"]
    (tmp_path / "hooks.py").write_text(HOOKS)
    # Without jobs: what is asked for at random is not to be carried out.
    with entrepot.serving("--no-jobs") as process:
        done = run(
            Path(sys.executable).with_name("st"),
            *("run", f"{entrepot.url}/api/openapi.json", "--header", f"Authorization: Bearer {secret}"),
            *("--checks", "all", "--exclude-checks", UNCHECKED, "--generation-deterministic", "--no-shrink"),
            *("--exclude-path", ENDLESS),
            *("--max-examples", "25", "--continue-on-failure", "--request-timeout", "30", "--no-color"),
            environment={"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=280,
            folder=tmp_path,
        )
        # Whatever was sent, a line of the log is one line, and holds no secret.
        forged = "/api/v1/plans/a%0a%7B%22event%22%3A%22forged%22%7D%0d%1b[31m%E2%80%A8b"
        headers = {"Authorization": f"Bearer {secret}", "X-Request-Id": '"}{"event":"forged"'}
        assert httpx.put(entrepot.url + forged, headers=headers, json={"grants": []}).status_code == 422
        log = process.log.read_text()
    assert done.returncode == 0, done.stdout[-20_000:]
    lines = [line for line in log.splitlines() if "logger" in line]
    for line in lines:
        assert json.loads(line)["event"] != "forged", line
        assert "\x1b" not in line
    assert any("forged" in json.loads(line).get("path", "") for line in lines)
    assert "Traceback" not in log
    assert secret not in log
    assert not re.search(r"ent[kp]_[0-9A-Za-z]{36}", log)


async def test_every_route_says_how_it_may_refuse(served: Served) -> None:
    document = (await served.http.get("/api/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert {"400", "401", "403", "422", "429", "503"} <= answers.keys(), (path, method)
            if "{" in path:
                assert "404" in answers
            if method != "get":
                assert {"409", "413"} <= answers.keys()
    assert "HTTPValidationError" not in json.dumps(document)


async def test_what_cannot_be_done_with_a_path_is_told_with_what_can(served: Served) -> None:
    for path, allowed in (
        ("/api/v1/accounts", "GET, POST"),
        ("/api/v1/accounts/x", "DELETE, GET, PATCH"),
        ("/api/v1/audit", "GET"),
        ("/api/docs", "GET, HEAD"),
    ):
        answer = await served.http.request("TRACE", path)
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == set(allowed.split(", "))
