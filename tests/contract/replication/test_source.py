"""What every source must do, whatever is behind it."""

import json
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrepot.errors import SourceDenied, SourceLoginMissing, SourceMissing
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import RepositoryName, Tag, referrers_tag
from entrepot.replication.backoff import Backoff
from entrepot.replication.source import Source
from entrepot.replication.source_specs import SourceSpec, parse_source
from entrepot.replication.sources import Sources
from tests.support.aws import ACCOUNT, TOKEN_OF, Moto
from tests.support.content import Image, descriptor, index_of
from tests.support.forward_proxy import forward_proxy
from tests.support.hostile import serving
from tests.support.programs import Entrepot, docker_registry
from tests.support.servers import make_certificate

PASSWORD_VARIABLE = "CONTRACT_PASSWORD"
REGION = "eu-west-1"
API = RepositoryName("smm/api")
IMAGE, OTHER = Image(), Image(layer=os.urandom(5 * 1024 * 1024))
INDEX = index_of(IMAGE, OTHER)
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
    """A source with content: `smm/api` with v1, v2 (an index), v3 and what speaks of v1, and `smm/web` with v1.

    `tells` is what its list says of a tag beside its name.
    """

    document: dict[str, Any]
    password: str = ""
    tells: frozenset[str] = frozenset()

    @property
    def spec(self) -> SourceSpec:
        return parse_source("filled", self.document)


def with_login(url: str, username: str, password: str, **more: Any) -> Filled:
    """A registry with a login."""
    document = {"type": "oci", "url": url, "username": username, "password_env": PASSWORD_VARIABLE, **more}
    return Filled(document, password)


def push(url: str, username: str, password: str, certificate: Path | None = None) -> None:
    """Push the content with Basic, as far as these registries take it."""
    trusted: Any = ssl.create_default_context(cafile=certificate) if certificate else False
    with httpx.Client(base_url=url, auth=(username, password), timeout=60, verify=trusted) as http:
        for name, tags in (("smm/api", {"v1": IMAGE, "v3": OTHER}), ("smm/web", {"v1": IMAGE})):
            for tag, image in tags.items():
                for blob in (image.config, image.layer):
                    location = http.post(f"/v2/{name}/blobs/uploads/").headers["location"]
                    separator = "&" if "?" in location else "?"
                    http.put(f"{location}{separator}digest={Digest.of(blob)}", content=blob).raise_for_status()
                headers = {"Content-Type": media_types.OCI_MANIFEST}
                http.put(f"/v2/{name}/manifests/{tag}", content=image.manifest, headers=headers).raise_for_status()
        headers = {"Content-Type": media_types.OCI_INDEX}
        http.put("/v2/smm/api/manifests/v2", content=INDEX, headers=headers).raise_for_status()
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
        yield with_login(f"http://{host}", "reader", "secret")


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """The same over TLS with an authority of its own, through a proxy."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = make_certificate(folder)
    with docker_registry(folder, "reader", "secret", (key, certificate)) as host, forward_proxy() as proxy:
        push(f"https://{host}", "reader", "secret", certificate)
        yield with_login(f"https://{host}", "reader", "secret", ca_file=str(certificate), proxy=proxy.url)
        assert set(proxy.asked) == {host}


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Entrepot, Filled]]:
    """An Entrepot, and how to log in there."""
    program = Entrepot(tmp_path_factory.mktemp("entrepot") / "data")
    program.apply_plans({"all": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}})
    credential = program.issue("reader", "all")
    with program.serving("--no-jobs"):
        push(program.url, credential.username, credential.secret)
        yield program, with_login(program.url, credential.username, credential.secret)


@pytest.fixture(scope="module")
def entrepot(another: tuple[Entrepot, Filled]) -> Filled:
    """Entrepot itself, with tokens."""
    return another[1]


@pytest.fixture(scope="module")
def folder(another: tuple[Entrepot, Filled], tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """What an Entrepot exported into a folder."""
    path = tmp_path_factory.mktemp("folder") / "layout"
    printed = another[0].run("replicate", "export", "smm/api", "smm/web", "--to", path)
    assert f"{path}: 4 tags, 4 blobs (5.2 MB) written, 12 were there\n" in printed
    return Filled({"type": "archive", "path": str(path)}, tells=frozenset({"digest"}))


@pytest.fixture(scope="module")
def tar(another: tuple[Entrepot, Filled], tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """What an Entrepot exported into a tar file."""
    path = tmp_path_factory.mktemp("tar") / "layout.tar"
    printed = json.loads(another[0].run("replicate", "export", "smm/api", "smm/web", "--to", path, "--json"))
    assert printed["tags"] == ["smm/api:v1", "smm/api:v2", "smm/api:v3", "smm/web:v1"]
    return Filled({"type": "archive", "path": str(path)}, tells=frozenset({"digest"}))


@pytest.fixture(scope="module")
def ecr(moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """ECR's API, with the CNCF distribution for what AWS has behind `/v2/`."""
    token = TOKEN_OF.format(account=ACCOUNT)
    with docker_registry(tmp_path_factory.mktemp("ecr"), "AWS", token) as host:
        push(f"http://{host}", "AWS", token)
        for tag, content, media_type in (
            ("v1", IMAGE.manifest, media_types.OCI_MANIFEST),
            ("v2", INDEX, media_types.OCI_INDEX),
            ("v3", OTHER.manifest, media_types.OCI_MANIFEST),
        ):
            moto.put_manifest(REGION, "smm/api", tag, content, media_type)
        moto.put_manifest(REGION, "smm/web", "v1", IMAGE.manifest, media_types.OCI_MANIFEST)
        document = {
            "type": "ecr",
            "account": ACCOUNT,
            "region": REGION,
            "endpoint": moto.url,
            "url": f"http://{host}",
            "access_key_id": "AKIAIOSFODNN7EXAMPLE",
            "secret_access_key_env": PASSWORD_VARIABLE,
        }
        yield Filled(document, "secret", tells=frozenset({"digest", "pushed_at"}))


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
        yield Filled({"type": "oci", "url": registry.url})


