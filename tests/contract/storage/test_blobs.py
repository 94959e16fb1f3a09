"""What every blob store must do, whatever keeps the bytes."""

import asyncio
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from entrepot.errors import (
    BlobTooLarge,
    BlobUnknown,
    ClientGone,
    DigestMismatch,
    SettingsInvalid,
    StorageUnavailable,
    UploadUnknown,
)
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.storage.blobs import SHARDS, BlobStore, OpenBlob, Staged, StoreOptions, visible
from tests.support.served import files_below
from tests.support.servers import ObjectStore

# More than one part of an object store's upload.
CONTENT = os.urandom(9_000_000)
NO_LIMIT = 10**12


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "file":
        return BlobStore(f"file://{tmp_path}/blobs")
    server: ObjectStore = request.getfixturevalue("object_store")
    return BlobStore(server.url(), StoreOptions(endpoint=server.endpoint))


async def pieces_of(content: bytes, size: int = 700_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]
        await asyncio.sleep(0)


async def read(blob: OpenBlob, part: ByteRange | None = None) -> bytes:
    return b"".join([piece async for piece in await blob.read(part or ByteRange(0, blob.size))])


async def stage(store: BlobStore, content: bytes, algorithm: str = "sha256") -> Staged:
    return await store.stage(pieces_of(content), limit=NO_LIMIT, algorithm=algorithm)


async def opened(store: BlobStore, staged: Staged) -> OpenBlob:
    return await store.open(staged.key, staged.digest, staged.size)


async def stored(store: BlobStore) -> set[str]:
    return {entry.key for shard in SHARDS async for page in store.list_objects(shard) for entry in page}


