import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from entrepot.errors import ArrivalBroken
from entrepot.oci.digest import Digest
from entrepot.replication.spools import Arrival, Spool, Spools
from tests.support.waiting import eventually

CONTENT = os.urandom(300_000)
DIGEST = Digest.of(CONTENT)


class Source:
    """Sends a piece whenever it is told to."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def pieces(self) -> AsyncIterator[bytes]:
        while piece := await self.queue.get():
            yield piece


async def copy(spool: Spool, source: Source) -> bytes:
    return b"".join([piece async for piece in spool.tee(source.pieces())])


async def read(arrival: Arrival, into: bytearray) -> None:
    async for piece in arrival.pieces():
        into += piece


async def find(spools: Spools) -> Arrival:
    found: list[Arrival] = []

    async def is_found() -> bool:
        found.extend(filter(None, [spools.find(DIGEST, "runner", len(CONTENT))]))
        return bool(found)

    await eventually(is_found)
    return found[0]


async def end(spool: Spool, *, is_judged: bool) -> None:
    spool.hide()
    await spool.end(is_judged=is_judged)


async def until_has(read: bytearray, size: int) -> None:
    async def has() -> bool:
        return len(read) >= size

    await eventually(has)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_readers_get_what_has_come_and_the_last_byte_when_it_was_judged(tmp_path: Path) -> None:
    spools, source = Spools(tmp_path / "arriving"), Source()
    spool = spools.begin(DIGEST, "runner")
    copying = asyncio.create_task(copy(spool, source))
    first, late = bytearray(), bytearray()
    assert spools.find(DIGEST, "runner", len(CONTENT)) is None  # nothing has come
    source.queue.put_nowait(CONTENT[:100_000])
    reading = asyncio.create_task(read(await find(spools), first))
    await until_has(first, 100_000)
    source.queue.put_nowait(CONTENT[100_000:])
    source.queue.put_nowait(b"")
    assert await copying == CONTENT
    arrival = await find(spools)
    await until_has(first, len(CONTENT) - 1)
    await asyncio.sleep(0.1)
    assert len(first) == len(CONTENT) - 1
    await end(spool, is_judged=True)
    await reading
    await read(arrival, late)  # who was slow reads what is there
    assert first == late == CONTENT
    assert spools.find(DIGEST, "runner", len(CONTENT)) is None
    assert names(tmp_path / "arriving") == []


@pytest.mark.parametrize("size", [100_000, 300_000])
async def test_what_was_not_judged_good_is_broken_off(tmp_path: Path, size: int) -> None:
    spools, source = Spools(tmp_path), Source()
    spool = spools.begin(DIGEST, "runner")
    source.queue.put_nowait(CONTENT[:size])
    source.queue.put_nowait(b"")
    await copy(spool, source)
    got = bytearray()
    reading = asyncio.create_task(read(await find(spools), got))
    await until_has(got, size - 1)
    await end(spool, is_judged=False)
    with pytest.raises(ArrivalBroken):
        await reading
    assert len(got) < len(CONTENT)


async def test_what_its_writer_left_is_found_by_nobody_and_swept(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    spool = spools.begin(DIGEST, "runner")
    (name,) = names(tmp_path)
    # A process that was killed is often started again at once: what it left goes however young it is.
    for one in ("left", "old.new", "begun.new"):
        (tmp_path / one).write_bytes(CONTENT)
    old = time.time() - 3600
    for one in ("old.new", name):
        os.utime(tmp_path / one, (old, old))
    spools.sweep()
    assert names(tmp_path) == sorted(["begun.new", name])
    await spool.end(is_judged=True)  # lets go of the lock, as the end of its process would
    assert spools.find(DIGEST, "runner", len(CONTENT)) is None


async def test_a_file_that_cannot_grow_ends_what_is_sent_on_and_not_the_fetch(tmp_path: Path) -> None:
    spools, source = Spools(tmp_path), Source()
    spool = spools.begin(DIGEST, "runner")
    source.queue.put_nowait(CONTENT[:50_000])
    copying = asyncio.create_task(copy(spool, source))
    arrival = await find(spools)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        source.queue.put_nowait(CONTENT[50_000:])
        source.queue.put_nowait(b"")
        assert await copying == CONTENT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await end(spool, is_judged=True)
    with pytest.raises(ArrivalBroken):
        await read(arrival, bytearray())
