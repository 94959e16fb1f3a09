"""Media types of manifests, as image-spec 1.1 (media-types.md) and Docker's schema 2 name them."""

from typing import Final

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
ACCEPTED: Final = MANIFESTS | INDEXES

# Layers that may be left on the vendor's own servers: a registry need not hold them (image-spec, layer.md,
# "Non-Distributable Layers"; Docker's "foreign" layers).
FOREIGN_LAYERS: Final = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)

HELM_CONFIG: Final = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART: Final = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def bare(content_type: str) -> str:
    """The media type in a Content-Type header, without parameters, lower case (RFC 9110, section 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()
