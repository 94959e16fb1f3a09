"""Secrets that somebody found in public: revoked at once, and the platform told.

A report comes as often as its sender likes; only the first one about a living secret changes anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from entrepot.access.keys import Keys
from entrepot.access.refresh_tokens import RefreshToken
from entrepot.access.secrets import API_KEY_PREFIX, CREDENTIAL_PREFIX, Secret
from entrepot.accounts import leak_records
from entrepot.accounts.audit import Actor, note
from entrepot.accounts.events import EventType, emit
from entrepot.storage.clock import Clock
from entrepot.storage.signals import Signals, publish

# Of one transaction.
_AT_ONCE = 100
_LONGEST_PLACE = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that looks like a secret of ours, and where it was found."""

    secret: Secret
    url: str
    source: str

    @property
    def place(self) -> dict[str, str]:
        """Where, in words that are safe to keep and to send on."""
        return {"url": _printable(self.url), "source": _printable(self.source)}


class LeakedSecrets:
    """Takes findings. Refresh tokens are those of `service`."""

    def __init__(self, signals: Signals, clock: Clock, keys: Keys, *, service: str) -> None:
        self._signals = signals
        self._clock = clock
        self._keys = keys
        self._service = service

    async def revoke(self, findings: Sequence[Finding], actor: Actor) -> list[bool]:
        """Revoke what is ours and alive; answers for each finding whether it is, or was, a secret of ours."""
        answers: list[bool] = []
        for start in range(0, len(findings), _AT_ONCE):
            answers += await self._revoke_some(findings[start : start + _AT_ONCE], actor)
        return answers

    async def _revoke_some(self, findings: Sequence[Finding], actor: Actor) -> list[bool]:
        def work(connection: sa.Connection) -> tuple[list[bool], list[dict[str, str]]]:
            credentials, keys = self._find_credentials(connection, findings), self._find_api_keys(connection, findings)
            revoked = []
            for finding in findings:
                credential, key = credentials.get(finding.secret.reveal()), keys.get(finding.secret.reveal())
                if credential is not None:
                    revoked.append(self._revoke_credential(connection, credential, finding, actor))
                elif key is not None:
                    revoked.append(self._revoke_api_key(connection, key, finding, actor))
            are_ours = [finding.secret.reveal() in credentials.keys() | keys.keys() for finding in findings]
            return are_ours, [one for one in revoked if one is not None]

        are_ours, revoked = await self._signals.commit(work)
        for detail in revoked:
            log.warning("secret_leaked", **detail)
        return are_ours

    def _find_credentials(self, connection: sa.Connection, findings: Iterable[Finding]) -> dict[str, leak_records.Row]:
        """The credentials that secrets and refresh tokens among the findings are of, by their text."""
        hashed = self._hashes(findings, CREDENTIAL_PREFIX)
        found = {
            hashed[bytes(row["secret_hash"])]: row
            for row in leak_records.find_credentials_by_hash(connection, hashed.keys())
        }
        parsed = {finding.secret.reveal(): RefreshToken.parse(finding.secret) for finding in findings}
        tokens = {text: token for text, token in parsed.items() if token is not None}
        ids = {token.credential_id for token in tokens.values()}
        rows = {row["id"]: row for row in leak_records.find_credentials_by_id(connection, ids)}
        for text, token in tokens.items():
            row = rows.get(token.credential_id)
            if row is not None and self._is_proven(token, row):
                found[text] = row
        return found

    def _find_api_keys(
        self, connection: sa.Connection, findings: Iterable[Finding]
    ) -> dict[str, tuple[leak_records.Row, bool]]:
        """The API keys that secrets among the findings are of, and whether they are their current ones."""
        hashed = self._hashes(findings, API_KEY_PREFIX)
        return {
            hashed[bytes(row[column])]: (row, column == "secret_hash")
            for row in leak_records.find_api_keys_by_hash(connection, hashed.keys())
            for column in ("previous_hash", "secret_hash")
            if row[column] is not None and bytes(row[column]) in hashed
        }

    def _hashes(self, findings: Iterable[Finding], prefix: str) -> dict[bytes, str]:
        """The well-formed secrets among the findings, by what they may be stored as."""
        wellformed = [finding.secret for finding in findings if finding.secret.is_wellformed(prefix)]
        return {secret.hash(key): secret.reveal() for secret in wellformed for key in self._keys.hashing}

    def _is_proven(self, token: RefreshToken, row: leak_records.Row) -> bool:
        return token.account == row["name"] and any(
            token.is_proven(keys.refresh, self._service, bytes(row["secret_hash"])) for keys in self._keys.trusted
        )

    def _revoke_credential(
        self, connection: sa.Connection, row: leak_records.Row, finding: Finding, actor: Actor
    ) -> dict[str, str] | None:
        """What to tell the operator, None when there was nothing to revoke."""
        now = self._clock()
        if not leak_records.revoke_credential(connection, row["id"], now):
            return None
        name, account_id = row["name"], row["account_id"]
        credential, place = row["id"], finding.place
        note(connection, actor, "credential.leaked", name, now, credential=credential, **place)
        for kind, more in (
            (EventType.CREDENTIAL_LEAKED, place),
            (EventType.CREDENTIAL_REVOKED, {"reason": "leaked"}),
        ):
            detail: dict[str, Any] = {"credential": credential, **more, "actor": actor.name}
            emit(connection, kind, now, account_id=account_id, account=name, **detail)
        publish(connection, "account", name, now)
        return {"account": name, "credential": credential, **place}

    def _revoke_api_key(
        self, connection: sa.Connection, found: tuple[leak_records.Row, bool], finding: Finding, actor: Actor
    ) -> dict[str, str] | None:
        """The same for an API key."""
        now = self._clock()
        row, is_current = found
        end = leak_records.revoke_api_key if is_current else leak_records.end_previous_secret
        if not end(connection, row["id"], now):
            return None
        name, detail = row["name"], {"secret": "current" if is_current else "previous", **finding.place}
        note(connection, actor, "api_key.leaked", name, now, **detail)
        event: dict[str, Any] = {"api_key": name, **detail, "actor": actor.name}
        emit(connection, EventType.CREDENTIAL_LEAKED, now, **event)
        publish(connection, "api_key", row["id"], now)
        return {"api_key": name, **detail}


def _printable(text: str) -> str:
    return "".join(character for character in text[:_LONGEST_PLACE] if character.isprintable())
