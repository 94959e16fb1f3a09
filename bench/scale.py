"""What does not grow with what is stored: the same work on ever more rows, in SQLite and PostgreSQL.

The rows are generated, the content behind them is not: only the database is looked at. Caches are passed by.
"""

import asyncio
import hashlib
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console

from bench.results import Row, Section
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.registry import garbage_records, records
from entrepot.registry.service import Registry
from entrepot.storage import tables
from entrepot.storage.blobs import BlobStore
from entrepot.storage.clock import utc_now
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals
from tests.support.servers import postgresql

# (tags in one repository, repositories, blobs)
SIZES = [(1_000, 100, 10_000), (10_000, 1_000, 100_000), (100_000, 10_000, 1_000_000)]
REPEATED = 200
_NAME = RepositoryName("scale/many")
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_BATCH = 2_000

Work = Callable[[], Awaitable[object]]


def measure(console: Console, folder: Path) -> list[Section]:
    """The median time of each kind of work, by size and database."""
    rows: dict[str, dict[str, str]] = {}
    growth: dict[str, dict[str, float]] = {}
    with postgresql() as server:
        for kind, url in (("SQLite", f"sqlite:///{folder}/scale.db"), ("PostgreSQL", server.create())):
            first: dict[str, float] = {}
            for size in SIZES:
                console.print(f"{kind}: {size[0]:,} tags, {size[1]:,} repositories, {size[2]:,} blobs ...")
                taken = asyncio.run(_measure_size(folder, url, size))
                for work, seconds in taken.items():
                    column = f"{kind}, {size[2]:,} blobs"
                    rows.setdefault(work, {})[column] = f"{seconds * 1000:.2f} ms"
                    first.setdefault(work, seconds)
                    growth.setdefault(work, {})[kind] = first[work] / seconds
    notes = (
        "Medians. 1,000, 10,000 and 100,000 tags in one repository; 100, 1,000 and 10,000 repositories; 10,000, "
        "100,000 and 1,000,000 blobs. The ratio is the time at the smallest size to that at the largest: 1 is flat."
    )
    found = [Row(work, cells, growth[work], "flat") for work, cells in rows.items()]
    return [Section("Scale", found, notes)]


@asynccontextmanager
async def _opened(folder: Path, url: str) -> AsyncIterator[tuple[Registry, Database]]:
    database = Database(url)
    database.migrate()
    signals = Signals(database, utc_now)
    signals.start()
    blobs = BlobStore(f"file://{folder}/scale-blobs")
    yield (
        Registry(database, blobs, signals, utc_now, max_blob_bytes=10**9, grace=timedelta(days=1)),
        database,
    )
    signals.stop()
    database.close()


async def _measure_size(folder: Path, url: str, size: tuple[int, int, int]) -> dict[str, float]:
    async with _opened(folder, url) as (registry, database):
        _grow(database, size)
        tags, repositories, blobs = size
        chance = random.Random(1)

        async def pull() -> object:
            tag = Tag(f"v{chance.randrange(tags):06}")
            return await database.read(lambda connection: records.find_manifest(connection, _NAME, tag))

        async def pull_anywhere() -> object:
            name = RepositoryName(f"scale/r{chance.randrange(repositories):05}")
            return await database.read(lambda connection: records.find_manifest(connection, name, Tag("v1")))

        async def find_blob() -> object:
            digest = _digest("blob", chance.randrange(blobs))
            name = RepositoryName(f"scale/r{chance.randrange(repositories):05}")
            return await database.read(lambda connection: records.find_blob(connection, name, digest))

        async def push() -> object:
            tag = Tag(f"v{chance.randrange(tags):06}")
            manifest = _manifest(chance.randrange(10**12))
            return await registry.put_manifest(_NAME, manifest, tags=[tag])

        async def page() -> object:
            return await registry.list_tags(_NAME, f"v{chance.randrange(tags):06}", 100)

        async def catalog() -> object:
            after = f"scale/r{chance.randrange(repositories):05}"
            return await registry.list_repositories(after, 100, lambda _: True, [""])

        async def referrers() -> object:
            return await registry.list_referrers(_NAME, _digest("manifest", chance.randrange(tags)), None, "")

        async def step_links() -> object:
            place = (chance.randrange(1, repositories), "")
            return await database.read(
                lambda connection: garbage_records.list_unreferenced_links(connection, _LONG_AGO, place, 500)
            )

        async def step_blobs() -> object:
            after = f"sha256:{chance.getrandbits(256):064x}"
            return await database.read(lambda connection: garbage_records.list_unheld_blobs(connection, after, 500))

        works: dict[str, Work] = {
            "manifest by tag, of a repository with many tags": pull,
            "manifest by tag, of one of many repositories": pull_anywhere,
            "blob of a repository": find_blob,
            "push of a manifest and tag": push,
            "page of 100 tags": page,
            "page of 100 repositories": catalog,
            "referrers of a manifest": referrers,
            "step of garbage collection, links": step_links,
            "step of garbage collection, blobs": step_blobs,
        }
        return {name: await _median(work) for name, work in works.items()}


