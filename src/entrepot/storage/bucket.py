"""Objects in S3, GCS or Azure, through obstore."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore, from_url

from entrepot.oci.ranges import ByteRange
from entrepot.storage.objects import LISTED, PIECE_BYTES, ObjectMissing, StoredObject, storage_errors

# S3 takes 10,000 parts of at least 5 MiB: enough for 78 GiB.
_PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2
# How long a store that could be written is taken at its word; a write costs money.
_PROBE_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to reach an object store; credentials come from the SDK's own chain, web identity included.

    `public_endpoint` is the address that clients reach it by, for presigned URLs, where it is another.
    """

    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    connect_seconds: float = 5
    stall_seconds: float = 30


class Bucket:
    """`Objects` below a URL. Raises ValueError or the library's errors when it cannot be one."""

    can_sign = True

    def __init__(self, url: str, options: StoreOptions) -> None:
        self._store = _open_store(url, options, options.endpoint)
        is_same = options.public_endpoint in {"", options.endpoint}
        self._signer = self._store if is_same else _open_store(url, options, options.public_endpoint)
        self._written_at = float("-inf")

    async def put(self, key: str, blocks: AsyncIterator[bytes]) -> None:
        """Upload in parts; the object appears with the last of them."""
        with storage_errors():
            await obstore.put_async(self._store, key, blocks, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    async def read(self, key: str, part: ByteRange | None = None) -> AsyncIterator[bytes]:
        """The pieces of an object, as they arrive."""
        options: Any = {} if part is None else {"options": {"range": (part.start, part.end)}}
        with storage_errors():
            try:
                result = await obstore.get_async(self._store, key, **options)
            except (NotFoundError, FileNotFoundError):
                raise ObjectMissing(key) from None

        async def pieces() -> AsyncIterator[bytes]:
            with storage_errors():
                async for piece in result.stream(min_chunk_size=PIECE_BYTES):
                    yield bytes(piece)

        return pieces()

    def find_file(self, key: str) -> Path | None:  # noqa: ARG002
        """None: it is elsewhere."""
        return None

    async def sign(self, key: str, lifetime: timedelta) -> str:
        """A presigned URL."""
        with storage_errors():
            # Every store that has an address can.
            return await obstore.sign_async(self._signer, "GET", key, lifetime)  # type: ignore[call-overload, no-any-return]

    async def drop(self, key: str) -> None:
        """Delete an object."""
        with storage_errors():
            try:
                await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                return

    async def list_shard(self, shard: str) -> AsyncIterator[list[StoredObject]]:
        """The objects below a prefix."""
        with storage_errors():
            async for page in obstore.list(self._store, prefix=f"objects/{shard}/", chunk_size=LISTED):
                yield [StoredObject(entry["path"], entry["size"], entry["last_modified"]) for entry in page]

    async def verify_writable(self) -> None:
        """Write and delete an object, unless that went well a moment ago."""
        if time.monotonic() - self._written_at < _PROBE_SECONDS:
            return
        key = f"objects/00/probe-{uuid.uuid4().hex}"
        with storage_errors():
            await obstore.put_async(self._store, key, b"ok")
            await obstore.delete_async(self._store, key)
        self._written_at = time.monotonic()


def _open_store(url: str, options: StoreOptions, endpoint: str) -> ObjectStore:
    config: dict[str, Any] = {}
    if endpoint:
        config["endpoint"] = endpoint
    if options.region:
        config["region"] = options.region
    client: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=options.connect_seconds),
        "read_timeout": timedelta(seconds=options.stall_seconds),
        # The whole of a large blob takes its time; what must not happen is that nothing arrives.
        "timeout": timedelta(days=1),
        "default_content_type": "application/octet-stream",
    }
    retry: dict[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=options.stall_seconds)}
    open_any: Any = from_url  # its overloads ask for the kind of store that the URL only tells at run time
    store: ObjectStore = open_any(url, config=config, client_options=client, retry_config=retry)
    return store
