"""What a token says, once its signature is verified.

Source: docker token spec, "Token Authentication Implementation" (claims `sub`, `exp`, `access`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from entrepot.access.scopes import Scope
from entrepot.errors import TokenInvalid


@dataclass(frozen=True, slots=True)
class Claims:
    """Who may do what with a token; times are unix seconds."""

    account: str
    credential_id: str
    scopes: tuple[Scope, ...]
    expires_at: float
    issued_at: float

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Self:
        """The claims of a payload whose signature, issuer, audience and times were verified. Raises TokenInvalid."""
        try:
            scopes = tuple(
                Scope(str(entry["type"]), str(entry["name"]), frozenset(map(str, entry["actions"])))
                for entry in payload["access"]
            )
            return cls(str(payload["sub"]), str(payload["cid"]), scopes, float(payload["exp"]), float(payload["iat"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TokenInvalid("the token has not the claims of one of ours; get a new one") from error

    @staticmethod
    def access(scopes: tuple[Scope, ...]) -> list[dict[str, Any]]:
        """The `access` claim for these scopes."""
        return [{"type": scope.type, "name": scope.name, "actions": sorted(scope.actions)} for scope in scopes]
