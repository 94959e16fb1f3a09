"""Replication beside `skopeo sync`, from the same source to a registry each; how soon a push is here; and long lists.

A run of ours begins with a call of a server that runs and ends when the call for its state says so; one of skopeo's
with a program that starts, since that is how each is used.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.registry import MANIFEST_TYPE, put_image
from bench.results import Row, Section
from bench.servers import Server, entrepot, find_program, open_registry, run_entrepot
from bench.upload import Blob, Connection, push_blob
from tests.support.aws import ACCOUNT, TOKEN_OF, Moto, moto_server
from tests.support.servers import environment_of

# Families of images: what images of one share, and what each has for itself.
_FAMILIES, _IMAGES = 5, 50
_SHARED_BYTES = (12_000_000, 8_000_000, 4_000_000)
_OWN_BYTES = (1_500_000, 300_000)
_LARGE_IMAGES, _LARGE_BYTES = 10, (120_000_000, 80_000_000)
_TURNS = 3
_PUSHES = 10
_TAGS = 10_000
_PATIENCE_SECONDS = 60
_REGION = "eu-west-1"
_KEYS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}


def measure(console: Console, folder: Path) -> list[Section]:
    """The seconds of whole runs, of a push, and of a plan."""
    rows = _measure_runs(console, folder)
    with moto_server(folder) as moto:
        rows.append(_measure_push(console, folder, moto))
        rows.append(_measure_list(console, folder, moto))
    notes = (
        f"{_IMAGES} images: {_FAMILIES} families, each with layers of {_megabytes(_SHARED_BYTES)} that its images "
        f"share; each image has {_megabytes(_OWN_BYTES)} of its own. Large ones have layers of "
        f"{_megabytes(_LARGE_BYTES)}. The source is a docker-registry, skopeo syncs to another. Best of {_TURNS}, in "
        "turns. moto plays ECR and SQS."
    )
    return [Section("Replication", rows, notes)]


def _megabytes(sizes: tuple[int, ...]) -> str:
    return " + ".join(f"{size / 1e6:g}" for size in sizes) + " MB"


def _measure_runs(console: Console, folder: Path) -> list[Row]:
    works = {
        f"{_IMAGES} images with shared layers": lambda source: _fill_families(folder, source),
        f"{_LARGE_IMAGES} images of {sum(_LARGE_BYTES) / 1e6:.0f} MB": lambda source: _fill_large(folder, source),
    }
    rows = []
    for work, fill in works.items():
        console.print(f"replicating {work} ...")
        with open_registry(folder, "source") as source:
            names = fill(source)
            first: dict[str, float] = {}
            again: dict[str, float] = {}
            for number in range(_TURNS):
                sides = [("Entrepot", _entrepot_side), ("skopeo sync", _skopeo_side)]
                for name, side in reversed(sides) if number % 2 else sides:
                    with side(folder, source, names) as run:
                        for taken in (first, again):
                            taken[name] = min(_time(run), taken.get(name, float("inf")))
        shutil.rmtree(folder / "source")
        rows.append(_row(work, first, ">= 2x"))
        rows.append(_row(f"{work}, nothing new", again, ">= 10x"))
    return rows


def _row(work: str, taken: dict[str, float], target: str) -> Row:
    cells = {name: f"{seconds:.2f} s" for name, seconds in taken.items()}
    return Row(work, cells, {"skopeo sync": taken["skopeo sync"] / taken["Entrepot"]}, target)


def _time(work: Callable[[], object]) -> float:
    os.sync()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _fill_families(folder: Path, source: Server) -> list[str]:
    names = []
    for family in range(_FAMILIES):
        shared = [Blob.make(folder / f"shared-{number}", size) for number, size in enumerate(_SHARED_BYTES)]
        for member in range(_IMAGES // _FAMILIES):
            names.append(f"bench/family-{family}-{member}")
            _push_image(folder, source, names[-1], shared, _OWN_BYTES)
    return names


def _fill_large(folder: Path, source: Server) -> list[str]:
    names = [f"bench/large-{number}" for number in range(_LARGE_IMAGES)]
    for name in names:
        _push_image(folder, source, name, [], _LARGE_BYTES)
    return names


def _push_image(
    folder: Path, server: Server, repository: str, shared: list[Blob], own: tuple[int, ...], tag: str = "v1"
) -> bytes:
    layers = shared + [Blob.make(folder / f"own-{number}", size) for number, size in enumerate(own)]
    for layer in layers:
        push_blob(server, layer, repository)
    return put_image(server, repository, layers, tag)


@contextmanager
def _entrepot_side(folder: Path, source: Server, names: list[str]) -> Iterator[Callable[[], object]]:
    """A new Entrepot that serves, and its way to replicate all that the source has."""
    rule = {"source": "bench", "repositories": ["bench/*"], "tags": {"include": ["*"]}}
    _apply(folder, {"type": "oci", "url": source.url}, rule)
    command = ["api-key", "create", "bench", "--scope", "replication:write", "--scope", "replication:read", "--json"]
    headers = {"Authorization": f"Bearer {json.loads(run_entrepot(folder, {}, *command))['secret']}"}
    try:
        with entrepot(folder, 1, has_jobs=True) as server:
            yield lambda: _run(server, headers)
            if f"equal, {len(names)} tags" not in (found := run_entrepot(folder, {}, "replicate", "verify", "bench")):
                raise SystemExit(found)
    finally:
        shutil.rmtree(folder / "entrepot")


def _run(server: Server, headers: dict[str, str]) -> None:
    """Ask for a run, and wait for its end."""
    path, method, body = "/api/v1/replication/rules/bench/runs", "POST", b"{}"
    while True:
        request = urllib.request.Request(server.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            run = json.load(answer)
        if run["status"] not in {"queued", "running"}:
            break
        path, method, body = f"/api/v1/replication/runs/{run['id']}", "GET", None
        time.sleep(0.01)
    if run["status"] != "done":
        raise SystemExit(json.dumps(run, indent=1))


def _apply(folder: Path, source: dict[str, Any], rule: dict[str, Any]) -> None:
    file = folder / "replication.yaml"
    file.write_text(json.dumps({"sources": {"bench": source}, "rules": {"bench": rule}}))
    run_entrepot(folder, {}, "replicate", "apply", str(file))


@contextmanager
def _skopeo_side(folder: Path, source: Server, names: list[str]) -> Iterator[Callable[[], object]]:
    """A new docker-registry and skopeo's way to sync all that the source has into it."""
    file = folder / "sync.yaml"
    images = {name: [] for name in names}
    file.write_text(json.dumps({source.url.removeprefix("http://"): {"tls-verify": False, "images": images}}))
    with open_registry(folder, "target") as target:
        command = [find_program("skopeo"), "sync", "--all", "--src", "yaml", "--dest", "docker"]
        command += ["--dest-tls-verify=false", str(file), f"{target.url.removeprefix('http://')}/bench"]
        yield lambda: subprocess.run(command, check=True, capture_output=True)
        for name in names:
            request = urllib.request.Request(f"{target.url}/v2/{name}/manifests/v1", headers={"Accept": MANIFEST_TYPE})
            urllib.request.urlopen(request, timeout=10).close()
    shutil.rmtree(folder / "target")


