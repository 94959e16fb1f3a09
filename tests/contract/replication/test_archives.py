"""OCI layouts: what we export is what others read, what others write is what we read, and nothing leads astray."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entrepot.errors import (
    ArchiveUnwritable,
    BlobUnknown,
    DigestMismatch,
    ManifestUnknown,
    NameUnknown,
    SourceError,
    SourceLied,
    SourceMissing,
    SourceUnsupported,
)
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.export import Export, Wanted
from entrepot.replication.layout_writers import open_writer
from entrepot.replication.report import Report
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.source_specs import parse_source
from entrepot.replication.sources import Sources
from tests.support.content import CONFIG_TYPE, LAYER_TYPE, Image, descriptor, index_of
from tests.support.programs import require, run_well
from tests.support.served import TESTER, RegistryClient, Served, files_below, serve

API, WEB = RepositoryName("smm/api"), RepositoryName("smm/web")
IMAGE, OTHER = Image(), Image(layer=os.urandom(3 * 1024 * 1024))
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
TRAVERSAL = "blobs/sha256/../../../../etc/passwd"


async def export(served: Served, path: Path, *wanted: str) -> dict[str, Any]:
    """Export, and what the report says."""
    report = Report()
    with open_writer(path) as writer:
        names = await Export(served.parts.registry, writer, report.note).run(map(Wanted.parse, wanted))
    return report.to_document() | {"names": names}


def name_blob(content: bytes) -> str:
    return f"blobs/sha256/{Digest.of(content).hex}"


def entry(
    content: bytes, name: str | None = "smm/api:v1", media_type: str = media_types.OCI_MANIFEST
) -> dict[str, Any]:
    """A descriptor in an index."""
    return descriptor(media_type, content) | ({} if name is None else {"annotations": {REF_NAME: name}})


def layout_of(*entries: dict[str, Any], images: tuple[Image, ...] = (IMAGE,)) -> dict[str, bytes]:
    """The files of a layout."""
    index = {"schemaVersion": 2, "manifests": list(entries) or [entry(IMAGE.manifest)]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    for image in images:
        files |= {name_blob(content): content for content in (image.config, image.layer, image.manifest)}
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


async def read(path: Path, **more: str) -> dict[str, dict[str, Digest]]:
    """What a source over a path lists."""
    async with Sources().open(parse_source("usb", {"type": "archive", "path": str(path), **more})) as source:
        return {
            name.value: {one.tag.value: await source.get_digest(name, one.tag) async for one in source.list_tags(name)}
            async for name in source.list_repositories()
        }


async def read_all(path: Path) -> bytes:
    """The layer of the one image in a layout, read as a run reads it."""
    async with Sources().open(parse_source("usb", {"type": "archive", "path": str(path)})) as source:
        manifest = await source.get_manifest(API, await source.get_digest(API, Tag("v1")))
        async with source.open_blob(API, manifest.blobs[-1]) as pieces:
            return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
async def test_what_is_exported_here_is_replicated_there(
    served: Served, publisher: RegistryClient, tmp_path: Path, name: str
) -> None:
    await publisher.push_image("smm/api", "v1", IMAGE)
    await publisher.push_image("smm/api", "v2", OTHER)
    answer = await publisher.push_manifest("smm/api", "all", index_of(IMAGE, OTHER), media_types.OCI_INDEX)
    assert answer.status_code == 201
    await publisher.push_image("smm/web", "v1", IMAGE)
    exported = await export(served, tmp_path / name, "smm/api", "smm/web:v1")
    assert exported["names"] == ["smm/api:all", "smm/api:v1", "smm/api:v2", "smm/web:v1"]
    assert exported["blobs_copied"] == 4
    async with serve(tmp_path / "there") as there:
        rule = {"source": "usb", "repositories": ["**"], "tags": {"include": ["*"]}, "target": "from/{repository}"}
        source = {"type": "archive", "path": str(tmp_path / name)}
        await there.parts.rulebook.apply(parse_rule_file({"sources": {"usb": source}, "rules": {"all": rule}}), TESTER)
        run = await there.parts.replications.run("all", TESTER)
        assert run.status == "done", run.report
        found = await there.parts.registry.read_tag_digests(
            RepositoryName("from/smm/api"), [Tag("all"), Tag("v1"), Tag("v2")]
        )
    digests = {"all": Digest.of(index_of(IMAGE, OTHER)), "v1": IMAGE.digest, "v2": OTHER.digest}
    assert {tag.value: digest for tag, digest in found.items()} == digests


async def test_what_speaks_of_an_image_is_exported_with_it(
    served: Served, publisher: RegistryClient, tmp_path: Path
) -> None:
    await publisher.push_image("smm/api", "v1", IMAGE)
    signature = Image()
    await publisher.push_image("smm/api", f"sha256-{IMAGE.digest.hex}.sig", signature)
    await publisher.push_blob("smm/api", b"{}")
    about = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [],
        "subject": descriptor(media_types.OCI_MANIFEST, IMAGE.manifest),
    }
    referrer = json.dumps(about).encode()
    assert (await publisher.push_manifest("smm/api", str(Digest.of(referrer)), referrer)).status_code == 201
    await publisher.push_image("smm/api", "v2", OTHER)
    exported = await export(served, tmp_path / "layout", "smm/api:v1")
    assert exported["names"] == [f"smm/api:sha256-{IMAGE.digest.hex}.sig", "smm/api:v1"]
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    unnamed = [one for one in index["manifests"] if "annotations" not in one]
    assert [(one["digest"], one["artifactType"]) for one in unnamed] == [
        (str(Digest.of(referrer)), "application/vnd.example.sbom")
    ]
    for content in (referrer, b"{}", signature.layer, IMAGE.layer):
        assert (tmp_path / "layout" / name_blob(content)).read_bytes() == content


async def test_an_export_into_a_folder_goes_on_where_it_stood(
    served: Served, publisher: RegistryClient, tmp_path: Path
) -> None:
    await publisher.push_image("smm/api", "v1", IMAGE)
    await publisher.push_image("smm/api", "v2", OTHER)
    row = await served.parts.registry.open_blob(API, Digest.of(OTHER.layer))
    assert row.path is not None
    away = row.path.rename(row.path.with_suffix(".away"))
    with pytest.raises(BlobUnknown):
        await export(served, tmp_path / "layout", "smm/api")
    with pytest.raises(SourceMissing, match=r"index\.json"):
        await read(tmp_path / "layout")
    away.rename(row.path)
    exported = await export(served, tmp_path / "layout", "smm/api")
    assert (exported["blobs_present"], exported["blobs_copied"]) == (3, 1)
    assert await read(tmp_path / "layout") == {"smm/api": {"v1": IMAGE.digest, "v2": OTHER.digest}}
    assert [path.name for path in (tmp_path / "layout").rglob("*.partial")] == []


async def test_a_tar_file_is_there_when_it_is_whole(served: Served, publisher: RegistryClient, tmp_path: Path) -> None:
    await publisher.push_image("smm/api", "v1", OTHER)
    row = await served.parts.registry.open_blob(API, Digest.of(OTHER.layer))
    assert row.path is not None
    content = row.path.read_bytes()
    row.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DigestMismatch, match="is damaged in storage"):
        await export(served, tmp_path / "layout.tar", "smm/api")
    assert [path.name for path in files_below(tmp_path) if path.parent == tmp_path] == []
    row.path.write_bytes(content)
    await export(served, tmp_path / "layout.tar", "smm/api")
    assert await read_all(tmp_path / "layout.tar") == OTHER.layer


async def test_a_folder_is_added_to(served: Served, publisher: RegistryClient, tmp_path: Path) -> None:
    await publisher.push_image("smm/api", "v1", IMAGE)
    await export(served, tmp_path / "layout", "smm/api")
    await publisher.push_image("smm/api", "v1", OTHER)
    await publisher.push_image("smm/web", "v1", IMAGE)
    await export(served, tmp_path / "layout", "smm/web")
    assert await read(tmp_path / "layout") == {"smm/api": {"v1": IMAGE.digest}, "smm/web": {"v1": IMAGE.digest}}
    await export(served, tmp_path / "layout", "smm/api:v1")
    assert await read(tmp_path / "layout") == {"smm/api": {"v1": OTHER.digest}, "smm/web": {"v1": IMAGE.digest}}


async def test_what_is_not_there_or_cannot_be_written_is_named(
    served: Served, publisher: RegistryClient, tmp_path: Path
) -> None:
    await publisher.push_image("smm/api", "v1", IMAGE)
    with pytest.raises(ManifestUnknown, match="smm/api has no tag v9"):
        await export(served, tmp_path / "layout", "smm/api:v9")
    with pytest.raises(NameUnknown):
        await export(served, tmp_path / "layout", "smm/none")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ArchiveUnwritable, match="holds other things than an OCI layout"):
        await export(served, tmp_path / "photos", "smm/api")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    with pytest.raises(ArchiveUnwritable, match="Not a directory"):
        await export(served, tmp_path / "photos" / "cat.jpg" / "x.tar", "smm/api")
    with open_writer(tmp_path / "layout"), pytest.raises(ArchiveUnwritable, match="another export is writing"):
        await export(served, tmp_path / "layout", "smm/api")


async def test_skopeo_reads_what_is_exported(served: Served, publisher: RegistryClient, tmp_path: Path) -> None:
    skopeo = require("skopeo")
    await publisher.push_image("smm/api", "v1", IMAGE)
    await publisher.push_image("smm/api", "v2", OTHER)
    for name, transport in (("layout", "oci"), ("layout.tar", "oci-archive")):
        await export(served, tmp_path / name, "smm/api")
        raw = run_well(skopeo, "inspect", "--raw", f"{transport}:{tmp_path / name}:smm/api:v1")
        assert raw.encode() == IMAGE.manifest
        copied = tmp_path / f"copied-{name}"
        run_well(skopeo, "copy", "--preserve-digests", f"{transport}:{tmp_path / name}:smm/api:v2", f"dir:{copied}")
        assert (copied / "manifest.json").read_bytes() == OTHER.manifest
        assert (copied / Digest.of(OTHER.layer).hex).read_bytes() == OTHER.layer


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
async def test_what_skopeo_writes_is_read(tmp_path: Path, transport: str) -> None:
    skopeo = require("skopeo")
    origin = write_folder(tmp_path / "origin", layout_of())
    path = tmp_path / ("made.tar" if transport == "oci-archive" else "made")
    run_well(skopeo, "copy", "--preserve-digests", f"oci:{origin}:smm/api:v1", f"{transport}:{path}:smm/api:v1")
    assert await read(path) == {"smm/api": {"v1": IMAGE.digest}}
    assert await read_all(path) == IMAGE.layer


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        pytest.param({REF_NAME: "smm/api:v1"}, "smm/api:v1", id="skopeo"),
        pytest.param({REF_NAME: "v1"}, "the/default:v1", id="oras"),
        pytest.param({REF_NAME: "localhost/smm/api:v1"}, "smm/api:v1", id="podman"),
        pytest.param({REF_NAME: "registry.example.com:5000/smm/api:v1"}, "smm/api:v1", id="host-and-port"),
        pytest.param({REF_NAME: "smm/api"}, "smm/api:latest", id="no-tag"),
        pytest.param({REF_NAME: "busybox:1.36"}, "busybox:1.36", id="short"),
        pytest.param(
            {REF_NAME: "v1", CONTAINERD_NAME: "docker.io/library/api:v1"}, "library/api:v1", id="containerd-and-docker"
        ),
        pytest.param({CONTAINERD_NAME: f"r.example/api@{IMAGE.digest}"}, None, id="digest-alone"),
        pytest.param({}, None, id="no-name"),
        pytest.param({REF_NAME: 7}, None, id="no-text"),
    ],
)
async def test_names_are_read_as_tools_write_them(
    tmp_path: Path, annotations: dict[str, Any], expected: str | None
) -> None:
    path = write_folder(
        tmp_path, layout_of(descriptor(media_types.OCI_MANIFEST, IMAGE.manifest) | {"annotations": annotations})
    )
    found = await read(path, repository="the/default")
    assert [f"{name}:{tag}" for name, tags in found.items() for tag in tags] == ([expected] if expected else [])


def add_member(change: Callable[[tarfile.TarInfo], None], content: bytes = b"") -> Callable[[Path], None]:
    """Put one more member into a tar file."""

    def apply(path: Path) -> None:
        with tarfile.open(path, "a") as tar:
            member = tarfile.TarInfo(name_blob(IMAGE.layer))
            change(member)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)

    return apply


def link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def hard_link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.LNKTYPE, "index.json"


def traverse(member: tarfile.TarInfo) -> None:
    member.name = TRAVERSAL


@pytest.mark.parametrize("change", [link, hard_link, traverse])
async def test_members_that_lead_elsewhere_are_not_looked_at(tmp_path: Path, change: Callable[[Any], None]) -> None:
    path = write_tar(tmp_path / "a.tar", layout_of(), prefix="./")
    add_member(change)(path)
    assert await read_all(path) == IMAGE.layer


def break_tar(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: write_tar(folder / "a.tar", layout_of() | {name: content})


def break_folder(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: write_folder(folder, layout_of() | {name: content})


def leave_out(*names: str) -> Callable[[Path], Path]:
    return lambda folder: write_folder(
        folder, {name: content for name, content in layout_of().items() if name not in names}
    )


def with_index(*entries: Any) -> Callable[[Path], Path]:
    return lambda folder: write_folder(folder, layout_of(*entries))


def linked(name: str, target: str) -> Callable[[Path], Path]:
    """A folder in which something is a link."""

    def make(folder: Path) -> Path:
        path = write_folder(folder, layout_of()) / name
        moved = path.rename(folder / "moved")
        path.symlink_to(target or moved)
        return folder

    return make


def with_fifo(folder: Path) -> Path:
    path = write_folder(folder, layout_of()) / name_blob(IMAGE.layer)
    path.unlink()
    os.mkfifo(path)
    return folder


def packed(folder: Path) -> Path:
    path = write_tar(folder / "a.tar.gz", layout_of())
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def cut(size: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        # The layer is the last member, and lies before two blocks of zeros.
        files = layout_of()
        layer = files.pop(name_blob(IMAGE.layer))
        path = write_tar(folder / "a.tar", files | {name_blob(IMAGE.layer): layer})
        with tarfile.open(path) as tar:
            start = tar.getmember(name_blob(IMAGE.layer)).offset_data
        os.truncate(path, start + size)
        return path

    return make


def raw_tar(*blocks: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "a.tar"
        path.write_bytes(b"".join(blocks) + bytes(1024))
        return path

    return make


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


OTHER_LAYER = os.urandom(len(IMAGE.layer))

BROKEN = [
    pytest.param(lambda folder: folder / "none", SourceMissing, "no such file", id="nothing"),
    pytest.param(leave_out("oci-layout"), SourceMissing, "no OCI layout, which has the files", id="no-marker"),
    pytest.param(leave_out("index.json"), SourceMissing, "no OCI layout, which has the files", id="no-index"),
    pytest.param(break_folder("oci-layout", b"{}"), SourceUnsupported, "does not say version 1.0.0", id="version"),
    pytest.param(break_folder("index.json", b"<html>"), SourceLied, "no list of manifests", id="html-as-index"),
    pytest.param(break_folder("index.json", b"[" * 100_000), SourceLied, "no list of manifests", id="deep-index"),
    pytest.param(break_folder("index.json", b" " * 17_000_000), SourceLied, "more than the 16777216", id="huge-index"),
    pytest.param(with_index(entry(b"x", "v1")), SourceUnsupported, "give the source a repository", id="tag-alone"),
    pytest.param(with_index(entry(b"x", "SMM/api:v1")), SourceLied, "which is no image", id="bad-name"),
    pytest.param(with_index(entry(b"x"), entry(b"y")), SourceLied, "names smm/api:v1 twice", id="twice"),
    pytest.param(
        with_index({"annotations": {REF_NAME: "smm/api:v1"}}), SourceLied, r"manifests\[0\]", id="no-descriptor"
    ),
    pytest.param(packed, SourceLied, "compressed with gzip; unpack it", id="compressed"),
    pytest.param(break_tar(name_blob(IMAGE.manifest), b"{}"), SourceLied, "has another digest", id="other-manifest"),
    pytest.param(
        break_tar(name_blob(IMAGE.manifest), b" " * 5_000_000), SourceLied, "more than the 4194304", id="huge-manifest"
    ),
    pytest.param(leave_out(name_blob(IMAGE.manifest)), SourceMissing, "no such file", id="no-manifest"),
    pytest.param(leave_out(name_blob(IMAGE.layer)), SourceMissing, "no such file", id="no-blob"),
    pytest.param(break_folder(name_blob(IMAGE.layer), b"x"), SourceLied, "has 1 bytes, its manifest", id="short-blob"),
    pytest.param(cut(500), SourceLied, "ends too early|can be read", id="cut-off"),
    pytest.param(linked(name_blob(IMAGE.layer), ""), SourceLied, "symbolic link", id="linked-blob"),
    pytest.param(linked("index.json", "/etc/passwd"), SourceLied, "symbolic link", id="linked-index"),
    pytest.param(linked("blobs", ""), SourceLied, "symbolic link", id="linked-folder"),
    pytest.param(with_fifo, SourceLied, "no plain file", id="fifo"),
    pytest.param(raw_tar(os.urandom(2048)), SourceLied, "neither a folder nor a tar file", id="noise"),
    pytest.param(raw_tar(), SourceMissing, "no OCI layout", id="empty"),
    pytest.param(raw_tar(header("x", 1 << 33, tarfile.XHDTYPE)), SourceLied, "a header of", id="huge-header"),
    pytest.param(raw_tar(header("x", -512), bytes(512)), SourceLied, "neither|overlap", id="backwards"),
]


@pytest.mark.parametrize(("make", "kind", "problem"), BROKEN)
async def test_a_broken_archive_is_named(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[SourceError], problem: str
) -> None:
    with pytest.raises(kind, match=problem) as refusal:
        await read_all(make(tmp_path))
    assert str(refusal.value).startswith("source usb: ")


async def test_a_blob_with_another_digest_is_not_kept(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", layout_of() | {name_blob(IMAGE.layer): OTHER_LAYER})
    async with serve(tmp_path / "data") as served:
        rule = {"source": "usb", "repositories": ["**"], "tags": {"include": ["*"]}}
        document = {"sources": {"usb": {"type": "archive", "path": str(path)}}, "rules": {"all": rule}}
        await served.parts.rulebook.apply(parse_rule_file(document), TESTER)
        run = await served.parts.replications.run("all", TESTER)
        assert "source usb: blob" in run.report["failures"][0]["problem"]
        assert await served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}


async def test_a_manifest_need_not_state_its_type(tmp_path: Path) -> None:
    document = {
        "schemaVersion": 2,
        "config": descriptor(CONFIG_TYPE, IMAGE.config),
        "layers": [descriptor(LAYER_TYPE, IMAGE.layer)],
    }
    image = json.dumps(document).encode()
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor(media_types.OCI_MANIFEST, image)]}).encode()
    files = layout_of(entry(index)) | {name_blob(content): content for content in (image, index)}
    source = {"type": "archive", "path": str(write_folder(tmp_path, files))}
    async with Sources().open(parse_source("usb", source)) as opened:
        top = await opened.get_manifest(API, Tag("v1"))
        assert top == Manifest.parse(index, media_types.OCI_INDEX)
        assert (await opened.get_manifest(API, Digest.of(image))).media_type == media_types.OCI_MANIFEST
        with pytest.raises(SourceMissing):
            async with opened.open_blob(API, Descriptor("x/y", Digest.of(b"none"), 4)) as pieces:
                await anext(pieces)
