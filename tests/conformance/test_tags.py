"""Workflow "Content Discovery", tags."""

import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.repository import Repository, error_codes, index, next_link

pytestmark = pytest.mark.asyncio(loop_scope="session")

# As their bytes sort, which no language does. The spec glosses "lexical order" as "case-insensitive alphanumeric", in
# which `V1` and `v1` would have no place of their own for `last`; the official suite compares bytes.
TAGS = ["0.1.2", "0.1.20", "0.1.3", "A", "V1", "_x", "a", "v1", "v1-rc.1", "v1.0", "v10", "v1_", "v2"]
CONTENT = index()


async def push_tags(repository: Repository, tags: list[str]) -> None:
    """Tags for one manifest, not in the order of `tags`."""
    for start in range(0, len(tags), 100):
        query = "?" + "&".join(f"tag={tag}" for tag in reversed(tags[start : start + 100]))
        answer = await repository.put(str(Digest.of(CONTENT)), CONTENT, media_types.OCI_INDEX, query)
        assert answer.status_code == 201, answer.text


@pytest.fixture
async def tagged(repository: Repository) -> Repository:
    """A repository with TAGS."""
    await push_tags(repository, TAGS)
    return repository


async def list_tags(repository: Repository, query: str = "") -> tuple[list[str], str | None]:
    """(tags, link to the next)."""
    answer = await repository.call("GET", f"tags/list{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    document = answer.json()
    assert document == {"name": repository.name, "tags": document["tags"]}
    return document["tags"], next_link(answer)


async def list_all(repository: Repository, query: str) -> list[list[str]]:
    """The tags of every page."""
    return [answer.json()["tags"] for answer in await repository.pages(f"tags/list{query}")]


@clause("Listing Tags", "MUST be 200 with a JSON body of name and tags, in lexical order")
async def test_tags_are_listed_in_the_order_of_their_bytes(tagged: Repository) -> None:
    assert await list_tags(tagged) == (TAGS, None)


@clause("Listing Tags", "the list of tags MAY be empty if there are no tags on the repository")
async def test_repository_without_tags(repository: Repository) -> None:
    await repository.push_blob(b"so that it exists")
    assert await list_tags(repository) == ([], None)
    pushed = await repository.push(CONTENT, media_type=media_types.OCI_INDEX)
    assert await list_tags(repository) == ([], None)
    await repository.push(CONTENT, "v1", media_types.OCI_INDEX)
    await repository.call("DELETE", f"manifests/{pushed.digest}")
    assert await list_tags(repository, "?n=5") == ([], None)


@clause("Endpoints", "tags of a repository that is not known are 404 (end-8a, end-8b)")
async def test_unknown_repository_is_404(repository: Repository) -> None:
    for query in ("", "?n=1", "?n=0", "?n=1&last=a"):
        answer = await repository.call("GET", f"tags/list{query}")
        assert (answer.status_code, error_codes(answer)) == (404, ["NAME_UNKNOWN"])


# (query, from, to, whether more follow)
PAGES = [
    ("?n=1", 0, 1, True),
    ("?n=3", 0, 3, True),
    (f"?n={len(TAGS) - 1}", 0, -1, True),
    (f"?n={len(TAGS)}", 0, None, False),
    ("?n=1000000", 0, None, False),
    ("?n=2147483647", 0, None, False),
    ("?n=9223372036854775807", 0, None, False),
    ("?n=0", 0, 0, False),
    ("?n=0&last=A", 0, 0, False),
    ("?last=A", 4, None, False),
    ("?n=2&last=A", 4, 6, True),
    ("?last=A&n=2", 4, 6, True),
    ("?n=2&last=v1_", 12, None, False),
    ("?n=2&last=v2", 13, None, False),
    ("?n=2&last=zzz", 13, None, False),
    ("?n=1&last=0.1.2", 1, 2, True),
    ("?n=1&last=0.1.20", 2, 3, True),
    ("?n=2&last=B", 4, 6, True),
    ("?n=2&last=-", 0, 2, True),
    ("?n=2&last=", 0, 2, True),
]


@pytest.mark.parametrize(("query", "start", "end", "is_more"), PAGES, ids=[page[0] for page in PAGES])
@clause("Listing Tags", "?n=<int>: <int> results, or fewer only when there are no more or a Link is provided")
@clause("Listing Tags", "when n is zero, MUST be an empty list, and MUST NOT include a Link")
@clause("Listing Tags", "?last=<tagname>: what comes after it, not included, whether it is there or not; n is OPTIONAL")
async def test_part_of_the_list(tagged: Repository, query: str, start: int, end: int | None, *, is_more: bool) -> None:
    tags, link = await list_tags(tagged, query)
    assert tags == TAGS[start:end]
    assert (link is not None) == is_more


@pytest.mark.parametrize("size", [1, 2, 5, 12, 13])
@clause("Listing Tags", 'the Link MUST be as RFC 5988 says, with rel="next"')
async def test_links_lead_through_the_whole_list(tagged: Repository, size: int) -> None:
    pages = await list_all(tagged, f"?n={size}")
    assert [tag for page in pages for tag in page] == TAGS
    assert {len(page) for page in pages[:-1]} <= {size}
    after = await list_all(tagged, f"?n={size}&last=V1")
    assert [tag for page in after for tag in page] == TAGS[5:]


@clause("Listing Tags", "fewer than were asked for MAY be returned when a Link is provided")
async def test_long_lists_come_in_pages(repository: Repository) -> None:
    tags = [f"v{number:04}" for number in range(1001)]
    await push_tags(repository, tags)
    for query in ("", "?n=5000"):
        pages = await list_all(repository, query)
        assert len(pages) > 1
        assert [tag for page in pages for tag in page] == tags


@pytest.mark.parametrize("n", ["-1", "x", "", "1.5", "٣"])
@clause("Listing Tags", "<int> is an integer specifying the number of tags requested")
async def test_what_is_no_number_is_refused(tagged: Repository, n: str) -> None:
    answer = await tagged.call("GET", f"tags/list?n={n}")
    assert (answer.status_code, error_codes(answer)) == (400, ["UNSUPPORTED"])


@clause("Listing Tags", "each is a tag on the repository: the list follows what is pushed and deleted")
async def test_list_follows_changes(repository: Repository) -> None:
    await push_tags(repository, ["a", "b"])
    assert await list_tags(repository) == (["a", "b"], None)
    await repository.push_image("b")
    await repository.push_image("c")
    assert await list_tags(repository) == (["a", "b", "c"], None)
    await repository.call("DELETE", "manifests/a")
    assert await list_tags(repository) == (["b", "c"], None)
