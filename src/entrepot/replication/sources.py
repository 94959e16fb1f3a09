"""Opening sources, whatever kind they are."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from entrepot.replication.archive_source import open_archive
from entrepot.replication.backoff import Backoff, Deadlines
from entrepot.replication.logins import FixedLogin, Login, RenewedLogin, read_secret
from entrepot.replication.source import Source
from entrepot.replication.source_specs import ArchiveSpec, EcrSpec, OciSpec, SourceSpec

if TYPE_CHECKING:
    from entrepot.replication.registry_source import RegistrySource


class Sources:
    """Opens sources, and keeps what outlives an opening: the registry tokens of ECR, one per source."""

    def __init__(
        self,
        deadlines: Deadlines | None = None,
        backoff: Backoff | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadlines = deadlines or Deadlines()
        self._backoff = backoff or Backoff()
        self._monotonic = monotonic
        self._ecr_logins: dict[EcrSpec, RenewedLogin] = {}

    @asynccontextmanager
    async def open(self, spec: SourceSpec) -> AsyncIterator[Source]:
        """The source that `spec` describes. Raises SourceError."""
        match spec:
            case OciSpec():
                async with self._open_registry(spec, _read_login(spec)) as registry:
                    yield registry
            case EcrSpec():
                async with self._open_ecr(spec) as source:
                    yield source
            case ArchiveSpec():
                async with open_archive(spec) as archive:
                    yield archive

    @asynccontextmanager
    async def _open_registry(self, spec: OciSpec | EcrSpec, login: Login | None) -> "AsyncIterator[RegistrySource]":
        # The HTTP client takes long to load, and most processes copy nothing.
        from entrepot.replication.connections import open_connections  # noqa: PLC0415
        from entrepot.replication.registry_source import RegistrySource  # noqa: PLC0415
        from entrepot.replication.transport import Transport  # noqa: PLC0415

        async with open_connections(spec.name, spec.url, spec.network, self._deadlines) as connections:
            transport = Transport(
                spec.name, connections, spec.url, login, self._deadlines, self._backoff, self._monotonic
            )
            yield RegistrySource(transport, self._deadlines)

    @asynccontextmanager
    async def _open_ecr(self, spec: EcrSpec) -> AsyncIterator[Source]:
        # The SDK takes half a second to load, which nobody should wait for who has no source in AWS.
        from entrepot.replication.ecr_source import EcrSource, make_ecr_login, open_ecr_api  # noqa: PLC0415

        login = self._ecr_logins.get(spec)
        if login is None:
            login = self._ecr_logins[spec] = make_ecr_login(spec, self._deadlines, self._backoff, self._monotonic)
        async with (
            open_ecr_api(spec, self._deadlines, self._backoff) as api,
            self._open_registry(spec, login) as registry,
        ):
            yield EcrSource(spec.name, spec.account, api, registry)


def _read_login(spec: OciSpec) -> Login | None:
    if spec.username is None or spec.password is None:
        return None
    return FixedLogin(spec.username, read_secret(spec.password, "password", spec.name))