@pytest.mark.parametrize("content", [CONTENT, b"", b"x"], ids=["large", "empty", "one-byte"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_what_is_staged_is_counted_hashed_and_read_back(store: BlobStore, content: bytes, algorithm: str) -> None:
    staged = await stage(store, content, algorithm)
    assert (staged.size, staged.digest) == (len(content), Digest.of(content, algorithm))
    assert await read(await opened(store, staged)) == content


@pytest.mark.parametrize("part", [ByteRange(0, 1), ByteRange(1_000_000, 2_500_000), ByteRange(8_999_999, 9_000_000)])
async def test_a_part_is_read(store: BlobStore, part: ByteRange) -> None:
    assert await read(await opened(store, await stage(store, CONTENT)), part) == CONTENT[part.start : part.end]


async def test_parts_are_joined_in_their_order_and_stay(store: BlobStore) -> None:
    parts = [await stage(store, part) for part in (CONTENT[:10], CONTENT[10:99], CONTENT[99:])]
    whole = await store.join(parts, Digest.of(CONTENT))
    assert await read(await opened(store, whole)) == CONTENT
    assert await stored(store) == {whole.key, *(part.key for part in parts)}


async def test_no_parts_make_an_empty_object(store: BlobStore) -> None:
    whole = await store.join([], Digest.of(b""))
    assert (whole.size, await read(await opened(store, whole))) == (0, b"")


async def test_parts_that_are_gone_are_told_apart_from_a_store_that_fails(store: BlobStore) -> None:
    part = await stage(store, CONTENT)
    await store.drop(part.key)
    with pytest.raises(UploadUnknown):
        await store.join([part, part], Digest.of(CONTENT * 2))
    with pytest.raises(UploadUnknown):
        await store.find_digest(part, "sha512")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_another_digest_than_expected_keeps_nothing(store: BlobStore, algorithm: str) -> None:
    wrong = Digest.of(b"other", algorithm)
    with pytest.raises(DigestMismatch, match=str(Digest.of(CONTENT, algorithm))):
        await store.stage(pieces_of(CONTENT), limit=NO_LIMIT, expected=wrong)
    assert await stored(store) == set()
    right = Digest.of(CONTENT, algorithm)
    assert (await store.stage(pieces_of(CONTENT), limit=NO_LIMIT, expected=right)).digest == right


async def test_the_digest_by_another_algorithm_is_found(store: BlobStore) -> None:
    staged = await stage(store, CONTENT)
    assert await store.find_digest(staged, "sha512") == Digest.of(CONTENT, "sha512")


@pytest.mark.parametrize("limit", [len(CONTENT) - 1, 0])
async def test_more_than_the_limit_keeps_nothing(store: BlobStore, limit: int) -> None:
    with pytest.raises(BlobTooLarge):
        await store.stage(pieces_of(CONTENT), limit=limit)
    assert await stored(store) == set()
    assert (await store.stage(pieces_of(CONTENT), limit=len(CONTENT))).size == len(CONTENT)


async def test_a_sender_that_breaks_off_keeps_nothing(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ClientGone("gone")

    with pytest.raises(ClientGone):
        await store.stage(broken(), limit=NO_LIMIT)
    assert await stored(store) == set()


async def test_a_sender_that_is_cancelled_keeps_nothing(store: BlobStore) -> None:
    reached = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield CONTENT * 5
        reached.set()
        await asyncio.sleep(30)

    task = asyncio.create_task(store.stage(stuck(), limit=NO_LIMIT))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.2)
    assert await stored(store) == set()


async def test_many_stage_the_same_content_at_once(store: BlobStore) -> None:
    staged = await asyncio.gather(*(stage(store, CONTENT) for _ in range(4)))
    assert len({one.key for one in staged}) == 4
    for one in staged:
        assert await read(await opened(store, one)) == CONTENT


async def test_what_is_gone_is_unknown_before_any_byte_flows(store: BlobStore) -> None:
    staged = await stage(store, CONTENT)
    await store.drop(staged.key)
    with pytest.raises(BlobUnknown):
        await (await opened(store, staged)).read(ByteRange(0, 10))
    await store.drop(staged.key, staged.key, "objects/00/never")  # harmless


async def test_objects_are_listed_with_size_and_time(store: BlobStore) -> None:
    staged = [await stage(store, CONTENT[:size]) for size in (0, 1, 1000)]
    found = {entry.key: entry for shard in SHARDS async for page in store.list_objects(shard) for entry in page}
    assert {key: entry.size for key, entry in found.items()} == {one.key: one.size for one in staged}
    for entry in found.values():
        assert abs(datetime.now(UTC) - entry.modified_at) < timedelta(minutes=1)


async def test_a_store_says_whether_it_can_be_written(store: BlobStore) -> None:
    await store.verify_writable()
    assert await stored(store) == set()


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> BlobStore:
        return BlobStore(f"file://{tmp_path}/blobs")

    async def test_a_blob_of_another_size_is_damaged_and_never_served(self, folder: BlobStore) -> None:
        staged = await stage(folder, CONTENT)
        path = (await opened(folder, staged)).path
        assert path is not None
        path.write_bytes(CONTENT[:-1])
        with pytest.raises(StorageUnavailable, match="damaged"):
            await opened(folder, staged)

    async def test_what_a_killed_process_left_is_listed(self, folder: BlobStore, tmp_path: Path) -> None:
        left = tmp_path / "blobs" / "objects" / "ab" / f"{'ab' * 16}#1"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half")
        (key,) = await stored(folder)
        await folder.drop(key)
        assert files_below(tmp_path) == []


class TestS3:
    @pytest.fixture
    def bucket(self, object_store: ObjectStore) -> BlobStore:
        return BlobStore(object_store.url(), StoreOptions(endpoint=object_store.endpoint))

    async def test_a_signed_url_serves_the_blob_and_parts_of_it_for_a_while(self, bucket: BlobStore) -> None:
        blob = await opened(bucket, await stage(bucket, CONTENT))
        url = await bucket.sign(blob, timedelta(seconds=6))

        def fetch(**headers: str) -> tuple[int, bytes]:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
                return answer.status, answer.read()

        assert await asyncio.to_thread(fetch) == (200, CONTENT)
        assert await asyncio.to_thread(fetch, Range="bytes=5-9") == (206, CONTENT[5:10])
        await asyncio.sleep(7.1)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            await asyncio.to_thread(fetch)

    async def test_signed_urls_name_the_address_that_clients_use(self, object_store: ObjectStore) -> None:
        options = StoreOptions(endpoint=object_store.endpoint, public_endpoint="https://blobs.example.com")
        bucket = BlobStore(object_store.url(), options)
        blob = await opened(bucket, await stage(bucket, CONTENT))
        assert (await bucket.sign(blob, timedelta(seconds=60))).startswith("https://blobs.example.com/entrepot/")

    async def test_a_store_that_is_away_is_unavailable_soon(self, object_store: ObjectStore) -> None:
        away = BlobStore(object_store.url(), StoreOptions(endpoint="http://127.0.0.1:1", stall_seconds=1))
        async with asyncio.timeout(60):
            with pytest.raises(StorageUnavailable):
                await away.verify_writable()
            with pytest.raises(StorageUnavailable):
                await stage(away, CONTENT)


@pytest.mark.parametrize("url", ["blobs", "file://relative", "", "file:relative", "http://host/path", "s3://"])
def test_an_address_that_is_not_supported_is_refused(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="ENTREPOT_STORAGE_URL"):
        BlobStore(url)


def test_an_address_is_shown_without_its_secret() -> None:
    assert visible("s3://user:secret@bucket/prefix?key=secret#secret") == "s3://bucket/prefix"


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "az://container/prefix"])
def test_other_clouds_are_not_prevented(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    assert BlobStore(url).can_sign
