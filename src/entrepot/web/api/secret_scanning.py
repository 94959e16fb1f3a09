"""Where a scanner of public sources reports secrets of ours that it found.

Source: GitHub Docs, "Secret scanning partner program", request and feedback. There is no API key: the report is signed.
"""

import asyncio
import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from entrepot.access.secrets import Secret
from entrepot.accounts.audit import Actor
from entrepot.accounts.leaks import Finding
from entrepot.errors import ClientGone, PathUnknown, RequestInvalid
from entrepot.web.api.services import Services
from entrepot.web.asgi import client_address

PATH = "/secret-scanning/alerts"
# Some thousand findings; more come in another report.
MAX_REPORT_BYTES = 1024 * 1024
_MAX_FINDINGS = 5000
# GitHub itself waits no longer for the answer.
_BODY_SECONDS = 30
_ACTOR = "secret-scanning"

router = APIRouter(tags=["secret scanning"])


class Alert(BaseModel):
    """One finding, as the scanner describes it."""

    token: Annotated[str, Field(max_length=1000)]
    type: Annotated[str, Field(max_length=200)] = ""
    url: Annotated[str, Field(max_length=4000)] | None = None
    source: Annotated[str, Field(max_length=200)] | None = None


class Label(BaseModel):
    """What a finding was: the SHA-256 of its token, and whether that is, or was, a secret of ours."""

    token_hash: str
    token_type: str
    label: Literal["true_positive", "false_positive"]


_report = TypeAdapter(Annotated[list[Alert], Field(max_length=_MAX_FINDINGS)])


@router.post(PATH, responses={404: {}})
async def receive_alerts(request: Request) -> list[Label]:
    """Revoke the secrets of a signed report that are ours, and tell which are."""
    services: Services = request.app.state.services
    if services.scanner is None:
        raise PathUnknown("reports of leaked secrets are not taken here; see ENTREPOT_SECRET_SCANNING__ENABLED")
    body = await _read_body(request)
    key_id, signature = (request.headers.get(f"github-public-key-{name}", "") for name in ("identifier", "signature"))
    await services.scanner.verify(body, key_id, signature)
    alerts = _read_report(body)
    address = client_address(request.scope, services.trusted_proxies)
    actor = Actor(_ACTOR, request.state.request_id, None if address is None else str(address))
    findings = [Finding(Secret(one.token.strip()), one.url or "", one.source or "") for one in alerts]
    ours = await services.leaks.revoke(findings, actor)
    return [
        Label(
            token_hash=hashlib.sha256(alert.token.encode("utf-8", "surrogatepass")).hexdigest(),
            token_type=alert.type,
            label="true_positive" if is_ours else "false_positive",
        )
        for alert, is_ours in zip(alerts, ours, strict=True)
    ]


async def _read_body(request: Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise ClientGone(f"the report did not come within {_BODY_SECONDS} seconds; nothing was kept") from None


def _read_report(body: bytes) -> list[Alert]:
    try:
        return _report.validate_json(body)
    except ValidationError as error:
        # Without its values, which may be secrets.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestInvalid(f"the report is not an array of findings: {where}: {first['msg']}") from None
