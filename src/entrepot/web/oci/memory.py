"""Manifests that were sent before, to whom, and all that the answer was made of.

A cluster asks for the same manifest with the same token over and over. What was parsed, decided and put together for
the first request holds for the next one, as long as nothing that it rests on has changed: only that is looked at anew.
"""

from dataclasses import dataclass

from entrepot.accounts.authentication import Authenticator, Principal
from entrepot.oci.reference import Reference, RepositoryName
from entrepot.registry.service import Registry, StoredManifest
from entrepot.storage.cache import Cache
from entrepot.web.asgi import Headers, Scope

_CAPACITY_BYTES = 16 * 1024 * 1024
# What an entry costs beside its token and path.
_ENTRY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer that was given: to whom, for what, and whether it counts as a pull.

    `generation` is the repository's for which the plan's tags lead to it, None where none need to.
    """

    principal: Principal
    name: RepositoryName
    reference: Reference
    stored: StoredManifest
    headers: Headers
    is_pull: bool
    generation: int | None


class Memory:
    """Answers by path and token."""

    def __init__(self, authenticator: Authenticator, registry: Registry) -> None:
        self._authenticator = authenticator
        self._registry = registry
        # What an entry rests on is looked at when it is found, so this cache needs no signals.
        self._answers: Cache[tuple[bytes, bytes], Remembered] = Cache(_CAPACITY_BYTES, lambda: True)

    def find(self, scope: Scope) -> Remembered | None:
        """The answer to a GET, None when it takes a closer look."""
        authorization = b""
        for key, value in scope["headers"]:
            if key == b"authorization":
                authorization = value
            elif key == b"if-none-match":
                return None
        known = self._answers.find((scope["raw_path"], authorization))
        if (
            known is not None
            and self._authenticator.is_still(known.principal)
            and self._registry.is_still(known.name, known.reference, known.stored)
            and (known.generation is None or known.generation == self._registry.reach.generation(known.name))
        ):
            return known
        return None

    def keep(self, answer: Remembered, scope: Scope) -> None:
        """Remember an answer that was just given, if a token asked for it: a secret is not kept in memory."""
        if answer.principal.scopes is None:
            return
        authorization = next(value for key, value in scope["headers"] if key == b"authorization")
        weight = len(authorization) + len(scope["raw_path"]) + _ENTRY_BYTES
        self._answers.keep((scope["raw_path"], authorization), answer, self._answers.mark(), weight=weight)
