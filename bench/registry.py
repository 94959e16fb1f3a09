"""Entrepot, Debian's docker-registry and nginx, side by side."""

import hashlib
import json
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from bench.load import Result, run_wrk
from bench.results import Row, Section
from bench.servers import REPOSITORY, Server, docker_registry, entrepot, find_program, nginx
from bench.upload import Blob, Connection, push_blob, push_blobs

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LARGE_BYTES = 256 * 1024**2
SMALL_BYTES = 100_000
PART_BYTES = 1024**2
PARALLEL = 8
PARALLEL_BYTES = 64 * 1024**2
IMAGE_LAYERS = 5
IMAGE_LAYER_BYTES = 100_000_000
_REPEATED = 3


def measure(console: Console, folder: Path, *, workers: int, seconds: int) -> list[Section]:
    """Every comparison."""
    _touch_memory()
    with ExitStack() as stack:
        root = folder / "nginx-root"
        root.mkdir()
        ours = stack.enter_context(entrepot(folder, workers))
        theirs = stack.enter_context(docker_registry(folder))
        plain = stack.enter_context(nginx(folder, root))
        console.print("filling the servers ...")
        # In turns, so that neither finds the disk busy with what the other wrote.
        uploads = _push_large(folder, ours, theirs)
        large, small = Blob.make(root / "large", LARGE_BYTES), Blob.make(root / "small", SMALL_BYTES)
        for server in (ours, theirs):
            _fill(server, large, small)
        plain.paths |= {"large": "/large", "small": "/small"}
        rows = [
            *_measure_manifests(console, ours, theirs, seconds),
            *_measure_blobs(console, ours, theirs, plain, seconds),
            *uploads,
            *_measure_image(console, folder, ours, theirs),
        ]
        alone = [
            Row("start to first answer", {"Entrepot": f"{ours.start_seconds:.2f} s"}, target="<= 1 s"),
            Row(
                f"resident memory of {workers} workers and their supervisor after all this",
                {"Entrepot": f"{ours.resident_bytes() / 1024**2:.0f} MiB"},
                target="<= 200 MiB",
            ),
        ]
        notes = f"{workers} workers, {seconds} s each; CPU is the server's, per 10^9 bytes that it sent."
        return [Section("Side by side", rows, notes), Section("Alone", alone)]


def _touch_memory() -> None:
    """Use most of the free memory once: a virtual machine gets some of it only then, and whoever is first would pay."""
    free = os.sysconf("SC_AVPHYS_PAGES") * 3 // 4
    page = os.sysconf("SC_PAGE_SIZE")
    with mmap.mmap(-1, free * page) as memory:
        for number in range(free):
            memory[number * page] = 1


def _measure_manifests(console: Console, ours: Server, theirs: Server, seconds: int) -> list[Row]:
    rows = []
    for connections in (32, 256):
        for kind in ("tag", "digest"):
            work = f"manifest GET by {kind}, {connections} connections"
            console.print(work)
            mine, other = (
                run_wrk(one, one.paths[kind], connections=connections, seconds=seconds) for one in (ours, theirs)
            )
            ratio = mine.requests_per_second / other.requests_per_second
            cells = {ours.name: _rate(mine), theirs.name: _rate(other)}
            rows.append(Row(work, cells, {theirs.name: ratio}, ">= 20x, p99 below its p50"))
    return rows


def _measure_blobs(console: Console, ours: Server, theirs: Server, plain: Server, seconds: int) -> list[Row]:
    rows = []
    for clients, target in ((1, ">= 0.97x nginx"), (8, ">= 1.1x docker-registry, >= 0.97x nginx, less CPU")):
        work = f"blob GET of 256 MiB, {clients} client{'s' if clients > 1 else ''}"
        console.print(work)
        results = {
            one.name: run_wrk(one, one.paths["large"], connections=clients, seconds=seconds)
            for one in (ours, theirs, plain)
        }
        rows.append(_compare_throughput(work, results, target))
    console.print("parts and small blobs")
    part = {
        one.name: run_wrk(
            one,
            one.paths["large"],
            connections=8,
            seconds=seconds,
            headers={"Range": f"bytes=1000000-{999999 + PART_BYTES}"},
        )
        for one in (ours, theirs, plain)
    }
    rows.append(_compare_throughput("blob GET, a range of 1 MiB, 8 clients", part, ">= 1.1x docker-registry"))
    mine, other = (run_wrk(one, one.paths["small"], connections=32, seconds=seconds) for one in (ours, theirs))
    ratio = mine.requests_per_second / other.requests_per_second
    cells = {ours.name: _rate(mine), theirs.name: _rate(other)}
    rows.append(Row("blob GET of 100 KB, 32 connections", cells, {theirs.name: ratio}, ">= 8x"))
    return rows


def _compare_throughput(work: str, results: dict[str, Result], target: str) -> Row:
    mine, *others = results.items()
    ratios = {name: mine[1].bytes_per_second / result.bytes_per_second for name, result in others}
    return Row(work, {name: _throughput(result) for name, result in results.items()}, ratios, target)


