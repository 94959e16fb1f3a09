"""What is here: repositories and their tags."""

from typing import Annotated

from fastapi import APIRouter, Query

from entrepot.oci.reference import RepositoryName, Tag
from entrepot.web.api import replication_models as bodies
from entrepot.web.api.cursors import read_text_cursor, write_text_cursor
from entrepot.web.api.guard import ReadsReplication

router = APIRouter(tags=["repositories"])

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/repositories")
async def list_repositories(
    caller: ReadsReplication, cursor: str | None = None, limit: Limit = 100
) -> bodies.RepositoryPage:
    """Every repository, by name."""
    page = await caller.services.registry.list_repositories(read_text_cursor(cursor), limit, lambda _name: True, [""])
    return bodies.RepositoryPage(
        repositories=page.names, next_cursor=None if page.is_last else write_text_cursor(page.names[-1])
    )


@router.get("/repositories/{name:path}/tags")
async def list_tags(
    name: str, caller: ReadsReplication, cursor: str | None = None, limit: Limit = 100
) -> bodies.TagPage:
    """The tags of a repository, and what they name."""
    registry, repository = caller.services.registry, RepositoryName.parse(name)
    page = await registry.list_tags(repository, read_text_cursor(cursor), limit)
    digests = await registry.read_tag_digests(repository, [Tag(tag) for tag in page.names])
    return bodies.TagPage(
        tags=[bodies.TagBody(name=tag.value, digest=str(digests[tag])) for tag in sorted(digests)],
        next_cursor=None if page.is_last else write_text_cursor(page.names[-1]),
    )
