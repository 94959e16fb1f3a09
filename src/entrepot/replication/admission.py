"""Whether what a tag names may be published: signatures are read at the source, and the rule's trust policy judges."""

from entrepot.errors import SignatureBroken, SignatureRefused, SourceError, SourceUnreachable
from entrepot.oci.manifest import Descriptor
from entrepot.oci.reference import RepositoryName
from entrepot.replication.companions import Companion, Companions
from entrepot.replication.differences import Item
from entrepot.replication.source import Source
from entrepot.replication.trust.cosign import Signed
from entrepot.replication.trust.policy import MAX_SIGNATURE_BYTES, Candidate, TrustPolicy
from entrepot.storage.clock import Clock

# What is looked at for one tag; each costs a request or two.
_MAX_CANDIDATES = 100
_MAX_MANIFESTS = 100
_SHOWN_REASONS = 5


class Admission:
    """Judges tags by one policy. What is judged is what its digest names, so that nothing else can be published."""

    def __init__(self, source: Source, policy: TrustPolicy, clock: Clock) -> None:
        self._source = source
        self._policy = policy
        self._clock = clock

    async def verify(self, item: Item, companions: Companions, listed: list[Companion]) -> Signed:
        """Who signed what `item` names, by one of `listed`.

        Raises SignatureRefused with the reason for each signature, or SourceError.
        """
        reasons: list[str] = []
        subject = await self._source.get_manifest(item.origin, item.digest)
        looked_at = 0
        for companion in listed[:_MAX_MANIFESTS]:
            for candidate in await self._find_candidates(companion, companions, reasons):
                looked_at += 1
                if looked_at > _MAX_CANDIDATES:
                    break
                try:
                    content = await self._read(item.origin, candidate.blob)
                    return self._policy.verify(candidate, content, subject, self._clock())
                except SignatureBroken as error:
                    reasons.append(f"{companion}: {error}")
        if looked_at > _MAX_CANDIDATES or len(listed) > _MAX_MANIFESTS:
            reasons.insert(0, f"only the first {_MAX_CANDIDATES} were looked at")
        raise SignatureRefused(_explain(item, reasons))

    async def _find_candidates(
        self, companion: Companion, companions: Companions, reasons: list[str]
    ) -> list[Candidate]:
        try:
            manifest = await companions.read(companion)
        except SourceUnreachable:
            raise
        except SourceError as error:
            reasons.append(f"{companion}: {error}")
            return []
        return [] if manifest is None else self._policy.find_candidates(manifest, is_tagged=companion.tag is not None)

    async def _read(self, repository: RepositoryName, blob: Descriptor) -> bytes:
        """The content of a signature. Raises SignatureBroken, or SourceUnreachable."""
        if blob.size > MAX_SIGNATURE_BYTES:
            raise SignatureBroken(f"it has {blob.size} bytes, at most {MAX_SIGNATURE_BYTES} are looked at")
        try:
            async with self._source.open_blob(repository, blob) as pieces:
                content = b"".join([piece async for piece in pieces])
        except SourceUnreachable:
            raise
        except SourceError as error:
            raise SignatureBroken(str(error)) from error
        if not blob.digest.is_of(content):
            raise SignatureBroken(f"the source sent other bytes than those of {blob.digest}")
        return content


def _explain(item: Item, reasons: list[str]) -> str:
    asked = f"{item.origin}@{item.digest} is refused by the rule's trust policy"
    if not reasons:
        return f"{asked}: it has no signature of a kind that the policy accepts; sign it at the source"
    more = f"; and {len(reasons) - _SHOWN_REASONS} more" if len(reasons) > _SHOWN_REASONS else ""
    return f"{asked}: no signature holds. {'; '.join(reasons[:_SHOWN_REASONS])}{more}"
