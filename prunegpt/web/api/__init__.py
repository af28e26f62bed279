"""The JSON API, one file a resource: importing them enters all that is in `endpoint.ENDPOINTS`."""

from starlette.responses import JSONResponse

from prunegpt.web.api import (  # noqa: F401
    actions,
    compare,
    curves,
    figures,
    graph,
    lists,
    logged,
    panels,
    sweeps,
    tables,
    trials,
)
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import document, endpoint


@endpoint("/openapi.json")
def reference(dashboard: Dashboard) -> JSONResponse:
    """This description, as OpenAPI 3.1."""
    return JSONResponse(document())
