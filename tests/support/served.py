"""The whole application in this process, on a folder of its own, with accounts to call it."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from entrepot.access.plans import parse_plans
from entrepot.accounts.audit import Actor
from entrepot.accounts.service import IssuedCredential
from entrepot.bootstrap import Parts, build_app, build_parts, close_parts
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.settings import Settings
from entrepot.storage.tables import api_keys, metadata
from tests.support.content import Image

PLANS = {
    "plans": {
        "free": {"grants": [{"repositories": ["smm/**", "charts/smm"], "actions": ["pull"]}]},
        "publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push", "delete"]}]},
    }
}
_NO_GRACE = timedelta(0)
TESTER = Actor("tester")


class Served:
    """The application and its parts."""

    def __init__(self, parts: Parts, http: httpx.AsyncClient) -> None:
        self.parts = parts
        self.http = http

    async def issue(self, plan: str, external_id: str | None = None) -> IssuedCredential:
        """A new account on a plan, or a new credential for one that exists."""
        account, issued = await self.parts.accounts.create(external_id or plan, plan, {}, None, TESTER)
        return issued or await self.parts.accounts.issue_credential(account.name, _NO_GRACE, TESTER)

    async def client(self, plan: str, external_id: str | None = None) -> "RegistryClient":
        """A client that logs in with a credential on a plan."""
        return RegistryClient(self.http, await self.issue(plan, external_id))


class RegistryClient:
    """Calls `/v2/` with one credential, by Basic."""

    def __init__(self, http: httpx.AsyncClient, credential: IssuedCredential) -> None:
        self.http = http
        self.credential = credential
        pair = f"{credential.username}:{credential.secret.reveal()}".encode()
        self.basic = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}

    async def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request; headers given here come on top."""
        headers = self.basic | arguments.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **arguments)

    async def token(self, *scopes: str) -> str:
        """A token for these scopes."""
        answer = await self.http.get("/token", params=[("scope", scope) for scope in scopes], headers=self.basic)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    async def push_blob(self, repository: str, content: bytes) -> Digest:
        """Push a blob in one request."""
        digest = Digest.of(content)
        answer = await self.call("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", content=content)
        if not content:
            answer = await self.call("PUT", f"{answer.headers['location']}?digest={digest}")
        assert answer.status_code == 201, answer.text
        return digest

    async def push_manifest(
        self, repository: str, reference: str, content: bytes, media_type: str = media_types.OCI_MANIFEST
    ) -> httpx.Response:
        """Push a manifest."""
        headers = {"Content-Type": media_type}
        return await self.call("PUT", f"/v2/{repository}/manifests/{reference}", content=content, headers=headers)

    async def push_image(self, repository: str, tag: str, image: Image | None = None) -> Image:
        """Push an image."""
        image = image or Image()
        await self.push_blob(repository, image.config)
        await self.push_blob(repository, image.layer)
        answer = await self.push_manifest(repository, tag, image.manifest)
        assert answer.status_code == 201, answer.text
        return image


@asynccontextmanager
async def serve(folder: Path, **settings: Any) -> AsyncIterator[Served]:
    """The application over a folder, with the plans `free` and `publisher`."""
    parts = build_parts(Settings(data=folder, **settings))
    app = build_app(parts)
    await parts.start()
    try:
        await parts.plans.apply(parse_plans(PLANS), TESTER)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http:
            yield Served(parts, http)
    finally:
        await parts.stop()
        close_parts(parts)


def rows_of(served: Served) -> dict[str, list[Any]]:
    """Every row of every table, for tests that say that nothing was changed.

    Without when API keys were last used, which is written down a moment later.
    """

    def work(connection: sa.Connection) -> dict[str, list[Any]]:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(query)), key=str)
            for table in metadata.sorted_tables
            for query in [sa.select(*(column for column in table.c if column is not api_keys.c.last_used_at))]
        }

    return served.parts.database.read_now(work)


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, for tests that say that nothing was stored."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
