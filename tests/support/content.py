"""Small artifacts to push and pull."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

from entrepot.oci import media_types
from entrepot.oci.digest import Digest

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    """What a manifest says of `content`."""
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


@dataclass(frozen=True)
class Image:
    """An image of one layer, different every time."""

    config: bytes = field(default_factory=lambda: json.dumps({"os": "linux", "id": os.urandom(8).hex()}).encode())
    layer: bytes = field(default_factory=lambda: os.urandom(1000))

    @property
    def manifest(self) -> bytes:
        """Its manifest."""
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": descriptor(CONFIG_TYPE, self.config),
                "layers": [descriptor(LAYER_TYPE, self.layer)],
            }
        ).encode()

    @property
    def digest(self) -> Digest:
        """Its manifest's digest."""
        return Digest.of(self.manifest)


def index_of(*images: Image) -> bytes:
    """An index that names these images."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [descriptor(media_types.OCI_MANIFEST, image.manifest) for image in images],
        }
    ).encode()


def image_for(platform: str) -> Image:
    """An image whose config says that it is for `os/architecture[/variant]`."""
    fields = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
    return Image(config=json.dumps(fields | {"id": os.urandom(8).hex()}).encode())


def platform_index(images: dict[str, Image], attestations: dict[str, Image] | None = None) -> bytes:
    """An index of images by platform, with attestations of some of them as BuildKit puts them there."""
    entries = []
    for platform, image in images.items():
        fields = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        entries.append(descriptor(media_types.OCI_MANIFEST, image.manifest) | {"platform": fields})
    for platform, attestation in (attestations or {}).items():
        annotations = {
            "vnd.docker.reference.digest": str(images[platform].digest),
            "vnd.docker.reference.type": "attestation-manifest",
        }
        entry = descriptor(media_types.OCI_MANIFEST, attestation.manifest) | {"annotations": annotations}
        entries.append(entry | {"platform": {"os": "unknown", "architecture": "unknown"}})
    document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
    return json.dumps(document).encode()