def _ecr(moto: Moto, url: str) -> dict[str, Any]:
    return {"type": "ecr", "account": ACCOUNT, "region": _REGION, "endpoint": moto.url, "url": url}


def _measure_push(console: Console, folder: Path, moto: Moto) -> Row:
    """From the event to the tag that can be pulled, with an idle queue."""
    console.print("from a push's event to the tag ...")
    sqs = moto.client("sqs", _REGION)
    queue = sqs.create_queue(QueueName="pushes")["QueueUrl"]
    token = TOKEN_OF.format(account=ACCOUNT)
    rule = {"source": "bench", "repositories": ["bench/*"], "tags": {"include": ["*"]}}
    with environment_of(_KEYS), open_registry(folder, "content", ("AWS", token)) as content:
        events = {"queue_url": queue, "endpoint": moto.url, "region": _REGION}
        _apply(folder, _ecr(moto, content.url) | {"events": events}, rule)
        taken = []
        with entrepot(folder, 1, has_jobs=True) as server:
            for number in range(_PUSHES):
                manifest = _push_image(folder, content, "bench/pushed", [], (5_000_000,), f"v{number}")
                moto.put_manifest(_REGION, "bench/pushed", f"v{number}", manifest, MANIFEST_TYPE)
                time.sleep(1)  # idle
                begun = time.perf_counter()
                sqs.send_message(QueueUrl=queue, MessageBody=_tell("bench/pushed", f"v{number}"))
                _wait_for_tag(server, "bench/pushed", f"v{number}")
                taken.append(time.perf_counter() - begun)
    shutil.rmtree(folder / "entrepot")
    cell = f"median {sorted(taken)[len(taken) // 2]:.2f} s, most {max(taken):.2f} s"
    return Row(f"event to pullable tag, image of 5 MB, {_PUSHES} pushes", {"Entrepot": cell}, target="<= 5 s")


