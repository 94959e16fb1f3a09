"""What an operator may say of repositories, and the list of them."""

import asyncio

import httpx
import pytest
import pytest_asyncio

from entrepot.access.plans import parse_plans
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.conformance.clauses import clause
from tests.conformance.repository import Repository, describe, error_codes, image, index, next_link, with_query
from tests.support.served import TESTER, RegistryClient, Served

pytestmark = pytest.mark.asyncio(loop_scope="session")


def document(number: int) -> bytes:
    """A manifest that needs nothing."""
    return index(annotations={"number": str(number)})


def assert_denied(answer: httpx.Response, status: int) -> None:
    assert (answer.status_code, error_codes(answer)) == (status, ["DENIED"])


class TestImmutableTags:
    """Tags that never move: `frozen/**:v*`."""

    @pytest.fixture
    def frozen(self, repository: Repository) -> Repository:
        return repository.named(f"frozen/{repository.name}")

    async def put(self, repository: Repository, reference: str, number: int, query: str = "") -> httpx.Response:
        return await repository.put(reference, document(number), media_types.OCI_INDEX, query)

    @clause("settings: repositories.immutable_tags", "a tag that is there stays what it is, and can be pushed as it is")
    async def test_tag_does_not_move(self, frozen: Repository) -> None:
        for _ in range(2):
            assert (await self.put(frozen, "v1", 1)).status_code == 201
        assert_denied(await self.put(frozen, "v1", 2), 409)
        assert (await frozen.call("GET", "manifests/v1")).content == document(1)
        assert (await frozen.call("GET", f"manifests/{Digest.of(document(2))}")).status_code == 404

    @clause("settings: repositories.immutable_tags", "a push by digest does not move it either, nor any tag beside it")
    async def test_tag_parameters_do_not_move_it(self, frozen: Repository) -> None:
        assert (await self.put(frozen, "v1", 1)).status_code == 201
        digest = str(Digest.of(document(2)))
        assert_denied(await self.put(frozen, digest, 2, "?tag=other&tag=v1"), 409)
        assert await frozen.tags() == ["v1"]
        assert (await frozen.call("GET", f"manifests/{digest}")).status_code == 404
        assert (await self.put(frozen, digest, 2, "?tag=other&tag=v2")).status_code == 201
        assert await frozen.tags() == ["other", "v1", "v2"]

    @clause("settings: repositories.immutable_tags", "a condition that holds does not make a tag movable")
    async def test_condition_does_not_move_it(self, frozen: Repository) -> None:
        headers = {"Content-Type": media_types.OCI_INDEX, "If-Match": f'"{Digest.of(document(1))}"'}
        assert (await self.put(frozen, "v1", 1)).status_code == 201
        for number, status in ((2, 409), (1, 201)):
            answer = await frozen.call("PUT", "manifests/v1", content=document(number), headers=headers)
            assert answer.status_code == status
        assert (await frozen.call("GET", "manifests/v1")).content == document(1)
        assert (await frozen.call("DELETE", "manifests/v1", headers=headers)).status_code == 409
        assert (await frozen.call("DELETE", "manifests/v9", headers=headers)).status_code == 404

    @clause("settings: repositories.immutable_tags", "neither the tag nor what it names can be deleted")
    async def test_tag_is_not_deleted(self, frozen: Repository) -> None:
        await self.put(frozen, "v1", 1)
        await self.put(frozen, "other", 1)
        digest = Digest.of(document(1))
        for reference in ("v1", digest):
            assert_denied(await frozen.call("DELETE", f"manifests/{reference}"), 409)
        assert await frozen.tags() == ["other", "v1"]
        assert (await frozen.call("GET", f"manifests/{digest}")).status_code == 200

    @clause("settings: repositories.immutable_tags", "only what matches is immutable")
    async def test_other_tags_move(self, frozen: Repository, repository: Repository) -> None:
        for place, tag in ((frozen, "latest"), (repository, "v1")):
            for number in (1, 2):
                assert (await self.put(place, tag, number)).status_code == 201
                assert (await place.call("GET", f"manifests/{tag}")).content == document(number)
            assert (await place.call("DELETE", f"manifests/{tag}")).status_code == 202

    @clause("settings: repositories.immutable_tags", "of two that push a new tag at once, one wins")
    async def test_two_at_once(self, frozen: Repository) -> None:
        answers = await asyncio.gather(*(self.put(frozen, "v1", number) for number in range(5)))
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [201, 409, 409, 409, 409]
        assert (await frozen.call("GET", "manifests/v1")).content == document(statuses.index(201))


