"""Memory while many download and some upload: it must not grow with how much is on its way."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from bench.results import Row, Section
from bench.servers import REPOSITORY, Server, entrepot
from bench.upload import Blob, Connection, push_blob

DOWNLOADS, UPLOADS = 100, 10
UPLOAD_BYTES = 1024**3
_SAMPLE_SECONDS = 0.5


def measure(console: Console, folder: Path, *, workers: int) -> list[Section]:
    """The most that the server takes: at rest, and with everybody at it, early and late."""
    console.print(f"{DOWNLOADS} downloads and {UPLOADS} uploads of 1 GiB at the same time ...")
    with entrepot(folder, workers) as server:
        blob = Blob.make(folder / "downloaded", UPLOAD_BYTES)
        push_blob(server, blob)
        at_rest = server.resident_bytes()
        sent = [Blob.make(folder / f"sent-{number}", UPLOAD_BYTES) for number in range(UPLOADS)]
        samples: list[tuple[float, int]] = []
        over = threading.Event()
        sampler = threading.Thread(target=_sample, args=(server, samples, over))
        begun = time.perf_counter()
        sampler.start()
        path = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
        with ThreadPoolExecutor(DOWNLOADS + UPLOADS) as pool:
            uploads = [pool.submit(push_blob, server, one) for one in sent]
            for _ in range(DOWNLOADS):
                pool.submit(_download_until, server, path, over)
            for upload in uploads:
                upload.result()
            seconds = time.perf_counter() - begun
            over.set()
        sampler.join()
    half = [size for at, size in samples if at - begun < seconds / 2]
    rest = [size for at, size in samples if at - begun >= seconds / 2]
    cells = {
        "at rest": f"{at_rest / 1024**2:.0f} MiB",
        "most in the first half": f"{max(half) / 1024**2:.0f} MiB",
        "most in the second half": f"{max(rest) / 1024**2:.0f} MiB",
    }
    work = f"{DOWNLOADS} downloads and {UPLOADS} uploads of 1 GiB, {workers} workers, {seconds:.0f} s"
    return [Section("Memory", [Row(work, cells, target="flat")])]


def _sample(server: Server, samples: list[tuple[float, int]], over: threading.Event) -> None:
    while not over.wait(_SAMPLE_SECONDS):
        samples.append((time.perf_counter(), server.resident_bytes()))


def _download_until(server: Server, path: str, over: threading.Event) -> None:
    """Download over and over, throwing away what comes."""
    buffer = bytearray(1024**2)
    while not over.is_set():
        connection = Connection(server)
        connection.begin_download(path)
        while not over.is_set() and connection.receive_into(buffer):
            pass
        connection.close()
