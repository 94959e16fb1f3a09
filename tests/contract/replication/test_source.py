"""What every source must do, whatever registry is behind it."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from yarl import URL

from entrepot.errors import SourceDenied, SourceLoginMissing, SourceMissing
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import RepositoryName, Tag, referrers_tag
from entrepot.replication.backoff import Backoff
from entrepot.replication.registry_source import open_registry
from entrepot.replication.rules import SourceSpec
from entrepot.replication.source import Source
from tests.support.content import Image, descriptor, index_of
from tests.support.hostile import serving
from tests.support.programs import Entrepot, docker_registry

PASSWORD_VARIABLE = "CONTRACT_PASSWORD"
API = RepositoryName("smm/api")
IMAGE, OTHER = Image(), Image(layer=os.urandom(5 * 1024 * 1024))
SUBJECT = descriptor(media_types.OCI_MANIFEST, IMAGE.manifest)
# What speaks of the image, as documents that differ in their annotations alone.
REFERRERS = [
    json.dumps(json.loads(IMAGE.manifest) | {"subject": SUBJECT, "annotations": {"number": str(number)}}).encode()
    for number in range(5)
]
FALLBACK = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [descriptor(media_types.OCI_MANIFEST, content) for content in REFERRERS],
    }
).encode()
QUICK = Backoff(attempts=2, first_seconds=0.01)


@dataclass(frozen=True)
class Filled:
    """A registry with content: `smm/api` with v1, v2 (an index), v3 and what speaks of v1, and `smm/web` with v1."""

    url: str
    username: str | None = None
    password: str = ""

    @property
    def spec(self) -> SourceSpec:
        login = {"username": self.username, "password_env": PASSWORD_VARIABLE} if self.username else {}
        return SourceSpec("filled", URL(self.url), **login)


def push(url: str, username: str, password: str) -> None:
    """Push the content with Basic, as far as these registries take it."""
    with httpx.Client(base_url=url, auth=(username, password), timeout=60) as http:
        for name, tags in (("smm/api", {"v1": IMAGE, "v3": OTHER}), ("smm/web", {"v1": IMAGE})):
            for tag, image in tags.items():
                for blob in (image.config, image.layer):
                    location = http.post(f"/v2/{name}/blobs/uploads/").headers["location"]
                    separator = "&" if "?" in location else "?"
                    http.put(f"{location}{separator}digest={Digest.of(blob)}", content=blob).raise_for_status()
                headers = {"Content-Type": media_types.OCI_MANIFEST}
                http.put(f"/v2/{name}/manifests/{tag}", content=image.manifest, headers=headers).raise_for_status()
        headers = {"Content-Type": media_types.OCI_INDEX}
        index = index_of(IMAGE, OTHER)
        http.put("/v2/smm/api/manifests/v2", content=index, headers=headers).raise_for_status()
        answers = [
            http.put(
                f"/v2/smm/api/manifests/{Digest.of(content)}",
                content=content,
                headers={"Content-Type": media_types.OCI_MANIFEST},
            ).raise_for_status()
            for content in REFERRERS
        ]
        if not all("OCI-Subject" in answer.headers for answer in answers):  # then clients keep the list themselves
            tag = referrers_tag(IMAGE.digest)
            http.put(f"/v2/smm/api/manifests/{tag}", content=FALLBACK, headers=headers).raise_for_status()


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """The CNCF distribution, with Basic."""
    with docker_registry(tmp_path_factory.mktemp("distribution"), "reader", "secret") as host:
        push(f"http://{host}", "reader", "secret")
        yield Filled(f"http://{host}", "reader", "secret")


@pytest.fixture(scope="module")
def entrepot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Entrepot itself, with tokens."""
    program = Entrepot(tmp_path_factory.mktemp("entrepot") / "data")
    program.apply_plans({"all": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}})
    credential = program.issue("reader", "all")
    with program.serving("--no-jobs"):
        push(program.url, credential.username, credential.secret)
        yield Filled(program.url, credential.username, credential.secret)


@pytest.fixture
async def hostile() -> AsyncIterator[Filled]:
    """The registry of the fault tests, which must be a good one as long as it is not told otherwise."""
    async with serving() as registry:
        for name, tags in (("smm/api", {"v1": IMAGE, "v3": OTHER}), ("smm/web", {"v1": IMAGE})):
            for tag, image in tags.items():
                registry.put_image(name, tag, image)
        registry.put_index("smm/api", "v2", IMAGE, OTHER)
        for content in REFERRERS:
            registry.put_manifest("smm/api", content, media_types.OCI_MANIFEST)
        registry.page = 2
        registry.has_referrers = True
        yield Filled(registry.url)