class TestQuotas:
    """Repositories that may hold 2,000 bytes: `small/**`."""

    @pytest.fixture
    def small(self, repository: Repository) -> Repository:
        return repository.named(f"small/{repository.name}")

    @clause("settings: repositories.quotas", "no more than that is taken, in whatever way it comes")
    async def test_what_does_not_fit_is_refused(self, small: Repository, repository: Repository) -> None:
        there = await small.push_blob(b"x" * 1500)
        content = f"{small.name:<501}".encode()
        digest = (await repository.push_blob(content))["digest"]
        location = (await small.call("POST", "blobs/uploads/")).headers["location"]
        for method, path, body in (
            ("POST", f"blobs/uploads/?digest={digest}", content),
            ("POST", f"blobs/uploads/?mount={digest}&from={repository.name}", b""),
            ("PUT", with_query(location, digest=digest), content),
        ):
            assert_denied(await small.call(method, path, content=body), 403)
            assert (await small.call("HEAD", f"blobs/{digest}")).status_code == 404
        large = index(annotations={"padding": "x" * 501})
        assert_denied(await small.put("v1", large, media_types.OCI_INDEX), 403)
        assert await small.tags() == []
        assert (await small.fetch(f"blobs/{there['digest']}")).content == b"x" * 1500

    @clause("settings: repositories.quotas", "what fits to the byte is taken, what is there already takes nothing")
    async def test_quota_is_used_up(self, small: Repository) -> None:
        blob = await small.push_blob(b"x" * (2000 - len(document(1))))
        for _ in range(2):
            assert (await small.put("v1", document(1), media_types.OCI_INDEX)).status_code == 201
        assert await small.push_blob(b"x" * (2000 - len(document(1)))) == blob
        assert_denied(await small.call("POST", f"blobs/uploads/?digest={Digest.of(b'y')}", content=b"y"), 403)
        await small.push_blob(b"")

    @clause("settings: repositories.quotas", "what is deleted makes room")
    async def test_deletion_makes_room(self, small: Repository) -> None:
        for letter in (b"x", b"y"):
            blob = await small.push_blob(letter * 1700)
            pushed = await small.push(image(blob), "v1")
            for path in (f"manifests/{pushed.digest}", f"blobs/{blob['digest']}"):
                assert (await small.call("DELETE", path)).status_code == 202

    @clause("settings: repositories.quotas", "each repository has its own, and what is refused leaves no repository")
    async def test_quota_is_of_one_repository(self, small: Repository, repository: Repository) -> None:
        for place in (small, small.named(f"{small.name}/other")):
            await place.push_blob(b"x" * 2000)
        await repository.push_blob(b"x" * 2001)
        new = small.named(f"{small.name}/new")
        answer = await new.call("POST", f"blobs/uploads/?digest={Digest.of(b'x' * 2001)}", content=b"x" * 2001)
        assert_denied(answer, 403)
        assert (await new.call("GET", "tags/list")).status_code == 404


class TestSparseManifests:
    """Repositories whose manifests may name what is not there: `sparse/**`."""

    @pytest.fixture
    def sparse(self, repository: Repository) -> Repository:
        return repository.named(f"sparse/{repository.name}")

    @clause("Push", "a registry MAY reject a manifest that names what does not exist: here it does not")
    async def test_what_is_missing_may_be_named(self, sparse: Repository) -> None:
        layer, config = b"pushed later", await sparse.push_blob(b"{}")
        content = image(config, describe(layer))
        parent = index(describe(content, media_types.OCI_MANIFEST), describe(b"never", media_types.OCI_MANIFEST))
        await sparse.push(parent, "all", media_types.OCI_INDEX)
        assert (await sparse.call("GET", "manifests/all")).content == parent
        assert (await sparse.call("GET", f"manifests/{Digest.of(content)}")).status_code == 404
        await sparse.push(content)
        assert (await sparse.call("GET", f"manifests/{Digest.of(content)}")).content == content
        assert (await sparse.call("GET", f"blobs/{Digest.of(layer)}")).status_code == 404
        await sparse.push_blob(layer)
        assert (await sparse.fetch(f"blobs/{Digest.of(layer)}")).content == layer
        await sparse.push(parent, "all", media_types.OCI_INDEX)

    @clause("image-spec, descriptor.md", "size: content that has another length SHOULD NOT be trusted")
    async def test_what_is_there_must_have_its_size(self, sparse: Repository) -> None:
        blob = await sparse.push_blob(b"layer")
        answer = await sparse.put("v1", image({**blob, "size": 6}))
        assert (answer.status_code, error_codes(answer)) == (400, ["MANIFEST_INVALID"])


