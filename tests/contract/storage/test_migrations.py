"""Migrations add before they take away, and keep what is there."""

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.storage import database as database_module
from entrepot.storage.blobs import first_key
from entrepot.storage.database import Database
from tests.support.content import Image
from tests.support.served import serve

MIGRATIONS = Path(database_module.__file__).parent / "migrations"
REVISIONS = [one.revision for one in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))]
NAME = RepositoryName("smm/api")


def migrate_to(database: Database, revision: str) -> None:
    """Bring a database to the schema of an earlier version."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    def work(connection: sa.Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    database.write_now(work)


def read_columns(database: Database) -> dict[tuple[str, str], bool]:
    """Every (table, column), and whether a row must give it a value."""

    def work(connection: sa.Connection) -> dict[tuple[str, str], bool]:
        inspector = sa.inspect(connection)
        return {
            (table, column["name"]): not column["nullable"] and column["default"] is None
            for table in inspector.get_table_names()
            for column in inspector.get_columns(table)
        }

    return database.read_now(work)


@pytest.mark.parametrize(("before", "after"), list(itertools.pairwise(REVISIONS)))
def test_programs_of_the_version_before_can_still_write(url: str, before: str, after: str) -> None:
    """Every table and column is still there, and none is new that they would have to fill."""
    database = Database(url)
    migrate_to(database, before)
    old = read_columns(database)
    migrate_to(database, after)
    new = read_columns(database)
    database.close()
    assert old.keys() <= new.keys()
    tables = {table for table, _ in old}
    demanded = [
        place for place, is_demanded in new.items() if is_demanded and not old.get(place) and place[0] in tables
    ]
    assert demanded == []


def fill_as_0001(database: Database, image: Image, signature: bytes) -> None:
    """What version 0001 wrote: an image, a signature whose manifest says no artifact type, an unfinished upload."""
    now = datetime.now(UTC)
    tables = sa.MetaData()

    def insert(connection: sa.Connection, table: str, **row: object) -> None:
        connection.execute(sa.Table(table, tables, autoload_with=connection).insert().values(row))

    def work(connection: sa.Connection) -> None:
        insert(connection, "repositories", id=7, name=NAME.value, created_at=now)
        for blob in (image.config, image.layer):
            digest = str(Digest.of(blob))
            insert(connection, "blobs", digest=digest, size_bytes=len(blob), created_at=now)
            insert(connection, "repository_blobs", repository_id=7, digest=digest, created_at=now)
        for content, subject in ((image.manifest, None), (signature, str(image.digest))):
            insert(
                connection,
                "manifests",
                repository_id=7,
                digest=str(Digest.of(content)),
                media_type="application/vnd.oci.image.manifest.v1+json",
                content=content,
                subject=subject,
                artifact_type=None,
                created_at=now,
            )
        insert(connection, "tags", repository_id=7, name="v1", digest=str(image.digest), updated_at=now)
        upload = "00000000-0000-0000-0000-00000000000a"
        insert(connection, "uploads", id=upload, repository=NAME.value, created_at=now)
        part = {"size_bytes": 5, "sha256": Digest.of(b"hello").hex, "key": "uploads/part"}
        insert(connection, "upload_chunks", upload_id=upload, start_byte=0, **part)

    database.write_now(work)


async def test_content_of_the_first_version_stays_and_an_upload_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    image = Image()
    config = {"mediaType": "application/vnd.example.signature", "digest": str(Digest.of(image.config)), "size": 1}
    subject = {"mediaType": "a/b", "digest": str(image.digest), "size": len(image.manifest)}
    signature = json.dumps({"schemaVersion": 2, "config": config, "layers": [], "subject": subject}).encode()
    database = Database(f"sqlite:///{data}/entrepot.db")
    migrate_to(database, "0001")
    fill_as_0001(database, image, signature)
    database.close()
    for blob in (image.config, image.layer):
        path = data / "blobs" / first_key(Digest.of(blob))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    (data / "blobs" / "uploads").mkdir()
    (data / "blobs" / "uploads" / "part").write_bytes(b"hello")

    async with serve(data) as served:
        publisher = await served.client("publisher")
        assert (await publisher.call("GET", "/v2/smm/api/manifests/v1")).content == image.manifest
        for blob in (image.config, image.layer):
            assert (await publisher.call("GET", f"/v2/smm/api/blobs/{Digest.of(blob)}")).content == blob
        path = f"/v2/smm/api/referrers/{image.digest}"
        (found,) = (await publisher.call("GET", path)).json()["manifests"]
        assert (found["digest"], found["artifactType"]) == (str(Digest.of(signature)), config["mediaType"])
        location = "/v2/smm/api/blobs/uploads/00000000-0000-0000-0000-00000000000a"
        assert (await publisher.call("GET", location)).headers["range"] == "0-4"
        digest = Digest.of(b"hello world")
        answer = await publisher.call("PUT", f"{location}?digest={digest}", content=b" world")
        assert answer.status_code == 201
        assert (await publisher.call("GET", f"/v2/smm/api/blobs/{digest}")).content == b"hello world"
        # What the repository takes was counted, so that a quota holds for it, too.
        query = sa.text("SELECT size_bytes FROM repositories WHERE name = 'smm/api'")
        size = served.parts.database.read_now(lambda connection: connection.scalar(query))
        kept = (image.config, image.layer, image.manifest, signature, b"hello world")
        assert size == sum(map(len, kept))
        assert await served.parts.registry.read_tag_digests(NAME, [Tag("v1")]) == {Tag("v1"): image.digest}