async def _median(work: Work) -> float:
    taken = []
    for number in range(REPEATED + 20):
        begun = time.perf_counter()
        await work()
        if number >= 20:
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def _digest(kind: str, number: int) -> Digest:
    return Digest("sha256", hashlib.sha256(f"{kind} {number}".encode()).hexdigest())


def _manifest(number: int) -> Manifest:
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
        "annotations": {"number": str(number)},
    }
    return Manifest.parse(json.dumps(document).encode())


def _grow(database: Database, size: tuple[int, int, int]) -> None:
    """Add what is missing to the size."""
    tags, repositories, blobs = size

    def count(connection: sa.Connection) -> tuple[int, int, int]:
        def of(table: sa.Table) -> int:
            return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

        return of(tables.tags), of(tables.repositories), of(tables.blobs)

    had_tags, had_repositories, had_blobs = database.read_now(count)
    had_repositories = max(had_repositories - 1, 0)
    had_tags = max(had_tags - had_repositories, 0)
    many = 1_000_000
    if not had_repositories:
        _insert(database, tables.repositories, [{"id": many, "name": _NAME.value, "created_at": _LONG_AGO}])
    _insert_range(
        database,
        range(had_repositories, repositories),
        lambda n: {tables.repositories: {"id": n + 1, "name": f"scale/r{n:05}", "created_at": _LONG_AGO}},
    )
    _insert_range(
        database,
        range(had_blobs, blobs),
        lambda n: {
            tables.blobs: {"digest": str(_digest("blob", n)), "size_bytes": 1, "created_at": _LONG_AGO, "key": f"k{n}"},
            tables.repository_blobs: {
                "repository_id": n % repositories + 1,
                "digest": str(_digest("blob", n)),
                "created_at": _LONG_AGO,
            },
        },
    )
    for repository, numbers in ((many, range(had_tags, tags)), (0, range(had_repositories, repositories))):
        _insert_range(
            database,
            numbers,
            lambda n, repository=repository: _tagged(repository or n + 1, f"v{n:06}" if repository else "v1", n),
        )
    with database._dialect.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))


def _tagged(repository: int, tag: str, number: int) -> dict[sa.Table, dict[str, Any]]:
    digest = str(_digest("manifest", number))
    return {
        tables.manifests: {
            "repository_id": repository,
            "digest": digest,
            "media_type": "application/vnd.oci.image.index.v1+json",
            "content": b"x" * 500,
            "created_at": _LONG_AGO,
        },
        tables.tags: {"repository_id": repository, "name": tag, "digest": digest, "updated_at": _LONG_AGO},
    }


def _insert_range(database: Database, numbers: range, make: Callable[[int], dict[sa.Table, dict[str, Any]]]) -> None:
    for start in range(numbers.start, numbers.stop, _BATCH):
        made = [make(number) for number in range(start, min(start + _BATCH, numbers.stop))]
        for table in made[0]:
            _insert(database, table, [one[table] for one in made])


def _insert(database: Database, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    database.write_now(lambda connection: connection.execute(table.insert(), rows))
