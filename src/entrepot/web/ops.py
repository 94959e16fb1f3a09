"""What operators ask: /livez, /readyz, /metrics.

Source: Kubernetes, "API health endpoints", for the paths; Prometheus text exposition format.
"""

from collections.abc import Awaitable, Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from entrepot.errors import EntrepotError
from entrepot.web.asgi import Receive, Scope, Send, send_bytes, send_json

Check = Callable[[], Awaitable[None]]


class OpsFace:
    """`collect` gathers the metrics. `checks` are named dependencies; each raises when it does not serve."""

    def __init__(self, collect: Callable[[], Awaitable[CollectorRegistry]], checks: Mapping[str, Check]) -> None:
        self._collect = collect
        self._checks = checks

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_head = scope["method"] == "HEAD"
        # One of the few paths that this face was given, so that nobody makes up routes in the metrics.
        scope["entrepot.route"] = scope["path"].lstrip("/")
        if scope["method"] not in {"GET", "HEAD"}:
            await send_json(send, 405, {"status": "only GET is possible here"}, [(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/metrics":
            content = generate_latest(await self._collect())
            await send_bytes(send, 200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], content, is_head=is_head)
        elif scope["path"] == "/livez":
            await send_json(send, 200, {"status": "ok"}, is_head=is_head)
        else:
            outcome = {name: await _outcome(check) for name, check in self._checks.items()}
            is_ready = all(value == "ok" for value in outcome.values())
            document = {"status": "ok" if is_ready else "unavailable", "checks": outcome}
            await send_json(send, 200 if is_ready else 503, document, is_head=is_head)


async def _outcome(check: Check) -> str:
    try:
        await check()
    except EntrepotError as error:
        return str(error)
    return "ok"
