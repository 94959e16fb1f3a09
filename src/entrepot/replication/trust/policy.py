"""A rule's trust policy: which signatures there are in a manifest, and whether one is by somebody trusted. Pure."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from entrepot.oci.manifest import Descriptor, Manifest, read_layer_annotations
from entrepot.replication.trust import cosign, notation
from entrepot.replication.trust.cosign import Signed
from entrepot.replication.trust.keys import PublicKey
from entrepot.replication.trust.notation import Roots

# Notation's largest chains, and bundles with all that a transparency log says, stay below 20 KiB.
MAX_SIGNATURE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A blob that is said to be a signature; `annotation` is what cosign writes beside a simple signing payload."""

    blob: Descriptor
    annotation: object = None


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """A signature by one of these keys, or under one of these certificates, is enough."""

    keys: tuple[PublicKey, ...] = ()
    roots: Roots = field(default_factory=Roots)

    def find_candidates(self, manifest: Manifest, *, is_tagged: bool) -> list[Candidate]:
        """The signatures in a manifest that this policy could accept.

        `is_tagged` when cosign's tag names it, where its simple signing payloads are looked for and nowhere else.
        """
        layers = manifest.blobs[1:]
        if is_tagged:
            payloads = [
                Candidate(blob, annotations.get(cosign.SIGNATURE))
                for blob, annotations in zip(layers, read_layer_annotations(manifest.content), strict=True)
                if blob.media_type == cosign.SIMPLE_SIGNING
            ]
            return payloads if self.keys else []
        kinds = (cosign.BUNDLES if self.keys else set()) | (
            {notation.JWS, notation.COSE} if self.roots.signers else set()
        )
        return [Candidate(blob) for blob in layers if blob.media_type in kinds]

    def verify(self, candidate: Candidate, content: bytes, subject: Manifest, now: datetime) -> Signed:
        """Who signed `subject`, by the signature in `content`. Raises SignatureBroken."""
        media_type = candidate.blob.media_type
        if media_type == cosign.SIMPLE_SIGNING:
            return cosign.verify_simple_signing(content, candidate.annotation, subject.digest, self.keys)
        if media_type in cosign.BUNDLES:
            return cosign.verify_bundle(content, subject, self.keys)
        return notation.verify_envelope(content, media_type, subject, self.roots, now)
