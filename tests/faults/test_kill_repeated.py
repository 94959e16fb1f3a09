"""kill -9 in the middle of requests with an Idempotency-Key: sent again, each was carried out once."""

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.programs import Entrepot

ROUNDS = 2
SENDERS = 4


class Sender:
    """Asks for one credential after the other for an account of its own, until the server is gone."""

    def __init__(self, http: httpx.Client, number: int) -> None:
        self._http = http
        account = self._http.post("/api/v1/accounts", json={"external_id": f"user-{number}", "plan": "free"}).json()
        self.name = account["account"]["name"]
        # The credentials that were answered, by Idempotency-Key; the last key may have none.
        self.answered: dict[str, str] = {}
        self.last_key = ""

    def send(self, key: str) -> httpx.Response:
        """One request."""
        self.last_key = key
        headers = {"Idempotency-Key": key}
        return self._http.post(f"/api/v1/accounts/{self.name}/credentials", headers=headers)

    def has_answers(self, attempt: int) -> bool:
        """Whether a few requests of an attempt were answered."""
        return f"{self.name}-{attempt}-2" in self.answered

    def send_until_gone(self, attempt: int) -> None:
        """Send requests, each once."""
        with contextlib.suppress(httpx.TransportError):
            for number in range(10_000):
                answer = self.send(f"{self.name}-{attempt}-{number}")
                assert answer.status_code == 201
                assert "secret" in answer.json()["credential"]
                self.answered[self.last_key] = answer.json()["credential"]["id"]


@pytest.fixture
def entrepot(tmp_path: Path) -> Entrepot:
    entrepot = Entrepot(tmp_path / "data")
    entrepot.apply_plans({"free": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}})
    return entrepot


def count(entrepot: Entrepot, query: str) -> int:
    with contextlib.closing(sqlite3.connect(entrepot.data / "entrepot.db")) as connection:
        found: int = connection.execute(query).fetchone()[0]
        return found


def test_what_was_sent_again_after_a_kill_happened_once(entrepot: Entrepot) -> None:
    secret = json.loads(entrepot.run("api-key", "create", "platform", "--scope", "accounts:write", "--json"))["secret"]
    http = httpx.Client(base_url=entrepot.url, headers={"Authorization": f"Bearer {secret}"}, timeout=30)
    senders: list[Sender] = []
    with http:
        for attempt in range(ROUNDS):
            with entrepot.serving("--no-jobs") as server:
                senders = senders or [Sender(http, number) for number in range(SENDERS)]
                threads = [threading.Thread(target=one.send_until_gone, args=(attempt,)) for one in senders]
                for thread in threads:
                    thread.start()
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline and not all(one.has_answers(attempt) for one in senders):
                    time.sleep(0.01)
                server.kill()
                for thread in threads:
                    thread.join()
            # Neither is without the other, before anybody asks again.
            kept = count(entrepot, "SELECT count(*) FROM idempotent_answers")
            assert count(entrepot, "SELECT count(*) FROM credentials") == kept + SENDERS
            with entrepot.serving("--no-jobs"):
                for sender in senders:
                    for key in [*list(sender.answered)[-2:], sender.last_key]:
                        again = sender.send(key)
                        assert again.status_code == 201
                        credential = again.json()["credential"]
                        assert sender.answered.setdefault(key, credential["id"]) == credential["id"]
        asked = sum(len(sender.answered) for sender in senders)
        assert count(entrepot, "SELECT count(*) FROM credentials") == asked + SENDERS
