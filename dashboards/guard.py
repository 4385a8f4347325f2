"""What stands in front of every page: who may ask, and what a page may do.

Nothing behind it has a login, and the Optuna dashboard checks nothing itself. A web page that the user visits
elsewhere must therefore neither read nor write here: the Host header has to be ours (a foreign name that
resolves to this machine is not), and a request that changes something has to come from a page of ours.
"""

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_PAGES = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Plotly styles its charts inline; scripts come from files only."""

ENGINE_PAGES = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-src 'self' blob:; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'self'"
)
"""The engines' interfaces as they are built, but none of them reaches another machine."""

REPORT = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""A self-contained file: everything in it, nothing from elsewhere."""

_SAFE = ("GET", "HEAD", "OPTIONS")


def allowed_hosts(host: str) -> frozenset[str]:
    """Host names that may be asked for when listening on `host`; beyond loopback, this machine's own too."""
    names = {"localhost", "127.0.0.1", "::1"}
    if not is_loopback(host):
        names |= {host, socket.gethostname(), socket.getfqdn()} | set(_addresses())
    return frozenset(name.lower() for name in names)


class Guard:
    """ASGI middleware: 403 for a foreign Host or Origin; security headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]):
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        reason = self._refusal(scope["method"], headers)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(MutableHeaders(raw=message["headers"]), scope["path"])
            await send(message)

        app = PlainTextResponse(f"{reason}\n", 403) if reason else self._app
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> str:
        host = headers.get("host", "")
        if _name(host) not in self._hosts:
            return "Forbidden: this address is not served here. Use the one that `ablate dashboard` printed."
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = (origin is not None and urlsplit(origin).netloc != host) or site == "cross-site"
        navigates = headers.get("sec-fetch-mode") == "navigate" or site is None
        if foreign and not (method in _SAFE and navigates):
            return "Forbidden: this request comes from a page of another site."
        return ""


def _protect(headers: MutableHeaders, path: str) -> None:
    engine = path.startswith(("/mlflow", "/dashboard", "/static", "/api", "/artifacts", "/csv"))
    headers.setdefault("Content-Security-Policy", ENGINE_PAGES if engine else OWN_PAGES)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "SAMEORIGIN" if engine else "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if "access-control-allow-origin" in headers:
        del headers["Access-Control-Allow-Origin"]


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty where it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses() -> list[str]:
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    except OSError:
        return []
    try:  # the address that faces the network; connecting a datagram socket sends nothing
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            found.append(probe.getsockname()[0])
    except OSError:
        pass
    return found
