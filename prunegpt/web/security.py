"""Who gets in: the name in the Host header, the token, the origin of what is posted; and what pages may do.

On the loopback address reading needs no token, for a root is readable on its machine anyway. Whatever may change
something needs it: other accounts of the machine reach the port too. And so does a page of another site that is open in
the same browser. Such a page is kept out by the Host header (it must name this server, so that a name that was
re-pointed to 127.0.0.1 is refused), and from acting by the Origin header and one of our own that no other origin may
set.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunegpt.tracking.endpoint.intake import Rejected, received

CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "style-src 'self'",
        "style-src-attr 'unsafe-inline'",  # plotly writes style attributes on what it draws
        "script-src 'self'",
        "connect-src 'self'",
        "object-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ACTION_HEADER = "X-PruneGPT"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")
_OPEN = ("/login", "/api/v1/health")  # and /static/
_FAILED_LOGIN = 0.5  # seconds that a wrong token costs
_LARGEST_FORM = 4096
_LOCKED = (
    "this needs the server's token: open the link that `prunegpt serve` printed, log in at /login, or send it "
    "as `Authorization: Bearer TOKEN` (W&B clients: as WANDB_API_KEY)."
)
_READING = ("GET", "HEAD", "OPTIONS")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


class Guard:
    """Stands before the app.

    Args:
        app: what answers those who get in.
        token: what they must know.
        open_to_read: who does not know it may look, and change nothing.
        host: the address that is listened on.
        port: its port; part of the cookie's name, as cookies are shared between ports.
        hosts: further names that a Host header may have, such as that of a proxy.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, open_to_read: bool, host: str, port: int, hosts: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._token = token
        self._cookie = f"prunegpt-{port}"
        self._session = _session(token)
        self._open_to_read = open_to_read
        self._everywhere = host in _EVERYWHERE
        named = {socket.gethostname(), socket.getfqdn()} if self._everywhere else {host}
        self._hosts = {name.casefold() for name in (*_LOOPBACK, *named, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path: str = scope["path"]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answered.setdefault(name, value)
                if not path.startswith("/static/"):
                    answered["Cache-Control"] = "no-store"
            await send(message)

        refused = self._refusal(scope["method"], path, headers)
        if refused is not None:
            await refused(scope, receive, sent)
        elif path == "/login" and scope["method"] == "POST":
            await (await self._login(Request(scope, receive)))(scope, receive, sent)
        elif self._is_open(scope["method"], path) or self._knows(headers):
            await self._app(scope, receive, sent)
        else:
            await self._unknown(scope)(scope, receive, sent)

    def _is_open(self, method: str, path: str) -> bool:
        """Whether it is answered to anybody."""
        return method in _READING and (self._open_to_read or path in _OPEN or path.startswith("/static/"))

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return _refused(
                403,
                "this server answers to its own name only. Use the address it printed, or start it with --allow-host.",
            )
        if method in _READING:
            return None
        own = {f"{scheme}://{host.casefold()}" for scheme in ("http", "https")}
        same_origin = headers.get("origin", f"http://{host}").casefold() in own
        if not same_origin or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return _refused(403, "only pages of this server may send it anything.")
        if path.startswith("/api/") and headers.get(ACTION_HEADER) != "1":
            return _refused(403, f"an action must carry the header {ACTION_HEADER}: 1.")
        return None

    def _is_ours(self, host: str) -> bool:
        name = _hostname(host)
        if name is None:
            return False
        return name in self._hosts or (self._everywhere and _address(name) is not None)

    def _knows(self, headers: Headers) -> bool:
        if _equal(cookie_parser(headers.get("cookie", "")).get(self._cookie, ""), self._session):
            return True
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.casefold() == "bearer":
            return _equal(secret.strip(), self._token)
        return kind.casefold() == "basic" and _equal(_password(secret), self._token)

    def _unknown(self, scope: Scope) -> Response:
        path: str = scope["path"]
        if scope["method"] == "GET" and not path.startswith("/api/v1/"):
            query = scope.get("query_string", b"").decode("latin-1")
            return RedirectResponse(f"/login?next={quote(path + (f'?{query}' if query else ''), safe='')}", 303)
        if path == "/graphql":  # as clients of W&B read it
            told = {"error": _LOCKED, "errors": [{"message": _LOCKED}]}
            return Response(json.dumps(told), 401, media_type="application/json")
        return _refused(401, _LOCKED)

    async def _login(self, request: Request) -> Response:
        try:
            data = await received(request, _LARGEST_FORM)
        except Rejected as error:
            return _refused(error.status, str(error))
        form = parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True)
        target = local_path(form.get("next", ["/"])[0])
        if not _equal(form.get("token", [""])[0].strip(), self._token):
            await asyncio.sleep(_FAILED_LOGIN)
            return RedirectResponse(f"/login?failed=1&next={quote(target, safe='')}", 303)
        response = RedirectResponse(target, 303)
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
        return response


def local_path(target: str) -> str:
    """A path of this server; the start page where the target is none, such as //elsewhere."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if plain and target.isascii() else "/"


def _session(token: str) -> str:
    """What the cookie holds: made from the token, which it does not give away."""
    return hmac.new(token.encode(), b"prunegpt session", hashlib.sha256).hexdigest()


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())


def _refused(status: int, message: str) -> Response:
    return Response(json.dumps({"error": message}), status, media_type="application/json")


def _hostname(host: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
    if host.startswith("["):
        name, closed, port = host[1:].partition("]")
        return name.casefold() if closed and (not port or port[1:].isdecimal()) else None
    name, _, port = host.partition(":")
    return name.casefold() if name and (not port or port.isdecimal()) else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _password(secret: str) -> str:
    """The second half of what Basic authentication sends."""
    try:
        return b64decode(secret.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
    except (Base64Error, ValueError):
        return ""
