"""What every blob store must do, whatever keeps the bytes."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from entrepot.errors import BlobTooLarge, BlobUnknown, ClientGone, DigestMismatch, SettingsInvalid, UploadUnknown
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.storage.blobs import BlobStore, OpenBlob, Staged
from tests.support.served import files_below

CONTENT = os.urandom(3_500_000)
NO_LIMIT = 10**12


@pytest.fixture(params=["file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(f"{request.param}://{tmp_path}/blobs")


async def pieces_of(content: bytes, size: int = 700_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]
        await asyncio.sleep(0)


async def read(blob: OpenBlob, part: ByteRange | None = None) -> bytes:
    return b"".join([piece async for piece in blob.pieces(part or ByteRange(0, blob.size))])


async def put(store: BlobStore, content: bytes, algorithm: str = "sha256") -> Digest:
    digest = Digest.of(content, algorithm)
    await store.keep([await store.stage(pieces_of(content), limit=NO_LIMIT)], digest)
    return digest


@pytest.mark.parametrize("content", [CONTENT, b"", b"x"], ids=["large", "empty", "one-byte"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_what_is_kept_is_read_back(store: BlobStore, content: bytes, algorithm: str) -> None:
    digest = await put(store, content, algorithm)
    blob = await store.open(digest)
    assert (blob.digest, blob.size) == (digest, len(content))
    if content:
        assert await read(blob) == content


@pytest.mark.parametrize("part", [ByteRange(0, 1), ByteRange(1_000_000, 2_500_000), ByteRange(3_499_999, 3_500_000)])
async def test_a_part_is_read(store: BlobStore, part: ByteRange) -> None:
    blob = await store.open(await put(store, CONTENT))
    assert await read(blob, part) == CONTENT[part.start : part.end]


async def test_parts_are_joined_in_their_order(store: BlobStore) -> None:
    parts = [
        await store.stage(pieces_of(part), limit=NO_LIMIT) for part in (CONTENT[:10], CONTENT[10:99], CONTENT[99:])
    ]
    digest = Digest.of(CONTENT)
    assert await store.keep(parts, digest) == len(CONTENT)
    assert await read(await store.open(digest)) == CONTENT


async def test_staged_bytes_are_counted_and_hashed(store: BlobStore) -> None:
    staged = await store.stage(pieces_of(CONTENT), limit=NO_LIMIT)
    assert (staged.size, staged.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_another_digest_keeps_nothing(store: BlobStore, algorithm: str) -> None:
    wrong = Digest.of(b"other", algorithm)
    staged = await store.stage(pieces_of(CONTENT), limit=NO_LIMIT)
    with pytest.raises(DigestMismatch):
        await store.keep([staged], wrong)
    for digest in (wrong, Digest.of(CONTENT, algorithm)):
        with pytest.raises(BlobUnknown):
            await store.open(digest)
    with pytest.raises(UploadUnknown):  # the staged bytes are gone, too
        await store.keep([staged], Digest.of(CONTENT))


async def test_more_than_the_limit_keeps_nothing(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BlobTooLarge):
        await store.stage(pieces_of(CONTENT), limit=len(CONTENT) - 1)
    assert files_below(tmp_path) == []
    assert (await store.stage(pieces_of(CONTENT), limit=len(CONTENT))).size == len(CONTENT)


async def test_a_sender_that_breaks_off_keeps_nothing(store: BlobStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ClientGone("gone")

    with pytest.raises(ClientGone):
        await store.stage(broken(), limit=NO_LIMIT)
    assert files_below(tmp_path) == []


async def test_a_sender_that_is_cancelled_keeps_nothing(store: BlobStore, tmp_path: Path) -> None:
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
    await asyncio.sleep(0.1)
    assert files_below(tmp_path) == []


async def test_what_is_staged_is_not_served(store: BlobStore) -> None:
    await store.stage(pieces_of(CONTENT), limit=NO_LIMIT)
    with pytest.raises(BlobUnknown):
        await store.open(Digest.of(CONTENT))


async def test_many_keep_the_same_blob_at_once(store: BlobStore) -> None:
    digests = await asyncio.gather(*(put(store, CONTENT) for _ in range(8)))
    assert set(digests) == {Digest.of(CONTENT)}
    assert await read(await store.open(digests[0])) == CONTENT


async def test_a_blob_is_readable_while_it_is_kept_again(store: BlobStore) -> None:
    blob = await store.open(await put(store, CONTENT))
    stream = blob.pieces(ByteRange(0, blob.size))
    first = await anext(stream)
    await put(store, CONTENT)
    assert first + b"".join([piece async for piece in stream]) == CONTENT


async def test_dropping_what_is_gone_is_harmless(store: BlobStore) -> None:
    staged = await store.stage(pieces_of(b"x"), limit=NO_LIMIT)
    await store.drop(staged, staged, Staged("uploads/never", 1, ""))


async def test_a_store_says_whether_it_can_be_written(store: BlobStore, tmp_path: Path) -> None:
    await store.verify_writable()
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "blobs", "file://relative", "", "file:relative"])
def test_an_address_that_is_not_supported_is_refused(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="ENTREPOT_STORAGE_URL"):
        BlobStore(url)