def _push_large(folder: Path, ours: Server, theirs: Server) -> list[Row]:
    """One large upload, and eight at once; the best of some, since the first ones also warm the page cache."""
    one: dict[str, float] = {}
    many: dict[str, float] = {}
    for number in range(_REPEATED):
        blob = Blob.make(folder / f"upload-{number}", LARGE_BYTES)
        several = [Blob.make(folder / f"upload-{number}-{part}", PARALLEL_BYTES) for part in range(PARALLEL)]
        for server in (ours, theirs) if number % 2 else (theirs, ours):
            one[server.name] = min(push_blob(server, blob), one.get(server.name, float("inf")))
            many[server.name] = min(push_blobs(server, several), many.get(server.name, float("inf")))
        for used in (blob, *several):
            used.path.unlink()
    return [
        Row(
            work,
            {name: f"{size / seconds / 1e6:.0f} MB/s" for name, seconds in taken.items()},
            {theirs.name: taken[theirs.name] / taken[ours.name]},
            target,
        )
        for work, size, taken, target in (
            ("blob upload of 256 MiB, PATCH + PUT", LARGE_BYTES, one, ">= 3x"),
            (f"{PARALLEL} blob uploads of 64 MiB at once", PARALLEL * PARALLEL_BYTES, many, "scales to the cores"),
        )
    ]


def _measure_image(console: Console, folder: Path, ours: Server, theirs: Server) -> list[Row]:
    """A whole pull with skopeo, best of some, in turns."""
    console.print("pulling a whole image with skopeo")
    layers = [Blob.make(folder / f"layer-{number}", IMAGE_LAYER_BYTES) for number in range(IMAGE_LAYERS)]
    for server in (ours, theirs):
        for layer in layers:
            push_blob(server, layer, f"{REPOSITORY}-500mb")
        put_image(server, f"{REPOSITORY}-500mb", layers)
    taken: dict[str, float] = {}
    for number in range(_REPEATED * 2):
        for server in (ours, theirs) if number % 2 else (theirs, ours):
            taken[server.name] = min(_skopeo_pull(folder, server), taken.get(server.name, float("inf")))
    cells = {name: f"{seconds:.2f} s" for name, seconds in taken.items()}
    ratio = taken[theirs.name] / taken[ours.name]
    return [Row("skopeo copy of a 500 MB image, 5 layers", cells, {theirs.name: ratio}, ">= 1x")]


def _skopeo_pull(folder: Path, server: Server) -> float:
    target = folder / "pulled"
    shutil.rmtree(target, ignore_errors=True)
    name = f"docker://{server.url.removeprefix('http://')}/{REPOSITORY}-500mb:v1"
    token = server.authorization.partition(" ")[2]
    command = [find_program("skopeo"), "copy", "-q", "--src-tls-verify=false", "--src-registry-token", token, name]
    begun = time.perf_counter()
    subprocess.run([*command, f"dir:{target}"], check=True, capture_output=True)
    return time.perf_counter() - begun


def _fill(server: Server, large: Blob, small: Blob) -> None:
    """Push both blobs, and an image that has them as its layers."""
    for kind, blob in (("large", large), ("small", small)):
        push_blob(server, blob)
        server.paths[kind] = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
    manifest = put_image(server, REPOSITORY, [large, small])
    server.paths["tag"] = f"/v2/{REPOSITORY}/manifests/v1"
    server.paths["digest"] = f"/v2/{REPOSITORY}/manifests/sha256:{hashlib.sha256(manifest).hexdigest()}"


def fill_small(folder: Path, server: Server) -> None:
    """Push an image of one small layer."""
    blob = Blob.make(folder / "layer", SMALL_BYTES)
    push_blob(server, blob)
    put_image(server, REPOSITORY, [blob])
    server.paths["tag"] = f"/v2/{REPOSITORY}/manifests/v1"


def put_image(server: Server, repository: str, layers: list[Blob], tag: str = "v1") -> bytes:
    """Push an image of these layers, which are there already; answers its manifest."""
    content = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(json.dumps(content).encode())
        config = Blob(path, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
        push_blob(server, config, repository)
        config_size = config.size
    layer_type = "application/vnd.oci.image.layer.v1.tar"
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest,
            "size": config_size,
        },
        "layers": [{"mediaType": layer_type, "digest": layer.digest, "size": layer.size} for layer in layers],
    }
    body = json.dumps(manifest).encode()
    connection = Connection(server)
    connection.call("PUT", f"/v2/{repository}/manifests/{tag}", body, {"Content-Type": MANIFEST_TYPE})
    connection.close()
    return body


def _rate(result: Result) -> str:
    wrong = f", {result.errors} refused" if result.errors else ""
    p50, p99 = result.p50_seconds * 1000, result.p99_seconds * 1000
    return f"{result.requests_per_second:,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms{wrong}"


def _throughput(result: Result) -> str:
    wrong = f", {result.errors} refused" if result.errors else ""
    return f"{result.bytes_per_second / 1e9:.2f} GB/s, {result.cpu_seconds_per_gb:.2f} CPU s/GB{wrong}"
