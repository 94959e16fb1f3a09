"""What holds after every run of replication: nothing is half visible, and what failed is explained."""

from typing import Any

import sqlalchemy as sa

from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.runs import Run
from entrepot.storage.tables import manifest_absences, manifests, repositories, repository_blobs, tags
from tests.support.served import Served


async def verify_whole(served: Served) -> None:
    """Every tag leads to a manifest, every manifest to all that it names, and every blob has its digest and size."""

    def read(connection: sa.Connection, table: sa.Table, *columns: sa.Column[Any]) -> list[tuple[Any, ...]]:
        query = sa.select(repositories.c.name, *columns).join(table, table.c.repository_id == repositories.c.id)
        return [tuple(row) for row in connection.execute(query)]

    read_now = served.parts.database.read_now
    there = read_now(
        lambda found: read(found, manifests, *(manifests.c[n] for n in ("digest", "content", "media_type")))
    )
    named = read_now(lambda found: read(found, tags, tags.c.digest))
    blobs = set(read_now(lambda found: read(found, repository_blobs, repository_blobs.c.digest)))
    # What a rule leaves out of an index is known to be absent.
    absent = read_now(lambda found: read(found, manifest_absences, manifest_absences.c.child))
    known = {(name, digest) for name, digest, _, _ in there}
    assert set(named) <= known
    for name, digest, content, media_type in there:
        assert Digest.parse(digest).is_of(bytes(content))
        manifest = Manifest.parse(bytes(content), media_type)
        assert {(name, str(child.digest)) for child in manifest.children} <= known | set(absent)
        assert {(name, str(blob.digest)) for blob in manifest.blobs if not blob.is_foreign} <= blobs
    for name, digest in sorted(blobs):
        opened = await served.parts.registry.open_blob(RepositoryName(name), Digest.parse(digest))
        kept = b"".join([piece async for piece in await opened.read(ByteRange(0, opened.size))] if opened.size else [])
        assert Digest.parse(digest).is_of(kept)


async def verify_explained(served: Served, run: Run) -> None:
    """A run that failed says why: of the whole, or of each tag; on which side, and whether trying again may help.

    What failed for a tag that is new is not here under that tag.
    """
    report = run.report
    described = [*report.get("failures", ()), *([report["problem"]] if "problem" in report else ())]
    assert bool(described) == (run.status != "done")
    for one in described:
        assert one["kind"] in ("failed", "refused")
        assert one["side"] in ("source", "destination")
        assert isinstance(one["is_temporary"], bool)
        assert len(one["problem"]) > 20
    assert all(one["what"] for one in report.get("failures", ()))
    assert report["failed"] == len(report.get("failures", ())) or report["failed"] > 100
    artifacts = await served.parts.runs.list_artifacts(run.id, 0, 500)
    for row in artifacts:
        if row["outcome"] in ("failed", "refused"):
            assert row["problem"]
            assert row["side"]
        if row["outcome"] == "failed" and row["tag"] and row["digest"] and row["try"] == run.tries:
            here = await served.parts.registry.read_tag_digests(RepositoryName(row["target"]), [Tag(row["tag"])])
            is_deletion = any(one["what"].endswith(f":{row['tag']}, deleting") for one in report.get("failures", ()))
            assert is_deletion or here.get(Tag(row["tag"])) != Digest.parse(row["digest"])
