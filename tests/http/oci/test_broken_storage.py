"""Storage that breaks while a blob is read from it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from entrepot.errors import StorageUnavailable
from entrepot.storage.blobs import OpenBlob
from tests.support.served import RegistryClient


async def test_a_blob_that_breaks_before_its_first_piece_is_refused(
    publisher: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await publisher.push_blob("smm/api", b"content")

    async def read(*_: Any) -> AsyncIterator[bytes]:
        async def pieces() -> AsyncIterator[bytes]:
            raise StorageUnavailable("blob storage failed; try again in a moment")
            yield b""

        return pieces()

    monkeypatch.setattr(OpenBlob, "read", read)
    answer = await publisher.call("GET", f"/v2/smm/api/blobs/{digest}")
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