# In the order of their bytes, which is nobody's alphabet.
VISIBLE = ["shelf/a", "shelf/a-b", "shelf/a.b", "shelf/a/b", "shelf/a0", "shelf/a_b", "shelf/b"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader(anywhere: Served, publisher: RegistryClient) -> RegistryClient:
    """Who may pull from VISIBLE, push to `cellar/**`, and do nothing with the rest."""
    grants = [
        {"repositories": ["shelf/*", "shelf/a/b", "shelf/a", "shelf/none"], "actions": ["pull"]},
        {"repositories": ["cellar/**"], "actions": ["push"]},
    ]
    await anywhere.parts.plans.apply(parse_plans({"plans": {"shelf": {"grants": grants}}}), TESTER)
    for name in (*reversed(VISIBLE), "shelf/a/c", "shelf/b/c", "cellar/a", "attic", "shelfish", "shel"):
        await publisher.push_blob(name, b"x")
    return await anywhere.client("shelf")


class TestCatalog:
    """`/v2/_catalog`."""

    @clause("Docker Registry HTTP API V2: Listing Repositories", "what the client may see, in lexical order")
    async def test_shows_what_the_asker_may_pull(self, reader: RegistryClient) -> None:
        answer = await reader.call("GET", "/v2/_catalog")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"repositories": VISIBLE}
        assert next_link(answer) is None

    @pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
    @clause("Docker Registry HTTP API V2: Listing Repositories", "a Link to the next page, until there is none")
    async def test_pages(self, reader: RegistryClient, outside: httpx.AsyncClient, size: int) -> None:
        pages = [
            page.json()["repositories"]
            for page in await Repository(reader, "shelf/a", outside).pages(f"/v2/_catalog?n={size}")
        ]
        assert [name for page in pages for name in page] == VISIBLE
        assert {len(page) for page in pages[:-1]} <= {size}

    @pytest.mark.parametrize(
        ("query", "start", "end", "is_more"),
        [
            ("?n=0", 0, 0, False),
            ("?n=1000000", 0, None, False),
            ("?last=shelf/a.b", 3, None, False),
            ("?n=2&last=shelf/a.b", 3, 5, True),
            ("?n=2&last=shelf/a.c", 3, 5, True),
            ("?n=2&last=shelf%2Fa.b", 3, 5, True),
            ("?n=2&last=a", 0, 2, True),
            ("?n=2&last=shelf/a_b", 6, None, False),
            ("?last=z", 7, None, False),
        ],
    )
    @clause("Docker Registry HTTP API V2: Pagination", "at most n names, after `last`, which is not included")
    async def test_part_of_the_list(
        self, reader: RegistryClient, query: str, start: int, end: int | None, *, is_more: bool
    ) -> None:
        answer = await reader.call("GET", f"/v2/_catalog{query}")
        assert answer.json() == {"repositories": VISIBLE[start:end]}
        assert (next_link(answer) is not None) == is_more

    @clause("Docker Registry HTTP API V2: Listing Repositories", "the list follows what is pushed")
    async def test_publisher_sees_more(self, reader: RegistryClient, publisher: RegistryClient) -> None:
        for last, name in (("atti", "attic"), ("cellar/", "cellar/a"), ("shel", "shelf/a"), ("shelf/b/c", "shelfish")):
            answer = await publisher.call("GET", f"/v2/_catalog?n=1&last={last}")
            assert answer.json() == {"repositories": [name]}
