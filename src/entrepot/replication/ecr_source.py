"""A private ECR registry: listed through ECR's own API, read through `/v2/` like any other registry.

The API tells in one page of 1,000 images what their tags name and when they were pushed, where `/v2/` takes a request
per tag, and knows no push times. Its token is the password of a Basic login, good for 12 hours.
"""

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from entrepot.errors import DigestInvalid, NameInvalid, SourceLied, TagInvalid
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.replication.aws import AwsApi, open_aws
from entrepot.replication.backoff import Backoff, Deadlines
from entrepot.replication.kinds import find_listed_kind
from entrepot.replication.logins import FetchedPassword, RenewedLogin
from entrepot.replication.registry_source import RegistrySource
from entrepot.replication.source import TagEntry
from entrepot.replication.source_specs import EcrSpec

T = TypeVar("T")

# ECR grants 20 GetAuthorizationToken a second and does not tell the rate of the listing calls ("Troubleshooting Amazon
# ECR error messages"); others in the account want some of it, too.
_CALLS_PER_SECOND = 10
_PAGE = 1000
_MAX_PAGES = 10_000
_USERNAME = "AWS"


class EcrSource:
    """The ECR registry of an account in a region."""

    def __init__(self, name: str, account: str, api: AwsApi, registry: RegistrySource) -> None:
        self._name = name
        self._account = account
        self._api = api
        self._registry = registry

    @property
    def name(self) -> str:
        """What the rule file calls it."""
        return self._name

    async def list_repositories(self) -> AsyncIterator[RepositoryName]:
        """Every repository of the registry that our role may see."""
        async for entry in self._list("describe_repositories", "repositories"):
            yield self._parse(RepositoryName.parse, entry.get("repositoryName"), "repository")

    async def list_tags(self, repository: RepositoryName) -> AsyncIterator[TagEntry]:
        """Every tag of a repository, with its digest, when that was pushed, and its kind. Raises SourceMissing."""
        arguments = {"repositoryName": repository.value, "filter": {"tagStatus": "TAGGED"}}
        async for image in self._list("describe_images", "imageDetails", **arguments):
            digest = self._parse(Digest.parse, image.get("imageDigest"), "digest")
            pushed_at = image.get("imagePushedAt")
            kind = find_listed_kind(image.get("imageManifestMediaType"), image.get("artifactMediaType"))
            for tag in image.get("imageTags", []):
                yield TagEntry(
                    self._parse(Tag.parse, tag, "tag"),
                    digest,
                    pushed_at.astimezone(UTC) if isinstance(pushed_at, datetime) else None,
                    kind,
                )

    async def get_digest(self, repository: RepositoryName, tag: Tag) -> Digest:
        """What `tag` names now. Raises SourceMissing."""
        return await self._registry.get_digest(repository, tag)

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> Manifest:
        """A manifest; named by digest it has that digest. Raises SourceMissing or SourceLied."""
        return await self._registry.get_manifest(repository, reference)

    async def list_referrers(
        self, repository: RepositoryName, subject: Digest, *, has_fallback: bool = True
    ) -> list[Descriptor]:
        """What speaks of a manifest. Raises SourceUnsupported."""
        return await self._registry.list_referrers(repository, subject, has_fallback=has_fallback)

    def open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The pieces of a blob, which ECR has S3 send."""
        return self._registry.open_blob(repository, blob, start)

    async def _list(self, operation: str, field: str, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        """The entries on all pages of a list."""
        arguments |= {"registryId": self._account, "maxResults": _PAGE}
        seen: set[str] = set()
        for _ in range(_MAX_PAGES):
            page = await self._api.call(operation, **arguments)
            if field not in page:  # what is no answer of ECR's reads as one that says nothing
                raise SourceLied(f"source {self.name}: {operation} of AWS answers without {field}; check the endpoint")
            for entry in page[field]:
                yield entry
            token = page.get("nextToken")
            if not token:
                return
            if token in seen:
                break
            seen.add(token)
            arguments["nextToken"] = token
        raise SourceLied(f"source {self.name}: the pages of {operation} have no end")

    def _parse(self, parse: Callable[[str], T], text: object, what: str) -> T:
        try:
            return parse(str(text))
        except (NameInvalid, TagInvalid, DigestInvalid) as error:
            raise SourceLied(f"source {self.name} lists {str(text)[:150]!r}, which is no {what}") from error


@asynccontextmanager
async def open_ecr_api(spec: EcrSpec, deadlines: Deadlines, backoff: Backoff) -> AsyncIterator[AwsApi]:
    """ECR's API, as the source's role. Raises SourceError."""
    async with open_aws(
        spec.name,
        "ecr",
        spec.access,
        endpoint=spec.endpoint,
        network=spec.network,
        deadlines=deadlines,
        backoff=backoff,
        calls_per_second=_CALLS_PER_SECOND,
    ) as api:
        yield api


def make_ecr_login(
    spec: EcrSpec, deadlines: Deadlines, backoff: Backoff, monotonic: Callable[[], float]
) -> RenewedLogin:
    """The login at a registry, which outlives every opening of the source."""

    async def fetch() -> FetchedPassword:
        async with open_ecr_api(spec, deadlines, backoff) as api:
            return _parse_token(spec.name, await api.call("get_authorization_token"))

    return RenewedLogin(_USERNAME, fetch, monotonic)


def _parse_token(name: str, answer: dict[str, Any]) -> FetchedPassword:
    """The password in an answer to GetAuthorizationToken: base64 of `AWS:PASSWORD`, and when it ends."""
    entries = answer.get("authorizationData") or [{}]
    try:
        username, _, password = base64.b64decode(entries[0].get("authorizationToken", "")).decode().partition(":")
    except ValueError:
        username = password = ""
    if username != _USERNAME or not password:
        raise SourceLied(f"source {name}: AWS sent no registry token")
    ends_at = entries[0].get("expiresAt")
    life_seconds = (ends_at - datetime.now(UTC)).total_seconds() if isinstance(ends_at, datetime) else 0.0
    return FetchedPassword(password, life_seconds)
