"""A real image for two platforms, a real Helm chart and their signatures, made on the spot.

Images and charts have the same bytes every time.

The image runs: its program is a static ELF file of a few hundred bytes that prints one line. Sources: image-spec 1.1
(config.md, layer.md); ELF-64 object file format; Linux system calls write and exit; Helm, "OCI-based registries".
"""

import base64
import gzip
import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import cosign_tags
from entrepot.replication.trust.cosign import SIGNATURE, SIMPLE_SIGNING, make_payload

MESSAGE = b"Hello from an image that Entrepot distributed.\n"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
# Incompressible, so that copying it takes long enough to be seen.
_ASSETS_BYTES = 24 * 1024 * 1024

_LOAD_ADDRESS = 0x400000
_HEADERS_BYTES = 64 + 56


@dataclass(frozen=True)
class Content:
    """One artifact: its blobs, then its manifests, children before parents; the last one gets the tag."""

    repository: str
    tag: str
    blobs: tuple[bytes, ...]
    manifests: tuple[tuple[str, bytes], ...]

    @property
    def digest(self) -> Digest:
        """What the tag names."""
        return Digest.of(self.manifests[-1][1])


def make_image(repository: str, tag: str, *, assets: str) -> Content:
    """An index of linux/amd64 and linux/arm64 images; `assets` seeds the layer that both share."""
    shared = _layer({"assets.bin": (hashlib.shake_256(assets.encode()).digest(_ASSETS_BYTES), 0o644)})
    blobs: list[bytes] = [shared]
    manifests: list[tuple[str, bytes]] = []
    entries: list[dict[str, object]] = []
    for architecture, program in (("amd64", _amd64()), ("arm64", _arm64())):
        layer = _layer({"hello": (program, 0o755)})
        config = _json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": ["/hello"], "Labels": {"org.opencontainers.image.version": tag}},
                "rootfs": {"type": "layers", "diff_ids": [_diff_id(shared), _diff_id(layer)]},
            }
        )
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": _descriptor(CONFIG_TYPE, config),
                "layers": [_descriptor(LAYER_TYPE, shared), _descriptor(LAYER_TYPE, layer)],
            }
        )
        blobs += [layer, config]
        manifests.append((media_types.OCI_MANIFEST, manifest))
        platform = {"os": "linux", "architecture": architecture}
        entries.append(_descriptor(media_types.OCI_MANIFEST, manifest) | {"platform": platform})
    index = _json({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries})
    manifests.append((media_types.OCI_INDEX, index))
    return Content(repository, tag, tuple(blobs), tuple(manifests))


def make_chart(repository: str) -> Content:
    """The package's chart as Helm would push it."""
    chart = files("entrepot.demo") / "chart"
    archive = _layer({f"hello/{path}": (text, 0o644) for path, text in sorted(_read_all(chart))})
    config = _json(
        {"name": "hello", "version": "1.0.0", "appVersion": "v1.0.0", "apiVersion": "v2", "type": "application"}
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": _descriptor(media_types.HELM_CONFIG, config),
            "layers": [_descriptor(media_types.HELM_CHART, archive)],
        }
    )
    return Content(repository, "1.0.0", (archive, config), ((media_types.OCI_MANIFEST, manifest),))


class Key:
    """A key pair as `cosign generate-key-pair` makes it."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> Self:
        """A new one."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public_pem(self) -> str:
        """The public half, as in cosign.pub."""
        pem = self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem.decode()

    def sign(self, content: Content) -> Content:
        """What `cosign sign --key` would push to say that the holder of the key vouches for an artifact."""
        payload = make_payload(content.digest, content.repository)
        signature = base64.b64encode(self._private.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
        rootfs = {"type": "layers", "diff_ids": [str(Digest.of(payload))]}
        config = _json({"architecture": "", "os": "", "config": {}, "rootfs": rootfs})
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": _descriptor(CONFIG_TYPE, config),
                "layers": [_descriptor(SIMPLE_SIGNING, payload) | {"annotations": {SIGNATURE: signature}}],
            }
        )
        tag = cosign_tags(content.digest)[0].value
        return Content(content.repository, tag, (payload, config), ((media_types.OCI_MANIFEST, manifest),))


def _read_all(folder: Traversable, prefix: str = "") -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read_all(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found


def _layer(members: dict[str, tuple[bytes, int]]) -> bytes:
    """A gzipped tar of {path: (content, mode)} whose bytes depend on nothing else."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, (content, mode) in members.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=1, mtime=0)


def _diff_id(layer: bytes) -> str:
    return str(Digest.of(gzip.decompress(layer)))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


def _elf(machine: int, code: bytes) -> bytes:
    """A static executable of one segment: headers, code, message."""
    size = _HEADERS_BYTES + len(code) + len(MESSAGE)
    header = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH",
        b"\x7fELF", 2, 1, 1, 0, 0, 2, machine, 1, _LOAD_ADDRESS + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    # One segment, readable and executable, aligned to 64 KiB, which suits the pages of both platforms.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x10000)
    return header + segment + code + MESSAGE


def _amd64() -> bytes:
    """write(1, MESSAGE, len(MESSAGE)); exit(0)."""
    exit_code = b"\xb8\x3c\x00\x00\x00" + b"\x31\xff" + b"\x0f\x05"  # mov eax, 60; xor edi, edi; syscall
    length = b"\xba" + struct.pack("<I", len(MESSAGE)) + b"\x0f\x05"  # mov edx, length; syscall
    address = b"\x48\x8d\x35" + struct.pack("<i", len(length) + len(exit_code))  # lea rsi, [rip + distance]
    write = b"\xb8\x01\x00\x00\x00" + b"\xbf\x01\x00\x00\x00"  # mov eax, 1; mov edi, 1
    return _elf(0x3E, write + address + length + exit_code)


def _arm64() -> bytes:
    """The same for AArch64."""
    distance = 7 * 4  # from the instruction that takes the address to the message behind the last instruction
    words = (
        0xD2800020,  # mov x0, 1
        0x10000001 | (distance & 3) << 29 | (distance >> 2) << 5,  # adr x1, message
        0xD2800002 | len(MESSAGE) << 5,  # mov x2, length
        0xD2800808,  # mov x8, 64
        0xD4000001,  # svc 0
        0xD2800000,  # mov x0, 0
        0xD2800BA8,  # mov x8, 93
        0xD4000001,  # svc 0
    )
    return _elf(0xB7, struct.pack(f"<{len(words)}I", *words))
