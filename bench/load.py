"""Load from another process (wrk), and what it reports."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.servers import Server, find_program

# Without it the CNCF distribution 2.8 tries to turn a manifest into schema 1.
_ACCEPT = "application/vnd.oci.image.manifest.v1+json"
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_SIZES = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}


@dataclass(frozen=True)
class Result:
    """What one run of load measured; CPU is the server's, per second of the run or per GB it sent."""

    requests_per_second: float
    p50_seconds: float
    p99_seconds: float
    bytes_per_second: float
    errors: int
    cpu_seconds: float
    seconds: float

    @property
    def cpu_seconds_per_gb(self) -> float:
        """Server CPU per 10^9 bytes sent."""
        return self.cpu_seconds / (self.bytes_per_second * self.seconds / 1e9)


def load_command(
    server: Server,
    path: str,
    *,
    connections: int,
    seconds: int,
    authorization: str = "",
    headers: Mapping[str, str] | None = None,
    script: Path | None = None,
) -> list[str]:
    """What GETs `path` over and over on `connections` connections for `seconds`, or does what a script for wrk says."""
    command = [find_program("wrk"), "-t2" if connections > 1 else "-t1", f"-c{connections}", f"-d{seconds}s"]
    command += [
        "--latency",
        "--timeout",
        "30s",
        "-H",
        f"Authorization: {authorization or server.authorization or 'none'}",
        "-H",
        f"Accept: {_ACCEPT}",
    ]
    for name, value in (headers or {}).items():
        command += ["-H", f"{name}: {value}"]
    if script is not None:
        command += ["-s", str(script)]
    return [*command, server.url + path]


def run_wrk(server: Server, path: str, *, seconds: int, **options: Any) -> Result:
    """Run the load of `load_command`."""
    command = load_command(server, path, seconds=seconds, **options)
    before = server.cpu_seconds()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu = server.cpu_seconds() - before
    return Result(
        requests_per_second=float(_find(r"Requests/sec:\s+([\d.]+)", output)),
        p50_seconds=_seconds(_find(r"(?m)^\s+50%\s+(\S+)", output)),
        p99_seconds=_seconds(_find(r"(?m)^\s+99%\s+(\S+)", output)),
        bytes_per_second=_bytes(_find(r"Transfer/sec:\s+(\S+)", output)),
        errors=int(_find(r"Non-2xx or 3xx responses: (\d+)", output, "0")),
        cpu_seconds=cpu,
        seconds=seconds,
    )


def _find(pattern: str, output: str, default: str | None = None) -> str:
    match = re.search(pattern, output)
    if match is None:
        if default is None:
            raise SystemExit(f"wrk said something else than expected:\n{output}")
        return default
    return match[1]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if match is None:
        raise SystemExit(f"wrk gave a time that cannot be read: {text}")
    return float(match[1]) * _UNITS[match[2]]


def _bytes(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(B|KB|MB|GB)", text)
    if match is None:
        raise SystemExit(f"wrk gave a size that cannot be read: {text}")
    return float(match[1]) * _SIZES[match[2]]
