"""The commands, as somebody at a shell meets them."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrepot.storage.database import SCHEMA
from tests.support.programs import Entrepot, free_port, run, wait_for

PLANS = "plans:\n  free:\n    grants:\n      - repositories: [smm/**]\n        actions: [pull]\n"
REFUSED_AS_SUSPENDED = "refused: only active accounts may pull"
RULES = """\
sources:
  internal: {type: oci, url: "http://127.0.0.1:1"}
rules:
  smm:
    source: internal
    repositories: [smm/api]
    tags: {include: ["*"]}
"""
TWIN = """\
  twin: {source: internal, repositories: ["smm/*"], tags: {include: ["*"]}}
"""


@pytest.fixture
def entrepot(tmp_path: Path) -> Entrepot:
    return Entrepot(tmp_path / "data")


def fail(entrepot: Entrepot, *arguments: str | Path, code: int = 1) -> str:
    """Run a command that must fail; answers its one line."""
    done = run(*entrepot.command(*arguments))
    assert done.returncode == code, done.stdout + done.stderr
    if code == 1:
        assert done.stderr.startswith("entrepot: "), done.stderr
        assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


class TestPlans:
    def test_apply_list_show(self, entrepot: Entrepot, tmp_path: Path) -> None:
        assert entrepot.run("plan", "apply", write(tmp_path, "plans.yaml", PLANS)) == "in force: free\n"
        assert "free" in entrepot.run("plan", "list")
        shown = {"plans": {"free": {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}]}}}
        assert json.loads(entrepot.run("plan", "list", "--json")) == shown
        assert json.loads(entrepot.run("plan", "show", "free", "--json")) == shown
        again = write(tmp_path, "again.yaml", entrepot.run("plan", "show", "free"))
        assert entrepot.run("plan", "apply", again) == "in force: free\n"

    @pytest.mark.parametrize(
        ("content", "line", "problem"),
        [
            (PLANS.replace("pull", "read"), 5, "plans.free.grants[0].actions[0]: 'read' is not one of"),
            (PLANS.replace("smm/**", "Smm /*"), 4, "plans.free.grants[0].repositories[0]: glob"),
            (PLANS + "    limit: {}\n", 6, "plans.free.limit: not a field here"),
            (PLANS + "    limits: {}\n", 6, "plans.free.limits: must be a mapping"),
            ("plans: [\n", 2, ""),
            ("plans:\n  free: &a {}\n  other: *a\n", 3, "aliases are not read here"),
        ],
    )
    def test_a_malformed_file_is_named_with_its_line_and_changes_nothing(
        self, entrepot: Entrepot, tmp_path: Path, content: str, line: int, problem: str
    ) -> None:
        path = write(tmp_path, "plans.yaml", content)
        message = fail(entrepot, "plan", "apply", path)
        assert message.startswith(f"entrepot: {path}, line {line}: {problem}")
        assert json.loads(entrepot.run("plan", "list", "--json")) == {"plans": {}}

    def test_explain_says_step_by_step_why(self, entrepot: Entrepot, tmp_path: Path) -> None:
        limited = (
            PLANS + "        tags: {semver: '>=1.0 <2.0'}\n    limits: {pulls_per_hour: 200, bytes_per_month: 500GB}\n"
        )
        entrepot.run("plan", "apply", write(tmp_path, "plans.yaml", limited))
        account = entrepot.issue("user-1", "free").account

        def explain(reference: str) -> tuple[bool, list[str]]:
            document = json.loads(entrepot.run("plan", "show", "--explain", account, reference, "--json"))
            return document["allowed"], document["steps"]

        is_allowed, steps = explain("smm/api:1.4.2")
        assert is_allowed
        assert steps == [
            f"account {account} is active, on plan 'free'",
            "1 of its credentials is alive",
            "limit of 200 pulls per hour: 0 used",
            "limit of 500GB per month: 0B used",
            "grants[0]: covers smm/**, tags versions >=1.0 <2.0",
            "allowed: 1.4.2 is among the tags of a grant",
        ]
        assert "200 pulls per hour, 500GB per month" in entrepot.run("plan", "list")
        assert "    limits:\n      pulls_per_hour: 200\n" in entrepot.run("plan", "show", "free")
        for reference, reason in {
            "smm/api:2.0.0": "refused: 2.0.0 is not among versions >=1.0 <2.0",
            "other/api:1.0.0": "refused: no grant covers pull on other/api",
            f"smm/api@sha256:{'0' * 64}": f"refused: none of them leads to sha256:{'0' * 64}",
        }.items():
            is_allowed, steps = explain(reference)
            assert (is_allowed, steps[-1]) == (False, reason)
        entrepot.run("account", "suspend", account)
        assert explain("smm/api:1.4.2") == (False, [steps[0].replace("active", "suspended"), REFUSED_AS_SUSPENDED])
        assert "there is no account 'ft-none'" in fail(entrepot, "plan", "show", "--explain", "ft-none", "smm/api")
        fail(entrepot, "plan", "show", code=2)

    def test_unknown_plan(self, entrepot: Entrepot) -> None:
        assert "there is no plan 'none'" in fail(entrepot, "plan", "show", "none")


class TestAccounts:
    @pytest.fixture(autouse=True)
    def plans(self, entrepot: Entrepot, tmp_path: Path) -> None:
        entrepot.run("plan", "apply", write(tmp_path, "plans.yaml", PLANS))

    def test_create_shows_the_secret_once(self, entrepot: Entrepot) -> None:
        created = json.loads(entrepot.run("account", "create", "user-1", "--plan", "free", "--email", "a@b", "--json"))
        secret = created["credential"]["secret"]
        assert re.fullmatch(r"entp_[0-9A-Za-z]{36}", secret)
        assert {"docker", "helm", "podman", "kubernetes"} < set(created["login"])
        again = json.loads(entrepot.run("account", "create", "user-1", "--plan", "free", "--json"))
        assert again == {"account": created["account"]}
        name = created["account"]["name"]
        assert "exists already" in entrepot.run("account", "create", "user-1", "--plan", "free")
        for shown in (entrepot.run("account", "list"), entrepot.run("account", "show", name, "--json")):
            assert name in shown
            assert secret not in shown
        # Nothing on disk holds it either.
        for path in entrepot.data.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes()

    def test_rotate_suspend_resume_delete(self, entrepot: Entrepot) -> None:
        account = entrepot.issue("user-1", "free").account
        new = json.loads(entrepot.run("account", "rotate", account, "--grace-seconds", "60", "--json"))
        assert new["credential"]["username"] == account
        for command, status in (("suspend", "suspended"), ("resume", "active")):
            entrepot.run("account", command, account)
            shown = json.loads(entrepot.run("account", "show", account, "--json"))
            assert shown["account"]["status"] == status
        entrepot.run("account", "delete", account)
        assert "there is no account" in fail(entrepot, "account", "show", account)

    def test_unknown_plan_and_account(self, entrepot: Entrepot) -> None:
        assert "gold" in fail(entrepot, "account", "create", "user-1", "--plan", "gold")
        assert "ft-none" in fail(entrepot, "account", "show", "ft-none")


class TestApiKeys:
    def test_create_list_revoke(self, entrepot: Entrepot, tmp_path: Path) -> None:
        entrepot.run("plan", "apply", write(tmp_path, "plans.yaml", PLANS))
        arguments = ("create", "platform", "--scope", "accounts:write", "--plan", "free", "--json")
        created = json.loads(entrepot.run("api-key", *arguments))
        assert created["secret"].startswith("entk_")
        listed = entrepot.run("api-key", "list", "--json")
        assert "platform" in listed
        assert created["secret"] not in listed
        rotated = json.loads(entrepot.run("api-key", "rotate", "platform", "--overlap-seconds", "60", "--json"))
        assert rotated["secret"].startswith("entk_")
        assert rotated["secret"] != created["secret"]
        assert rotated["api_key"]["previous_until"] is not None
        assert "earlier secret holds" in fail(entrepot, "api-key", "rotate", "platform")
        entrepot.run("api-key", "revoke", "platform")
        assert "platform" in entrepot.run("api-key", "list")
        assert "revoked" in fail(entrepot, "api-key", "rotate", "platform")
        assert "accounts:write" in fail(entrepot, "api-key", "create", "other", "--scope", "everything")
        assert "gold" in fail(entrepot, "api-key", "create", "other", "--scope", "accounts:write", "--plan", "gold")

    def test_limits(self, entrepot: Entrepot) -> None:
        limits = ("--network", "10.0.0.0/8", "--network", "::1", "--rate", "600", "--own-accounts-only")
        create = ("api-key", "create", "limited", "--scope", "accounts:write", *limits)
        for expires, words in (("soon", "such as 90d"), ("2020-01-01", "past"), ("1000000d", "such as 90d")):
            assert words in fail(entrepot, *create, "--expires", expires)
        key = json.loads(entrepot.run(*create, "--expires", "90d", "--json"))["api_key"]
        assert (key["networks"], key["requests_per_minute"]) == (["10.0.0.0/8", "::1/128"], 600)
        assert key["own_accounts_only"]
        lifetime = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
        assert timedelta(days=89) < lifetime <= timedelta(days=90)
        shown = entrepot.run("api-key", "list")
        for text in ("10.0.0.0/8, ::1/128, 600/min, own accounts", key["expires_at"][:10]):
            assert text in shown
        dated = entrepot.run(
            "api-key", "create", "dated", "--scope", "accounts:read", "--expires", "2099-01-31", "--json"
        )
        assert json.loads(dated)["api_key"]["expires_at"] == "2099-01-31T00:00:00Z"


class TestReplication:
    def test_apply_list_status(self, entrepot: Entrepot, tmp_path: Path) -> None:
        printed = entrepot.run("replicate", "apply", write(tmp_path, "replication.yaml", RULES))
        assert printed.startswith("sources in force: internal\nrules in force: smm\n")
        assert "smm/api" in entrepot.run("replicate", "list")
        listed = json.loads(entrepot.run("replicate", "list", "--json"))["rules"]
        assert listed["smm"]["source"] == "internal"
        assert json.loads(entrepot.run("replicate", "status", "--json")) == {"runs": []}
        queued = json.loads(entrepot.run("replicate", "run", "smm", "--json"))
        assert (queued["rule"], queued["status"]) == ("smm", "queued")
        assert "queued" in entrepot.run("replicate", "status", "smm")
        assert "has a run that is queued" in fail(entrepot, "replicate", "run", "smm")

    @pytest.mark.parametrize(
        ("content", "line", "problem"),
        [
            (RULES.replace("oci", "ecr"), 2, "sources.internal.region: must be an AWS region"),
            (RULES.replace("oci", "ftp"), 2, "sources.internal.type: must be one of"),
            (RULES.replace("source: internal", "source: none"), 5, "rules.smm.source: there is no source 'none'"),
            (RULES.replace("include", "inclde"), 7, "rules.smm.tags.inclde: not a field here"),
            (RULES.replace("[smm/api]", "smm/api"), 6, "rules.smm.repositories: must be a list"),
            (RULES.replace('1"}', '1", password: x}'), 2, "sources.internal.password: a password does not belong"),
            (RULES + '    schedule: "0 0 31 2 *"\n', 8, "rules.smm.schedule: '0 0 31 2 *': bad day-of-month"),
            (RULES + "    deletions: 30\n", 8, "rules.smm.deletions: must be keep, mirror, or for how long"),
            (RULES + TWIN, 4, "rules.smm.target: rule 'twin' would write the same tags to smm/*"),
            ("", None, "the file: must be a mapping"),
        ],
    )
    def test_a_malformed_file_is_named_with_its_line_and_changes_nothing(
        self, entrepot: Entrepot, tmp_path: Path, content: str, line: int | None, problem: str
    ) -> None:
        path = write(tmp_path, "replication.yaml", content)
        message = fail(entrepot, "replicate", "apply", path)
        where = f"{path}, line {line}" if line else str(path)
        assert message.startswith(f"entrepot: {where}: {problem}")
        assert json.loads(entrepot.run("replicate", "list", "--json")) == {"rules": {}}

    def test_an_unreachable_source_fails_with_its_reason(self, entrepot: Entrepot, tmp_path: Path) -> None:
        entrepot.run("replicate", "apply", write(tmp_path, "replication.yaml", RULES))
        for command in (("plan", "smm"), ("run", "smm", "--wait")):
            message = fail(entrepot, "replicate", *command)
            assert "source internal: http://127.0.0.1:1/" in message
            assert "cannot be reached" in message
        assert "FAILED: source internal" in entrepot.run("replicate", "status", "smm")

    def test_an_export_says_what_is_missing(self, entrepot: Entrepot, tmp_path: Path) -> None:
        to = ("--to", tmp_path / "out.tar")
        assert "smm/none" in fail(entrepot, "replicate", "export", "smm/none", *to)
        assert "repository name 'SMM'" in fail(entrepot, "replicate", "export", "SMM:v1", *to)
        assert "--to" in fail(entrepot, "replicate", "export", "smm/none", code=2)
        (tmp_path / "full").mkdir()
        write(tmp_path / "full", "cat.jpg", "cat")
        message = fail(entrepot, "replicate", "export", "smm/none", "--to", tmp_path / "full")
        assert "holds other things than an OCI layout" in message
        assert not (tmp_path / "out.tar").exists()

    def test_cancel_watch_and_delete(self, entrepot: Entrepot, tmp_path: Path) -> None:
        content = RULES + '    schedule: "0 3 * * *"\n    window: "03:00-03:01"\n'
        entrepot.run("replicate", "apply", write(tmp_path, "replication.yaml", content))
        assert "0 3 * * *" in entrepot.run("replicate", "list")
        assert re.search(r"runs it from 20\d\d-.* 03:00:00 UTC on\.", entrepot.run("replicate", "run", "smm"))
        assert re.search(r"smm +queued +request .* begins 20\d\d-.* 03:00:00 UTC", entrepot.run("replicate", "status"))
        assert entrepot.run("replicate", "cancel", "smm") == "1 runs of 'smm' cancelled\n"
        assert json.loads(entrepot.run("replicate", "cancel", "smm", "--json")) == {"cancelled": []}
        # Nothing is unfinished, so there is nothing to wait for.
        assert "cancelled" in entrepot.run("replicate", "status", "smm", "--watch")
        assert "is used by smm" in fail(entrepot, "replicate", "delete", "internal", "--source")
        assert entrepot.run("replicate", "delete", "smm") == "rule 'smm' deleted\n"
        assert entrepot.run("replicate", "delete", "internal", "--source") == "source 'internal' deleted\n"
        assert "there is no source 'internal'" in fail(entrepot, "replicate", "delete", "internal", "--source")

    def test_unknown_rule(self, entrepot: Entrepot) -> None:
        for command in ("plan", "run", "status", "cancel", "delete", "verify"):
            assert "there is no rule 'none'" in fail(entrepot, "replicate", command, "none")


class TestServe:
    def test_it_says_what_to_do_next_and_stops_in_order(self, entrepot: Entrepot) -> None:
        with entrepot.serving() as server:
            greeting = server.log.read_text()
            assert entrepot.url in greeting
            for line in ("plan apply", "replicate apply", "api-key create", "/api/docs", "/metrics"):
                assert line in greeting
            server.popen.send_signal(signal.SIGINT)
            assert server.popen.wait(60) == 0
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", entrepot.port)) != 0

    def test_the_data_folder_is_for_its_owner_alone(self, entrepot: Entrepot) -> None:
        entrepot.run("plan", "list")
        assert stat.S_IMODE(entrepot.data.stat().st_mode) == 0o700
        with entrepot.serving():
            key = entrepot.data / "secret.key"
            assert stat.S_IMODE(key.stat().st_mode) == 0o600

    def test_a_port_that_is_taken_is_named(self, entrepot: Entrepot) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            message = fail(entrepot, "serve", "--port", str(taken.getsockname()[1]))
        assert "cannot listen on 127.0.0.1:" in message
        assert "--port" in message

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, "file", "")
        message = fail(Entrepot(tmp_path / "file" / "data"), "serve", "--port", str(free_port()))
        assert "data folder" in message

    def test_health_and_metrics(self, entrepot: Entrepot) -> None:
        with entrepot.serving("--workers", "2"), httpx.Client(base_url=entrepot.url) as http:
            assert http.get("/livez").status_code == 200
            assert http.get("/readyz").status_code == 200
            for _ in range(20):
                assert http.get("/v2/").status_code == 401
            metrics = http.get("/metrics").text
        match = re.search(r'entrepot_http_requests_total{[^}]*route="ping"[^}]*status="401"[^}]*} (\S+)', metrics)
        assert match is not None, metrics
        assert float(match[1]) == 20
        assert "entrepot_http_request_seconds_bucket" in metrics

    def test_every_process_measures_revocation(self, entrepot: Entrepot, tmp_path: Path) -> None:
        """Whoever revokes: here a command, of which the server's two processes hear by the database."""
        entrepot.run("plan", "apply", write(tmp_path, "plans.yaml", PLANS))
        name = entrepot.issue("user-1", "free").account
        with entrepot.serving("--workers", "2", "--no-jobs"), httpx.Client(base_url=entrepot.url) as http:

            def count() -> float:
                found = re.search(r"entrepot_revocation_lag_seconds_count (\S+)", http.get("/metrics").text)
                return 0 if found is None else float(found[1])

            before = count()
            entrepot.run("account", "suspend", name)
            deadline = time.monotonic() + 20
            while count() < before + 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert count() == before + 2
            late = re.search(r'entrepot_revocation_lag_seconds_bucket{le="60.0"} (\S+)', http.get("/metrics").text)
        assert late is not None
        assert float(late[1]) == before + 2

    def test_logs_are_json_where_there_is_no_terminal_and_hold_no_secret(
        self, entrepot: Entrepot, tmp_path: Path
    ) -> None:
        entrepot.run("plan", "apply", write(tmp_path, "plans.yaml", PLANS))
        credential = entrepot.issue("user-1", "free")
        environment = os.environ | {"ENTREPOT_LOG__LEVEL": "debug"}
        log = tmp_path / "log"
        with log.open("wb") as errors:
            server = subprocess.Popen(
                [str(part) for part in entrepot.command("serve", "--port", str(entrepot.port))],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            wait_for(f"{entrepot.url}/readyz", _Logged(server, log))
            with httpx.Client(base_url=entrepot.url, auth=(credential.username, credential.secret)) as http:
                token = http.get("/token", params={"scope": "repository:smm/api:pull"}).json()["token"]
                assert http.get("/v2/smm/api/manifests/v1").status_code == 404
                http.get("/v2/", headers={"Authorization": f"Bearer {token}x"})
        finally:
            server.terminate()
            server.wait(60)
        text = log.read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert all("event" in line and "level" in line for line in lines)
        for secret in (credential.secret, token, token.split(".")[2], (entrepot.data / "secret.key").read_text()):
            assert secret not in text

    def test_jobs_run_in_a_worker_of_their_own(self, entrepot: Entrepot, tmp_path: Path) -> None:
        entrepot.run("replicate", "apply", write(tmp_path, "replication.yaml", RULES))
        with entrepot.serving("--no-jobs"):
            entrepot.run("replicate", "run", "smm")
            time.sleep(1.5)
            assert status(entrepot)["status"] == "queued"
            worker = subprocess.Popen([str(part) for part in entrepot.command("worker")], stdout=subprocess.DEVNULL)
            try:
                deadline = time.monotonic() + 90
                while status(entrepot)["status"] != "waiting":  # its source cannot be reached
                    assert time.monotonic() < deadline
                    time.sleep(0.3)
            finally:
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(60) == 0


class _Logged:
    """What `wait_for` asks of a process."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.popen = popen
        self.log = log


def status(entrepot: Entrepot) -> dict[str, Any]:
    runs: list[dict[str, Any]] = json.loads(entrepot.run("replicate", "status", "smm", "--json"))["runs"]
    return runs[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("no-such-command",),
        ("plan", "apply"),
        ("account", "create", "x"),
        ("serve", "--port", "http"),
        ("replicate", "run"),
        ("demo", "--source", "http://127.0.0.1:1"),
        ("--no-such-option",),
    ],
)
def test_wrong_usage_is_2(entrepot: Entrepot, arguments: tuple[str, ...]) -> None:
    done = run(*entrepot.command(*arguments))
    assert done.returncode == 2, done.stderr
    assert not entrepot.data.exists()


def test_a_wrong_setting_is_1_with_one_line(entrepot: Entrepot) -> None:
    done = run(*entrepot.command("plan", "list"), environment={"ENTREPOT_PROT": "1"})
    assert (done.returncode, done.stderr) == (
        1,
        "entrepot: ENTREPOT_PROT is not a setting; see docs/reference/settings.md\n",
    )


def test_the_version_is_told(entrepot: Entrepot) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", entrepot.run("--version"))


def test_output_into_a_closed_pipe_is_no_traceback(entrepot: Entrepot) -> None:
    command = " ".join(str(part) for part in entrepot.command("plan", "list", "--json"))
    done = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_migrate_says_what_it_did(entrepot: Entrepot) -> None:
    check = run(*entrepot.command("migrate", "--check"))
    assert (check.returncode, check.stdout) == (1, "")
    assert "run: entrepot migrate" in check.stderr
    assert not (entrepot.data / "entrepot.db").exists()
    assert f"has schema {SCHEMA}" in entrepot.run("migrate")
    assert (entrepot.data / "entrepot.db").exists()
    assert json.loads(entrepot.run("migrate", "--check", "--json"))["schema"] == SCHEMA


def test_gc_removes_what_it_shows_first(entrepot: Entrepot) -> None:
    lost = entrepot.data / "blobs" / "objects" / "ab" / "lost"
    entrepot.run("plan", "list")
    lost.parent.mkdir(parents=True, exist_ok=True)
    lost.write_bytes(b"x" * 2_000_000)
    os.utime(lost, (0, 0))
    shown = entrepot.run("gc", "--dry-run")
    assert "would remove objects objects/ab/lost  2000000 bytes" in shown
    assert "2.0 MB of blob storage would be freed" in shown
    assert lost.exists()
    preview = json.loads(entrepot.run("gc", "--dry-run", "--json"))
    done = json.loads(entrepot.run("gc", "--json"))
    assert done == preview | {"dry_run": False}
    assert (done["removed"]["objects"], done["freed_bytes"]) == (1, 2_000_000)
    assert not lost.exists()
    assert "0.0 MB of blob storage freed" in entrepot.run("gc")


@pytest.mark.parametrize("content", ["", "short", "\n", "\xff" * 40])
def test_a_secret_key_that_protects_nothing_is_refused(entrepot: Entrepot, content: str) -> None:
    entrepot.data.mkdir()
    (entrepot.data / "secret.key").write_text(content, encoding="latin-1")
    done = run(*entrepot.command("plan", "list"))
    assert done.returncode == 1
    assert done.stderr.startswith("entrepot: the secret key ")


def test_another_secret_key_than_the_database_began_with_is_refused(entrepot: Entrepot) -> None:
    entrepot.run("plan", "list")
    (entrepot.data / "secret.key").unlink()
    done = run(*entrepot.command("plan", "list"))
    assert done.returncode == 1
    assert "belongs to another secret key" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: (data / "entrepot.db").write_bytes(b"nonsense " * 1000), "is damaged, or no SQLite database"),
        (lambda data: (data / "entrepot.db").mkdir(), "cannot be opened"),
        (lambda data: (data / "secret.key").mkdir(), "the secret key"),
        (lambda data: (data / "blobs").write_bytes(b""), "the folder for blobs"),
    ],
)
def test_data_that_cannot_be_used_is_told_in_one_line(
    entrepot: Entrepot, spoil: Callable[[Path], object], words: str
) -> None:
    entrepot.data.mkdir()
    spoil(entrepot.data)
    done = run(*entrepot.command("plan", "list"))
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("name", ["d?8", "d%419", "d#1", "d e"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    Entrepot(tmp_path / name).run("plan", "list")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert (tmp_path / name / "entrepot.db").exists()


def test_what_is_written_is_for_its_owner_alone(entrepot: Entrepot) -> None:
    entrepot.data.mkdir(mode=0o755)
    entrepot.run("plan", "list")
    for path in entrepot.data.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_commands_know_the_address_of_the_server(entrepot: Entrepot) -> None:
    entrepot.apply_plans({"free": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}})
    with entrepot.serving():
        pass
    login = json.loads(entrepot.run("account", "create", "ada", "--plan", "free", "--json"))["login"]
    assert f"docker login {entrepot.host} " in login["docker"]
