"""Reading the keys, certificates and passwords that a rule names, when a run begins."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from entrepot.errors import RuleInvalid, SignatureBroken
from entrepot.replication.trust.certificates import parse_certificates
from entrepot.replication.trust.keys import parse_public_key
from entrepot.replication.trust.notation import Roots
from entrepot.replication.trust.policy import TrustPolicy
from entrepot.replication.trust.spec import MAX_PEM_BYTES, SignSpec, TrustSpec, is_pem

T = TypeVar("T")


def load_policy(spec: TrustSpec, where: str) -> TrustPolicy:
    """The policy with its keys and certificates. Raises RuleInvalid, which names the place, `where`, and the file."""
    keys = [_load(entry, f"{where}.cosign.keys[{number}]", parse_public_key) for number, entry in enumerate(spec.keys)]
    where = f"{where}.notation"
    roots = Roots(
        _load_certificates(spec.certificates, f"{where}.certificates"),
        _load_certificates(spec.timestamp_authorities, f"{where}.timestamp_authorities"),
    )
    return TrustPolicy(tuple(keys), roots)


def _load_certificates(entries: tuple[str, ...], where: str) -> tuple[x509.Certificate, ...]:
    loaded = (_load(entry, f"{where}[{number}]", parse_certificates) for number, entry in enumerate(entries))
    return tuple(certificate for some in loaded for certificate in some)


def read_file(path: str, where: str) -> bytes:
    """A small file. Raises RuleInvalid."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise RuleInvalid(f"{where}: {path}: {error.strerror}") from error
    if len(content) > MAX_PEM_BYTES:
        raise RuleInvalid(f"{where}: {path} is larger than {MAX_PEM_BYTES} bytes")
    return content


def read_password(spec: SignSpec, where: str) -> bytes:
    """The password of a key file, empty when none is named. Raises RuleInvalid."""
    if spec.password_file is not None:
        return read_file(spec.password_file, f"{where}.password_file").rstrip(b"\r\n")
    if spec.password_env is None:
        return b""
    password = os.environ.get(spec.password_env)
    if password is None:
        raise RuleInvalid(f"{where}.password_env: the environment variable {spec.password_env} is not set here")
    return password.encode()


def _load(entry: str, where: str, parse: Callable[[bytes], T]) -> T:
    content = entry.encode() if is_pem(entry) else read_file(entry, where)
    try:
        return parse(content)
    except SignatureBroken as error:
        raise RuleInvalid(f"{where}: {'the text' if is_pem(entry) else entry} {error}") from error
