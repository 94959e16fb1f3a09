"""The one ASGI application: sends each path to its face, measures, and logs what operators want to know."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from prometheus_client import Counter, Histogram

from entrepot.errors import ArrivalBroken, ClientGone
from entrepot.web.asgi import App, Message, Receive, Scope, Send, send_json

REQUESTS = Counter("entrepot_http_requests_total", "Requests answered.", ["route", "method", "status"])
# Up to minutes, because an upload or download is one request.
SECONDS = Histogram(
    "entrepot_http_request_seconds",
    "Time from a request's headers to the end of its answer, in seconds.",
    ["route", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300),
)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

log = structlog.get_logger(__name__)


class Front:
    """`faces` are pairs of path and application, which answers for the path and, where it ends in `/`, all below.

    `starting` and `stopping` are called when this process begins and ends to serve (ASGI lifespan).
    """

    def __init__(
        self,
        faces: Sequence[tuple[str, App]],
        *,
        starting: Callable[[], Awaitable[None]],
        stopping: Callable[[], Awaitable[None]],
    ) -> None:
        self._faces = faces
        self._starting = starting
        self._stopping = stopping
        # Finding a labelled child costs more than counting in it.
        self._is_debugging = logging.getLogger().isEnabledFor(logging.DEBUG)
        self._meters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in starting and stopping."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        begun = time.perf_counter()

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["entrepot.status"] = message["status"]
            await send(message)

        try:
            await self._find_face(scope["path"])(scope, receive, send_noting)
        except (ClientGone, ArrivalBroken) as error:  # only after the answer has begun; before, a face answers
            log.info("answer_broken_off", path=scope["path"], reason=str(error))
            raise
        except Exception:
            log.exception("request_broke", path=scope["path"], method=scope["method"])
            if scope.get("entrepot.status"):  # an answer has begun, and can only be broken off
                raise
            await send_json(
                send_noting, 500, {"errors": [{"code": "UNKNOWN", "message": "internal error; it is logged"}]}
            )
        finally:
            self._note(scope, time.perf_counter() - begun)

    def _find_face(self, path: str) -> App:
        for own, face in self._faces:
            if path == own or (own.endswith("/") and path.startswith(own)):
                return face
        return _answer_unknown

    def _note(self, scope: Scope, seconds: float) -> None:
        status: int = scope.get("entrepot.status", 0)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key = (scope.get("entrepot.route", "unknown"), method, status)
        meters = self._meters.get(key)
        if meters is None:
            meters = (REQUESTS.labels(*key[:2], str(status)), SECONDS.labels(*key[:2]))
            self._meters[key] = meters
        meters[0].inc()
        meters[1].observe(seconds)
        is_change = method in {"POST", "PUT", "DELETE"}
        # 401 is how every client's first request ends.
        if is_change or (status >= 400 and status != 401):  # noqa: PLR2004
            log.info("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1))
        elif self._is_debugging:
            log.debug("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1))

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._starting()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._stopping()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _answer_unknown(scope: Scope, _receive: Receive, send: Send) -> None:
    """Say what is here instead of a bare 404."""
    document = {
        "service": "entrepot",
        "registry": "/v2/",
        "tokens": "/token",
        "api": "/api/v1",
        "api_docs": "/api/docs",
        "health": ["/livez", "/readyz"],
        "metrics": "/metrics",
    }
    status = 200 if scope["path"] == "/" else 404
    scope["entrepot.route"] = "root" if status == 200 else "unknown"  # noqa: PLR2004
    await send_json(send, status, document, is_head=scope["method"] == "HEAD")
