"""Before every page: only names of this machine are answered, and a page may load nothing foreign."""

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from nonpareil.viewing.pages import POLICY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware: refuses requests by a foreign name, and adds `HEADERS` to every answer.

    A site on the internet can have its own name point to this machine (DNS rebinding), and would then read the
    pages through a visitor's browser; the browser still sends that name. An address of numbers is nobody's name.
    """

    def __init__(self, app: Any, allowed: Iterable[str]):
        """`allowed`: names beside localhost and addresses."""
        self.app, self.allowed = app, {"localhost", *(host.lower() for host in allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                kept = [
                    (key, value)
                    for key, value in message.get("headers", ())
                    if key.decode().lower() not in HEADERS
                ]
                message = {**message, "headers": kept + own}
            await send(message)

        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        if len(hosts) != 1 or not self._is_allowed(hosts[0]):
            return await _refuse(send_guarded)
        return await self.app(scope, receive, send_guarded)

    def _is_allowed(self, host: str) -> bool:
        name = host_name(host)
        if name in self.allowed:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def host_name(host: str) -> str:
    """A Host header without its port, and an IPv6 address without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


async def _refuse(send: Send) -> None:
    body = b"This name is not one of this machine's; use the printed address, or --allowed_hosts.\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