@pytest.fixture(params=["distribution", "entrepot", "hostile"])
def filled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Filled:
    found: Filled = request.getfixturevalue(request.param)
    monkeypatch.setenv(PASSWORD_VARIABLE, found.password)
    return found


@pytest.fixture
async def source(filled: Filled) -> AsyncIterator[Source]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_registry(filled.spec, backoff=QUICK))


async def test_repositories_are_listed(source: Source) -> None:
    assert sorted([name async for name in source.list_repositories()]) == [API, RepositoryName("smm/web")]


async def test_tags_are_listed(source: Source) -> None:
    found = sorted([tag async for tag in source.list_tags(API)])
    assert [tag for tag in found if tag != referrers_tag(IMAGE.digest)] == [Tag("v1"), Tag("v2"), Tag("v3")]


async def test_what_speaks_of_a_manifest_is_listed(source: Source) -> None:
    expected = {Digest.of(content) for content in REFERRERS}
    for _ in range(2):  # the second time, what the registry cannot do is known
        assert {entry.digest for entry in await source.list_referrers(API, IMAGE.digest)} == expected
    for repository, subject in (
        (API, OTHER.digest),
        (API, Digest.of(b"none")),
        (RepositoryName("smm/none"), IMAGE.digest),
    ):
        assert await source.list_referrers(repository, subject) == []


@pytest.mark.parametrize(("tag", "content"), [("v1", IMAGE.manifest), ("v2", index_of(IMAGE, OTHER))])
async def test_a_tag_has_the_digest_of_its_manifest(source: Source, tag: str, content: bytes) -> None:
    assert await source.get_digest(API, Tag(tag)) == Digest.of(content)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("v1", Manifest.parse(IMAGE.manifest)),
        ("v2", Manifest.parse(index_of(IMAGE, OTHER))),
    ],
)
async def test_a_manifest_is_read_by_tag_and_by_digest(source: Source, tag: str, expected: Manifest) -> None:
    assert await source.get_manifest(API, Tag(tag)) == expected
    assert await source.get_manifest(API, expected.digest) == expected


async def test_a_blob_is_read_piece_by_piece(source: Source) -> None:
    (blob,) = (blob for blob in Manifest.parse(OTHER.manifest).blobs if blob.size == len(OTHER.layer))
    async with source.open_blob(API, blob) as pieces:
        content = [piece async for piece in pieces]
    assert b"".join(content) == OTHER.layer
    assert len(content) > 1


async def test_what_is_not_there_is_missing(source: Source) -> None:
    with pytest.raises(SourceMissing):
        _ = [tag async for tag in source.list_tags(RepositoryName("smm/none"))]
    with pytest.raises(SourceMissing):
        await source.get_digest(API, Tag("none"))
    with pytest.raises(SourceMissing):
        await source.get_manifest(API, Digest.of(b"none"))
    async with source.open_blob(API, Descriptor("x/y", Digest.of(b"none"), 4)) as pieces:
        with pytest.raises(SourceMissing):
            await anext(pieces)


async def test_a_wrong_password_is_refused_and_not_shown(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    if filled.username is None:
        return  # it asks nobody for a password
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-password")
    async with open_registry(filled.spec, backoff=QUICK) as source:
        with pytest.raises(SourceDenied) as refusal:
            await source.get_digest(API, Tag("v1"))
    assert "wrong-password" not in str(refusal.value)


async def test_a_login_that_cannot_be_read_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    spec = SourceSpec("filled", URL("http://127.0.0.1:1"), "reader", password_file=str(tmp_path / "none"))
    with pytest.raises(SourceLoginMissing, match=r"password_file .*No such file"):
        async with open_registry(spec):
            pass
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SourceLoginMissing, match="is empty"):
        async with open_registry(replace(spec, password_file=str(tmp_path / "empty"))):
            pass
    with pytest.raises(SourceLoginMissing, match="NO_SUCH_VARIABLE"):
        async with open_registry(replace(spec, password_file=None, password_env="NO_SUCH_VARIABLE")):
            pass
    with pytest.raises(SourceLoginMissing, match="holds no certificates"):
        async with open_registry(SourceSpec("filled", URL("http://127.0.0.1:1"), ca_file=str(tmp_path / "empty"))):
            pass