def _tell(repository: str, tag: str) -> str:
    """What EventBridge says of a push. Source: Amazon ECR user guide, "Sample events"."""
    detail = {"result": "SUCCESS", "repository-name": repository, "action-type": "PUSH", "image-tag": tag}
    event = {"version": "0", "detail-type": "ECR Image Action", "source": "aws.ecr"}
    return json.dumps(event | {"account": ACCOUNT, "region": _REGION, "detail": detail})


def _wait_for_tag(server: Server, repository: str, tag: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    headers = {"Authorization": server.paths["token_basic"], "Accept": "*/*"}
    request = urllib.request.Request(f"{server.url}/v2/{repository}/manifests/{tag}", headers=headers)
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            time.sleep(0.02)
    raise SystemExit(f"{repository}:{tag} did not appear within {_PATIENCE_SECONDS} seconds")


def _measure_list(console: Console, folder: Path, moto: Moto) -> Row:
    """A plan of many tags, all new; the memory is the most that the program had."""
    console.print(f"listing {_TAGS:,} tags ...")
    ecr = moto.client("ecr", _REGION)
    ecr.create_repository(repositoryName="many/tags")
    rule = {"source": "bench", "repositories": ["many/tags"], "tags": {"include": ["*"]}}
    with environment_of(_KEYS), open_registry(folder, "listed", ("AWS", TOKEN_OF.format(account=ACCOUNT))) as content:
        image = json.loads(_push_image(folder, content, "many/tags", [], (1_000,)))
        connection = Connection(content)
        for number in range(_TAGS):
            manifest = json.dumps(image | {"annotations": {"number": str(number)}}).encode()
            path = f"/v2/many/tags/manifests/v{number}"
            connection.call("PUT", path, manifest, {"Content-Type": MANIFEST_TYPE})
            ecr.put_image(
                repositoryName="many/tags",
                imageManifest=manifest.decode(),
                imageManifestMediaType=MANIFEST_TYPE,
                imageTag=f"v{number}",
                imageDigest=f"sha256:{hashlib.sha256(manifest).hexdigest()}",
            )
        connection.close()
        _apply(folder, _ecr(moto, content.url), rule)
        command = [Path(sys.executable).with_name("entrepot"), "--data", folder / "entrepot"]
        begun = time.perf_counter()
        process = subprocess.Popen([*command, "replicate", "plan", "bench", "--json"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        taken = time.perf_counter() - begun
    if status:
        raise SystemExit("the plan failed")
    cell = f"{taken:.2f} s, {usage.ru_maxrss * 1024 / 1e6:.0f} MB"
    return Row(f"{_TAGS:,} tags of ECR listed and compared", {"Entrepot": cell}, target="<= 10 s, < 200 MB")
