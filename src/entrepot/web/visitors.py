"""Who a request comes from, before anybody knows which account: remembered, because the same clients come again."""

from entrepot.access.visitors import Visitor, client_of, site_of, truncate
from entrepot.storage.cache import Cache
from entrepot.web.asgi import Networks, Scope, client_address

_REMEMBERED = 20_000
# Longer headers are no client's, and would fill the memory.
_MAX_HEADER_BYTES = 512

_Key = tuple[str, bytes, bytes]


class Visitors:
    """Tells visitors apart. Behind proxies whose networks are `trusted`, by what they forward."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted
        # What is derived from the headers alone never changes, so this cache needs no signals.
        self._known: Cache[_Key, Visitor] = Cache(_REMEMBERED, lambda: True)

    def of(self, scope: Scope) -> Visitor:
        """The visitor who sent a request."""
        agent = forwarded = b""
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = value[:_MAX_HEADER_BYTES]
                if not self._trusted:
                    break
            elif name == b"x-forwarded-for" and self._trusted:
                forwarded += value[-_MAX_HEADER_BYTES:]
        client = scope.get("client")
        key = (client[0] if client else "", agent, forwarded)
        visitor = self._known.find(key)
        if visitor is None:
            network = truncate(client_address(scope, self._trusted))
            visitor = Visitor(network, client_of(agent.decode("latin-1")))
            self._known.keep(key, visitor, self._known.mark())
        return visitor

    def site_of(self, scope: Scope) -> str:
        """What is taken for one sender when somebody guesses."""
        return site_of(client_address(scope, self._trusted))
