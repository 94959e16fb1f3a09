"""Who vouches for workloads."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from entrepot.access.workloads import Workload


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who vouches for workloads, and how its keys are found.

    `keys_url` None: by discovery. `ca_file` None: the system's authorities. `token_file` is a Bearer token for an
    issuer that shows its keys to nobody else, as a Kubernetes API server does.
    """

    url: str
    audience: str
    workloads: tuple[Workload, ...]
    keys_url: str | None = None
    ca_file: Path | None = None
    token_file: Path | None = None


def is_safe_url(text: str) -> bool:
    """Whether nobody on the way can change what comes from there: https, or this machine itself."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        is_here = host == "localhost" or (parts.scheme == "http" and ip_address(host).is_loopback)
    except ValueError:
        return False
    return bool(host) and parts.username is None and (parts.scheme == "https" or (parts.scheme == "http" and is_here))
