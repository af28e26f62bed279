"""The JSON API, one file a resource: importing them enters all that is in `endpoint.ENDPOINTS`."""

from starlette.responses import JSONResponse

from prunegpt.web.api import actions, compare, curves, figures, graph, logged, panels, sweeps, tables, trials  # noqa: F401
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import document, endpoint


@endpoint("/openapi.json")
def reference(dashboard: Dashboard) -> JSONResponse:
    """This description, as OpenAPI 3.1."""
    return JSONResponse(document())
