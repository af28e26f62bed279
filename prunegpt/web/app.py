"""The application: guard, pages, API, live updates, the W&B endpoint; and the server that runs it."""

import asyncio
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from threading import Thread

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prunegpt.access import SHORTEST, own_token
from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.tracking.endpoint.app import WandbServer
from prunegpt.tracking.endpoint.artifacts import ARTIFACTS, Artifacts
from prunegpt.tracking.endpoint.runs import UPLOADS
from prunegpt.web import api  # noqa: F401  # enters what ENDPOINTS holds
from prunegpt.web.connections import BoundedConnection, room
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import ENDPOINTS, PREFIX
from prunegpt.web.events import Events
from prunegpt.web.pages import Pages
from prunegpt.web.security import Guard, is_loopback

_GRACE = 3  # seconds that open connections get at the end


def create_app(
    root: Root,
    *,
    token: str,
    open_to_read: bool = False,
    host: str,
    port: int,
    hosts: Sequence[str] = (),
    uploads: int = UPLOADS,
    artifacts: int = ARTIFACTS,
) -> Starlette:
    """The dashboard of a root, which may be empty, or not be there yet; see `Guard` and `WandbServer`."""
    kept = Artifacts(root, artifacts)
    dashboard = Dashboard.open(root, kept)
    pages = Pages(dashboard)
    wandb = WandbServer(root, uploads, kept)

    async def missing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = error.detail if isinstance(error, HTTPException) else "this is a defect; the server's log has it."
        if request.url.path.startswith(PREFIX):
            return JSONResponse({"error": message}, status)
        return pages.error(status, message)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        Thread(target=dashboard.source.refresh, daemon=True).start()  # while the first visitor is on the way
        yield
        dashboard.close()
        await run_in_threadpool(wandb.close)

    entries = [entry.route(dashboard) for entry in ENDPOINTS]
    app = Starlette(
        routes=[Route(f"{PREFIX}/events", Events(dashboard).answer), *entries, *pages.routes(), *wandb.routes()],
        middleware=[Middleware(Guard, token=token, open_to_read=open_to_read, host=host, port=port, hosts=hosts)],
        exception_handlers={HTTPException: missing, 500: missing},
        lifespan=lifespan,
    )
    app.state.dashboard = dashboard
    return app


def run(
    root: Root,
    *,
    host: str,
    port: int,
    token: str | None = None,
    hosts: Sequence[str] = (),
    uploads: int = UPLOADS,
    artifacts: int = ARTIFACTS,
    open_browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serves a root until it is interrupted.

    Args:
        port: 0 takes a free one.
        token: what visitors must know; default the root's own, without which loopback clients have read access.
        hosts: further names that visitors may use.
        uploads: bytes that the uploaded files of one W&B run may take.
        artifacts: bytes that the artifacts of all W&B runs may take.

    Raises:
        LaunchError: a token that can be guessed, or an address that cannot be listened on.
    """
    if token is not None and len(token) < SHORTEST:
        raise LaunchError(
            f"a token must have {SHORTEST} characters at least; it has {len(token)}. Leave --token out: one is "
            "generated."
        )
    given = token is not None
    token = token or own_token(root)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    address = f"http://{_shown(host)}:{port}/"
    reading = not given and is_loopback(host)
    app = create_app(
        root, token=token, open_to_read=reading, host=host, port=port, hosts=hosts, uploads=uploads, artifacts=artifacts
    )
    most, at_once = room()
    config = uvicorn.Config(
        app,
        http=partial(BoundedConnection, most=most),  # type: ignore[arg-type]  # it is only called
        ws="none",
        backlog=at_once,
        log_level="error",  # a warning repeats what a client sent, as often as it does
        access_log=False,
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
        lifespan="on",
    )
    # Behind the # a browser keeps the token to itself: it is in no request and no log.
    link = address if given else f"{address}login#{token}"
    say(f"PruneGPT's dashboard of {root.path}: {link}  (Ctrl-C ends it)")
    if open_browser:
        webbrowser.open(address)  # other accounts see the command of a browser, and with it what it is to open
    try:
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        kind, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=kind)
    except OSError as error:
        raise LaunchError(
            f"the dashboard cannot listen on {host}:{port}: {error.strerror or error}. "
            f"Take another --port (0 finds one) or --host."
        ) from error


def _shown(host: str) -> str:
    """The host as a URL has it."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"[{name}]" if ":" in name else name
