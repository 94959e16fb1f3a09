"""Whose signatures a rule asks for, and by which key it signs: as replication.yaml says it. Pure.

Keys and certificates are named by their file, or stand in the rule as PEM; files are read when a run begins.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from entrepot.errors import RuleInvalid, SignatureBroken
from entrepot.replication.fields import parse_mapping, parse_path, parse_variable, verify_known
from entrepot.replication.trust.certificates import parse_certificates
from entrepot.replication.trust.keys import parse_public_key

_PEM = "-----BEGIN "
_MAX_ENTRIES = 100
MAX_PEM_BYTES = 64 * 1024
# arn:partition:kms:region:account:key/id or alias/name
_KMS = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:(?:key/[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]+)")


@dataclass(frozen=True, slots=True)
class TrustSpec:
    """A signature by one of these keys, or one of these certificates, is enough; each a path, or PEM.

    A certificate that has expired will do where one of `timestamp_authorities` stamped the signature before.
    """

    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    timestamp_authorities: tuple[str, ...] = ()

    @classmethod
    def parse(cls, document: object, where: str) -> Self:
        """The policy in a document. Raises RuleInvalid, whose message begins with the place, `where`."""
        fields = parse_mapping(document, where)
        verify_known(fields, where, {"cosign", "notation"})
        if not fields:
            raise RuleInvalid(f"{where}: says whose signatures are asked for: cosign, notation, or either")
        keys: tuple[str, ...] = ()
        certificates: tuple[str, ...] = ()
        authorities: tuple[str, ...] = ()
        if "cosign" in fields:
            inner = parse_mapping(fields["cosign"], f"{where}.cosign")
            verify_known(inner, f"{where}.cosign", {"keys"})
            keys = _parse_entries(inner.get("keys"), f"{where}.cosign.keys", parse_public_key)
        if "notation" in fields:
            at = f"{where}.notation"
            inner = parse_mapping(fields["notation"], at)
            verify_known(inner, at, {"certificates", "timestamp_authorities"})
            certificates = _parse_entries(inner.get("certificates"), f"{at}.certificates", parse_certificates)
            if "timestamp_authorities" in inner:
                at = f"{at}.timestamp_authorities"
                authorities = _parse_entries(inner["timestamp_authorities"], at, parse_certificates)
        return cls(keys, certificates, authorities)

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml."""
        document: dict[str, Any] = {}
        if self.keys:
            document["cosign"] = {"keys": list(self.keys)}
        if self.certificates:
            document["notation"] = {"certificates": list(self.certificates)}
        if self.timestamp_authorities:
            document["notation"]["timestamp_authorities"] = list(self.timestamp_authorities)
        return document


@dataclass(frozen=True, slots=True)
class SignSpec:
    """A key in a file, with a password if it is encrypted, or in AWS KMS."""

    key_file: str | None = None
    password_file: str | None = None
    password_env: str | None = None
    kms: str | None = None

    @classmethod
    def parse(cls, document: object, where: str) -> Self:
        """The key in a document. Raises RuleInvalid, whose message begins with the place, `where`."""
        fields = parse_mapping(document, where)
        verify_known(fields, where, {"key_file", "password_file", "password_env", "kms"})
        spec = cls(
            key_file=parse_path(fields.get("key_file"), f"{where}.key_file"),
            password_file=parse_path(fields.get("password_file"), f"{where}.password_file"),
            password_env=parse_variable(fields.get("password_env"), f"{where}.password_env"),
            kms=_parse_kms(fields.get("kms"), f"{where}.kms"),
        )
        if (spec.key_file is None) == (spec.kms is None):
            raise RuleInvalid(f"{where}: a key is in a file (key_file) or in KMS (kms); give one of them")
        passwords = [spec.password_file, spec.password_env]
        if None not in passwords or (spec.kms is not None and any(passwords)):
            raise RuleInvalid(f"{where}: has a password too many; a key_file takes password_file or password_env")
        return spec

    @property
    def region(self) -> str:
        """The region of the KMS key, empty for a key in a file."""
        match = _KMS.fullmatch(self.kms or "")
        return "" if match is None else match[1]

    def to_document(self) -> dict[str, Any]:
        """As in replication.yaml."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value is not None}


def is_pem(text: str) -> bool:
    """Whether a text is PEM, and not the path of a file with it."""
    return text.startswith(_PEM)


def _parse_entries(entries: object, where: str, parse: Callable[[bytes], object]) -> tuple[str, ...]:
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_ENTRIES:
        raise RuleInvalid(f"{where}: must be a list of 1 to {_MAX_ENTRIES} paths, or PEM texts")
    return tuple(_parse_entry(entry, f"{where}[{number}]", parse) for number, entry in enumerate(entries))


def _parse_entry(value: object, where: str, parse: Callable[[bytes], object]) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not is_pem(text):
        path = parse_path(value, where)
        if path is None:
            raise RuleInvalid(f"{where}: must be an absolute path, or PEM")
        return path
    if len(text) > MAX_PEM_BYTES or not text.isascii():
        raise RuleInvalid(f"{where}: is longer than {MAX_PEM_BYTES} bytes, or no PEM")
    try:
        parse(text.encode())
    except SignatureBroken as error:
        raise RuleInvalid(f"{where}: {error}") from error
    return text


def _parse_kms(value: object, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _KMS.fullmatch(value):
        raise RuleInvalid(f"{where}: must be the ARN of a key or alias, arn:aws:kms:REGION:ACCOUNT:key/ID")
    return value
