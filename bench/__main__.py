"""`make bench`: Entrepot, Debian's docker-registry and nginx, side by side in one run on this machine."""

import argparse
import hashlib
import json
import os
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.load import Result, run_wrk
from bench.servers import REPOSITORY, Server, docker_registry, entrepot, nginx

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
BLOB_BYTES = 256 * 1024**2
_PIECE = 1024**2


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, epilog='Example: make bench BENCH_ARGS="--seconds 10"'
    )
    parser.add_argument("--seconds", type=int, default=5, help="length of each measurement (default 5)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="Entrepot's server processes (default: one per core)"
    )
    arguments = parser.parse_args()
    console = Console(width=170)
    with tempfile.TemporaryDirectory(prefix="entrepot-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        root = folder / "nginx-root"
        root.mkdir()
        ours = stack.enter_context(entrepot(folder, arguments.workers))
        theirs = stack.enter_context(docker_registry(folder))
        plain = stack.enter_context(nginx(folder, root))
        plain.paths["blob"] = "/blob"
        console.print(
            f"{os.cpu_count()} cores, {arguments.workers} workers, {arguments.seconds} s each, wrk on the same machine"
        )
        console.print("Filling the servers ...")
        blob = root / "blob"
        _write_blob(blob)
        uploads = {server.name: _fill(server, blob) for server in (ours, theirs)}
        _measure(console, ours, theirs, plain, uploads, arguments.seconds)


def _measure(
    console: Console, ours: Server, theirs: Server, plain: Server, uploads: dict[str, float], seconds: int
) -> None:
    table = Table("work", "Entrepot", "docker-registry", "nginx", "ratio", title="Side by side")
    for connections in (32, 256):
        for kind in ("tag", "digest"):
            mine, other = (
                run_wrk(server, server.paths[kind], connections=connections, seconds=seconds)
                for server in (ours, theirs)
            )
            table.add_row(
                f"manifest GET by {kind}, {connections} connections",
                _rate(mine),
                _rate(other),
                "",
                f"{mine.requests_per_second / other.requests_per_second:.1f}x docker-registry",
            )
    for clients in (1, 8):
        mine, other, fastest = (
            run_wrk(server, server.paths["blob"], connections=clients, seconds=seconds)
            for server in (ours, theirs, plain)
        )
        table.add_row(
            f"blob GET of 256 MiB, {clients} clients",
            *(_throughput(result) for result in (mine, other, fastest)),
            f"{mine.bytes_per_second / other.bytes_per_second:.2f}x docker-registry, "
            f"{mine.bytes_per_second / fastest.bytes_per_second:.2f}x nginx",
        )
    mine_seconds, other_seconds = uploads[ours.name], uploads[theirs.name]
    table.add_row(
        "blob upload of 256 MiB, PATCH + PUT",
        f"{BLOB_BYTES / mine_seconds / 1e6:.0f} MB/s",
        f"{BLOB_BYTES / other_seconds / 1e6:.0f} MB/s",
        "",
        f"{other_seconds / mine_seconds:.2f}x docker-registry",
    )
    console.print(table)
    alone = Table("what", "Entrepot", title="Entrepot alone")
    tokens = run_wrk(
        ours, ours.paths["token"], connections=32, seconds=seconds, authorization=ours.paths["token_basic"]
    )
    alone.add_row("tokens issued, 32 connections", _rate(tokens))
    alone.add_row("start to first answer", f"{ours.start_seconds:.2f} s")
    alone.add_row("resident memory after all this", f"{ours.resident_bytes() / 1024**2:.0f} MiB")
    console.print(alone)


def _rate(result: Result) -> str:
    wrong = f", {result.errors} refused" if result.errors else ""
    return (
        f"{result.requests_per_second:,.0f}/s, p50 {result.p50_seconds * 1000:.1f} ms, "
        f"p99 {result.p99_seconds * 1000:.1f} ms{wrong}"
    )


def _throughput(result: Result) -> str:
    wrong = f", {result.errors} refused" if result.errors else ""
    return f"{result.bytes_per_second / 1e9:.2f} GB/s, {result.cpu_seconds_per_gb:.2f} CPU s/GB{wrong}"


def _write_blob(path: Path) -> None:
    piece = os.urandom(_PIECE)
    with path.open("wb") as file:
        for number in range(BLOB_BYTES // _PIECE):
            file.write(number.to_bytes(8) + piece[8:])


def _fill(server: Server, blob: Path) -> float:
    """Push the blob, and an image that has it as its layer; answers the seconds that the blob's upload took."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    with blob.open("rb") as file:
        blob_digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    _upload(server, config, config_digest)
    begun = time.perf_counter()
    _upload(server, blob, blob_digest)
    seconds = time.perf_counter() - begun
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": blob_digest,
                    "size": blob.stat().st_size,
                }
            ],
        }
    ).encode()
    base = f"/v2/{REPOSITORY}"
    _call(server, "PUT", f"{base}/manifests/v1", manifest, {"Content-Type": MANIFEST_TYPE})
    server.paths["tag"] = f"{base}/manifests/v1"
    server.paths["digest"] = f"{base}/manifests/sha256:{hashlib.sha256(manifest).hexdigest()}"
    server.paths["blob"] = f"{base}/blobs/{blob_digest}"
    return seconds


def _upload(server: Server, content: bytes | Path, digest: str) -> None:
    location = _call(server, "POST", f"/v2/{REPOSITORY}/blobs/uploads/", b"")
    octets = {"Content-Type": "application/octet-stream"}
    if isinstance(content, Path):
        with content.open("rb") as file:
            size = str(content.stat().st_size)
            location = _call(server, "PATCH", location, file, octets | {"Content-Length": size})
        content = b""
    separator = "&" if "?" in location else "?"
    _call(server, "PUT", f"{location}{separator}digest={digest}", content, octets)


def _call(server: Server, method: str, target: str, body: object, headers: dict[str, str] | None = None) -> str:
    """One request; answers its Location."""
    url = target if target.startswith("http") else server.url + target
    request = urllib.request.Request(
        url,
        data=body,  # type: ignore[arg-type]
        method=method,
        headers={"Authorization": server.authorization, **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(answer.headers.get("Location", ""))


if __name__ == "__main__":
    main()
