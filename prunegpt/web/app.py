"""The application: guard, pages, API, live updates, and the W&B endpoint where there is one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from threading import Thread

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from prunegpt.root import Root
from prunegpt.tracking.endpoint.app import Endpoint
from prunegpt.web import api  # noqa: F401  # enters what ENDPOINTS holds
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import ENDPOINTS, PREFIX
from prunegpt.web.events import Events
from prunegpt.web.pages import Pages
from prunegpt.web.security import Guard


def create_app(
    root: Root, *, token: str, open_to_read: bool = False, host: str, port: int, hosts: Sequence[str] = ()
) -> Starlette:
    """The dashboard of a root, which may be empty, or not be there yet; see `Guard` for the others."""
    dashboard = Dashboard.open(root)
    pages = Pages(dashboard)
    wandb = Endpoint(root)

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
        routes=[Events(dashboard).route(), *entries, *pages.routes(), *wandb.routes()],
        middleware=[Middleware(Guard, token=token, open_to_read=open_to_read, host=host, port=port, hosts=hosts)],
        exception_handlers={HTTPException: missing, ClientDisconnect: missing, 500: missing},
        lifespan=lifespan,
    )
    app.state.dashboard = dashboard
    return app
