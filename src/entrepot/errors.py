"""Every error that Entrepot raises on purpose.

Nothing here knows of HTTP, exit codes or log levels: each face (web/oci, web/token, web/api, cli) has one table from
these classes to its answers, looked up over the class's MRO. The message of an error is written for whoever will read
it: what happened, why, and what to do next. It never holds a secret.
"""

from dataclasses import dataclass


class EntrepotError(Exception):
    """The root of every error raised on purpose.

    `reason` is the word under which it is counted when an account is refused something; empty: it is not counted.
    """

    reason: str = ""


class Invalid(EntrepotError):
    """The caller sent something that can never be right."""


class DigestInvalid(Invalid):
    """A digest that does not parse, or names an algorithm that is not supported."""


class DigestMismatch(Invalid):
    """Content that does not have the digest that was announced for it."""


class NameInvalid(Invalid):
    """A repository name outside the grammar of the distribution spec."""


class TagInvalid(Invalid):
    """A tag outside the grammar of the distribution spec."""


class SizeInvalid(Invalid):
    """Content whose length differs from the announced one."""


class RangeInvalid(Invalid):
    """A Range or Content-Range header that does not parse, or lies outside the content."""


class RangeNotSatisfiable(RangeInvalid):
    """A Range that lies outside the content, which has `size` bytes."""

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


class ManifestInvalid(Invalid):
    """A manifest that is not JSON, has the wrong shape, or the wrong media type."""


class ManifestBlobUnknown(Invalid):
    """A manifest that names a blob or manifest which its repository does not hold."""


class Unsupported(Invalid):
    """A well-formed request for something that this registry does not do."""


class ScopeInvalid(Invalid):
    """A token scope that does not parse (docker token spec)."""


class GlobInvalid(Invalid):
    """A pattern for names that cannot be read."""


class RangeUnreadable(Invalid):
    """A range of versions that cannot be read."""


class PlanInvalid(Invalid):
    """A plan document that does not have the shape of a plan."""


class RuleInvalid(Invalid):
    """A replication source or rule that does not have the right shape."""


class SignatureBroken(Invalid):
    """A signature that does not hold, is by somebody else, or speaks of other content."""


class IdentityInvalid(Invalid):
    """An external id or identity that cannot be kept."""


class RequestInvalid(Invalid):
    """A request body or parameter of the platform API that does not fit its schema."""


class IdempotencyKeyReused(Invalid):
    """An Idempotency-Key that came with another request before."""


class WebhookInvalid(Invalid):
    """A webhook whose name or URL cannot be accepted."""


class SettingsInvalid(Invalid):
    """A setting that is unknown, malformed or missing."""


@dataclass
class FileInvalid(Invalid):
    """A file that the user wrote and that cannot be used; `line` counts from 1, None when the whole file is meant."""

    path: str
    line: int | None
    problem: str

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{where}: {self.problem}"


class TooLarge(Invalid):
    """A body beyond its limit; nothing of it is kept."""


class TooManyChunks(TooLarge):
    """An upload in more chunks than are kept; larger ones would do."""


class ManifestTooLarge(TooLarge):
    """A manifest above the limit (4 MiB, as distribution-spec 1.1 recommends to accept)."""


class BlobTooLarge(TooLarge):
    """A blob above the configured limit."""


class NotFound(EntrepotError):
    """What was named does not exist, or may not be seen by whoever asks."""


class NameUnknown(NotFound):
    """No repository of this name."""


class PathUnknown(NotFound):
    """No endpoint has this path."""


class BlobUnknown(NotFound):
    """No blob with this digest in this repository."""


class ManifestUnknown(NotFound):
    """No manifest with this tag or digest in this repository."""


class TagLeftOut(ManifestUnknown):
    """A tag at a source names what its rule does not copy: another kind of artifact, or for other platforms."""


class UploadUnknown(NotFound):
    """No upload session with this id in this repository: never begun, finished, or cancelled."""


class AccountUnknown(NotFound):
    """No account of this name."""


class CredentialUnknown(NotFound):
    """No credential with this id in this account."""


class PlanUnknown(NotFound):
    """No plan of this name."""


class PlanMissing(PlanUnknown):
    """What an account or API key was to be put on is no plan."""


class ApiKeyUnknown(NotFound):
    """No API key of this name."""


class EventUnknown(NotFound):
    """No event with this id; it may have been dropped with age."""


class WebhookUnknown(NotFound):
    """No webhook of this name."""


class RuleUnknown(NotFound):
    """No replication rule of this name."""


class SourceUnknown(NotFound):
    """No replication source of this name."""


class RunUnknown(NotFound):
    """No replication run with this id."""


class Conflict(EntrepotError):
    """The request is right in itself, but not in the present state."""


class UploadOffsetWrong(Conflict):
    """A chunk that does not begin where the last one ended; `expected` is the next offset in bytes."""

    def __init__(self, message: str, *, expected: int) -> None:
        super().__init__(message)
        self.expected = expected


class ManifestReferenced(Conflict):
    """A manifest that an index in the same repository still names."""


class BlobReferenced(Conflict):
    """A blob that a manifest in the same repository still names."""


class PreconditionFailed(Conflict):
    """What the client made its change depend on (If-Match, If-None-Match) does not hold."""


class TagImmutable(Conflict):
    """A tag that must stay what it is (an operator's policy)."""


class ApiKeyExists(Conflict):
    """An API key of this name is there already."""


class WebhookDisabled(Conflict):
    """The webhook is disabled, so nothing would be delivered."""


