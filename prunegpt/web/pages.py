"""The pages: templates that fetch what they show from the API."""

from collections.abc import Awaitable, Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from prunegpt import __version__
from prunegpt.errors import StoreError
from prunegpt.records import TrialResult
from prunegpt.report.field import display_name
from prunegpt.report.searched import prepare
from prunegpt.spec.search import searches_of
from prunegpt.store import SweepRow
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.security import local_path

_HERE = Path(__file__).parent
_MOST_COMPARED = 8


class Pages:
    """Renders templates; everything in them is escaped."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self._plain("sweeps.html", "Sweeps", "sweeps")),
            Route("/sweeps/{sweep}", self._of("sweep.html", "sweep")),
            Route("/sweeps/{sweep}/tables", self._of("tables.html", "tables")),
            Route("/sweeps/{sweep}/search", self._of("search.html", "search")),
            Route("/trials/{sweep}/{trial}", self._of("trial.html", "trial")),
            Route("/compare", self.compare),
            Route("/api", self._plain("openapi.html", "API", "api")),
            Route("/login", self.login),
            Route("/favicon.ico", self.icon),
            Route("/static/plotly.min.js", self.plotly),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ]

    def render(self, template: str, code: int = 200, **context: Any) -> HTMLResponse:
        """A page; `title` and `page` must be given."""
        given: Mapping[str, Any] = {"version": __version__, "root": str(self._dashboard.root.path), **context}
        return HTMLResponse(self._environment.get_template(template).render(given), code)

    def error(self, status: int, message: str) -> HTMLResponse:
        return self.render(
            "error.html", code=status, title=f"Error {status}", page="error", status=status, message=message
        )

    def _plain(self, template: str, title: str, page: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return self.render(template, title=title, page=page)

        return answer

    def _of(self, template: str, page: str) -> Callable[[Request], Awaitable[Response]]:
        """A page of a sweep or a trial; an error where there is none."""

        async def answer(request: Request) -> Response:
            parts, source = request.path_params, self._dashboard.source
            find: Callable[..., SweepRow | TrialResult] = source.trial if "trial" in parts else source.sweep
            try:
                found = await run_in_threadpool(find, *parts.values())
            except StoreError as error:
                return self.error(404, str(error))
            title = f"{display_name(found)} · {found.sweep}" if isinstance(found, TrialResult) else found.title
            answered = self.render(template, title=title, page=page, name=found.name, **parts)
            if isinstance(found, SweepRow) and (page == "search" or searches_of(found.spec)):
                answered.background = BackgroundTask(prepare)  # while the visitor reads, or the page loads
            return answered

        return answer

    async def compare(self, request: Request) -> Response:
        trials = request.query_params.getlist("trial")[:_MOST_COMPARED]
        return self.render("compare.html", title="Compare", page="compare", trials=trials)

    async def login(self, request: Request) -> Response:
        target = local_path(request.query_params.get("next", "/"))
        failed = request.query_params.get("failed") == "1"
        return self.render("login.html", title="Log in", page="login", next=target, failed=failed)

    async def icon(self, request: Request) -> Response:
        return FileResponse(_HERE / "static" / "icon.svg", media_type="image/svg+xml")

    async def plotly(self, request: Request) -> Response:
        """Plotly's script, as the installed package carries it."""
        found = find_spec("plotly")
        assert found is not None
        assert found.origin is not None
        file = Path(found.origin).parent / "package_data" / "plotly.min.js"
        return FileResponse(file, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})