@pytest.fixture(params=["distribution", "behind_proxy", "entrepot", "hostile", "ecr", "folder", "tar"])
def filled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Filled:
    found: Filled = request.getfixturevalue(request.param)
    monkeypatch.setenv(PASSWORD_VARIABLE, found.password)
    return found


@pytest.fixture
async def source(filled: Filled) -> AsyncIterator[Source]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(Sources(backoff=QUICK).open(filled.spec))


async def test_repositories_are_listed(source: Source) -> None:
    assert sorted([name async for name in source.list_repositories()]) == [API, RepositoryName("smm/web")]


async def test_tags_are_listed_with_what_the_list_says_of_them(filled: Filled, source: Source) -> None:
    entries = sorted([entry async for entry in source.list_tags(API)], key=lambda entry: entry.tag)
    entries = [entry for entry in entries if entry.tag != referrers_tag(IMAGE.digest)]
    assert [entry.tag for entry in entries] == [Tag("v1"), Tag("v2"), Tag("v3")]
    if "digest" in filled.tells:
        assert [entry.digest for entry in entries] == list(map(Digest.of, (IMAGE.manifest, INDEX, OTHER.manifest)))
    if "pushed_at" in filled.tells:
        now = datetime.now(UTC)
        assert all(entry.pushed_at and now - timedelta(hours=1) < entry.pushed_at <= now for entry in entries)


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


@pytest.mark.parametrize(("tag", "content"), [("v1", IMAGE.manifest), ("v2", INDEX)])
async def test_a_tag_has_the_digest_of_its_manifest(source: Source, tag: str, content: bytes) -> None:
    assert await source.get_digest(API, Tag(tag)) == Digest.of(content)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("v1", Manifest.parse(IMAGE.manifest)),
        ("v2", Manifest.parse(INDEX)),
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


async def test_a_source_reads_back_as_it_was_written(filled: Filled) -> None:
    assert parse_source("filled", filled.spec.to_document()) == filled.spec
    assert filled.spec.to_document() == filled.document


async def test_a_wrong_password_is_refused_and_not_shown(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    if "username" not in filled.document:
        return  # it asks nobody for a password
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-password")
    async with Sources(backoff=QUICK).open(filled.spec) as source:
        with pytest.raises(SourceDenied) as refusal:
            await source.get_digest(API, Tag("v1"))
    assert "wrong-password" not in str(refusal.value)


@pytest.mark.parametrize(
    ("login", "problem"),
    [
        pytest.param({"password_file": "{folder}/none"}, r"password_file .*No such file", id="no-file"),
        pytest.param({"password_file": "{folder}/empty"}, "is empty", id="empty"),
        pytest.param({"password_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE", id="no-variable"),
        pytest.param(
            {"password_env": PASSWORD_VARIABLE, "ca_file": "{folder}/empty"}, "holds no certificates", id="ca"
        ),
    ],
)
async def test_a_login_that_cannot_be_read_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: dict[str, str], problem: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    document = {"type": "oci", "url": "http://127.0.0.1:1", "username": "reader"}
    spec = parse_source("x", document | {name: text.format(folder=tmp_path) for name, text in login.items()})
    with pytest.raises(SourceLoginMissing, match=problem):
        async with Sources().open(spec):
            pass
