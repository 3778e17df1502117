"""Who may ask, and what every answer says: the one door to the playground.

A page of another site, open in the same browser, can send requests to this machine. It cannot read the answers, and is not to have
anything done either: names that another site may have made point here are refused (DNS rebinding), and so is what another origin posts.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charrnn.web import limits

OPEN = frozenset(["/app.css", "/app.js", "/icon.svg", "/v1/healthz", "/v1/openapi.json"])  # tell nothing of the models
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Access:
    names: frozenset[str] = frozenset()  # of this machine, besides `localhost`
    loopback: bool = True  # only this machine can reach it
    token: str | None = None  # what everyone has to show

    def knows(self, host: str) -> bool:
        """Whether a Host header names this machine: no name that others can have point here. An address is none."""
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        name = name.lower().rstrip(".")
        if name == "localhost" or name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def admits(self, shown: str | None) -> bool:
        """In a time that does not tell how much of a token is right."""
        return self.token is None or (shown is not None and hmac.compare_digest(shown.encode(), self.token.encode()))


def is_loopback(host: str) -> bool:
    """Whether what listens there can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Refused(Exception):
    """A request that is not answered: a 4xx and one line."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.message}, self.status, dict(self.headers))


class Guard:
    """Around an ASGI application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self._check(scope)
        except Refused as refused:
            # Its body is not read, and what follows on this connection would be that.
            headers = {**refused.headers, "connection": "close"}
            await Refused(refused.status, refused.message, headers).response()(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > limits.LONGEST_URL:
            raise Refused(414, f"the address is too long; expected at most {limits.LONGEST_URL:,} characters")
        hosts, origins = _all(scope, b"host"), _all(scope, b"origin")
        if len(hosts) != 1 or not self._access.knows(hosts[0]):
            raise Refused(403, "Host: not a name of this server; open it by its address, as http://127.0.0.1 and the port")
        foreign = any(origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}") for origin in origins)
        site = _all(scope, b"sec-fetch-site")
        if scope["method"] not in ("GET", "HEAD") and (foreign or any(s not in ("same-origin", "none") for s in site)):
            raise Refused(403, "Origin: a page of another site; expected the playground's own page, or a program")
        if scope["path"] not in OPEN and not self._access.admits(_shown(scope)):
            needed = "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN for the page"
            raise Refused(401, needed, {"www-authenticate": "Bearer"})


def _shown(scope: Scope) -> str | None:
    """The token of a request: a page's may stand in its address, for nobody can add a header there."""
    for value in _all(scope, b"authorization"):
        kind, _, token = value.partition(" ")
        if kind.lower() == "bearer":
            return token.strip()
    if scope["path"] != "/":
        return None
    return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("token", [])), None)


def _all(scope: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