class AccountClosed(Conflict):
    """The account is suspended or deleted, so the change makes no sense."""


class ExternalIdTaken(Conflict):
    """The external id belongs to an account that whoever asks may not know of."""


class RequestRepeated(Conflict):
    """The same request is being carried out at this moment."""


class RunActive(Conflict):
    """The rule has a run that is not finished."""


class RunFinished(Conflict):
    """The replication run has ended, so there is nothing left to cancel."""


class SourceInUse(Conflict):
    """A rule copies from the replication source."""


class CollectionActive(Conflict):
    """Another process collects garbage already."""


class Unauthenticated(EntrepotError):
    """Nobody we know: no credential, or one that does not hold."""


class CredentialInvalid(Unauthenticated):
    """A username and secret that do not belong together, or are no longer alive.

    `account` is the (id, name) of the account that was meant, None when there is none; `reason` one of a few words.
    """

    def __init__(self, message: str, *, account: tuple[int, str] | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.account = account
        self.reason = reason


class TokenInvalid(CredentialInvalid):
    """A token that is expired, forged, from elsewhere, or whose credential is no longer alive."""


class ApiKeyInvalid(Unauthenticated):
    """An API key that is unknown, revoked, expired, or used from outside its networks."""


class WorkloadTokenInvalid(Unauthenticated):
    """A token of a workload's platform that does not hold."""


class SignatureInvalid(Unauthenticated):
    """A report whose signature is missing, or not that of who should have sent it."""


class Denied(EntrepotError):
    """We know who asks, and they may not do this."""


class PlanDenied(Denied):
    """The account's plan does not grant the action."""

    reason = "plan"


class QuotaExceeded(Denied):
    """The repository has no room left for what was sent (an operator's policy)."""


class ScopeInsufficient(Denied):
    """The token was issued for less than this; a new token would do (RFC 6750, section 3.1)."""


class ApiKeyDenied(Denied):
    """The API key lacks the scope, or is limited to other plans."""


class WorkloadDenied(Denied):
    """The token holds, but no workload of its issuer has such claims."""


class TooManyRequests(EntrepotError):
    """More than is allowed in a stretch of time; in `retry_seconds` the next one begins."""

    def __init__(self, message: str, *, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class RateExceeded(TooManyRequests):
    """The API key asks more often than it may, or for more keys than it needs."""


class PullLimitExceeded(TooManyRequests):
    """The account took all that its plan allows for now; `limit` is the name of what it met.

    `pulls` is how many are allowed in how many seconds, None where the limit is not one of pulls.
    """

    def __init__(
        self, message: str, *, account: str, limit: str, pulls: tuple[int, int] | None, retry_seconds: int
    ) -> None:
        super().__init__(message, retry_seconds=retry_seconds)
        self.account = account
        self.reason = limit
        self.pulls = pulls


class TooManyFailures(TooManyRequests):
    """Too many wrong credentials came from one place, or for one name."""

    reason = "throttled"


class Unavailable(EntrepotError):
    """Something that this process needs does not answer; trying again later can help."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or stayed locked."""


class IssuerUnavailable(Unavailable):
    """The issuer of a workload's token does not answer, or not as OpenID Connect has it."""


class RedisUnavailable(Unavailable):
    """Redis cannot be reached, or failed."""


class StorageUnavailable(Unavailable):
    """Blob storage cannot be reached, or failed."""


class StorageFull(Unavailable):
    """There is no room left for what was sent."""


class SignerUnavailable(Unavailable):
    """The key service that signs what is published does not answer."""


class ScannerUnavailable(Unavailable):
    """The public keys of whoever reports leaked secrets cannot be fetched."""


class ArchiveUnwritable(Unavailable):
    """An archive that was to be exported cannot be written where it was to go."""


class StreamsExhausted(Unavailable):
    """As many clients follow runs as one process serves."""


class FetchUnfinished(Unavailable):
    """What was asked for is not here yet, and its source does not send it in time."""


class ArrivalBroken(Unavailable):
    """What was sent on while it arrived from its source did not arrive whole; what was sent of it is void."""


class ClientGone(EntrepotError):
    """The client went away, or stalled, before its body was complete; nothing of it is kept."""


class SourceError(EntrepotError):
    """The source registry of a replication is at fault; `temporary` says whether trying again can help."""

    temporary = False


class SourceUnreachable(SourceError):
    """The source does not answer, or breaks off."""

    temporary = True


class SourceUntrusted(SourceError):
    """The source's TLS certificate does not hold."""


class SourceDenied(SourceError):
    """The source refuses our credential."""


class SourceLoginMissing(SourceError):
    """The password, or the certificate authority, that a source is configured with cannot be read."""


class SourceMissing(SourceError):
    """The source does not have what it listed, or what a manifest of its own names."""


class SourceLied(SourceError):
    """The source sent content whose digest, size or shape differs from what it announced."""


class SourceEmptied(SourceError):
    """The source has nothing any more of what a rule brought here; nothing of it is deleted."""


class SourceUnsupported(SourceError):
    """The source has content of a kind that cannot be kept here."""


class SignatureRefused(SourceError):
    """The source has no signature for a tag that the rule's trust policy accepts; the tag is not published."""


class RunInterrupted(EntrepotError):
    """A replication run was stopped before its end, or taken over by another process."""


class RunCancelled(RunInterrupted):
    """Somebody asked for the end of a replication run."""


class WindowClosed(RunInterrupted):
    """A replication run goes on when its rule's window opens again."""
