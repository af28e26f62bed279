"""The JSON API, one file a resource. Every entry is listed in `endpoints`, from which its reference is made too."""

from functools import cache

from prunegpt.web.api import actions, compare, curves, figures, graph, sweeps, tables, trials
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Call, Endpoint
from prunegpt.web.openapi import Document, describe


def endpoints() -> tuple[Endpoint, ...]:
    """Every entry, in the order of the reference."""
    return (
        *sweeps.ENDPOINTS,
        *graph.ENDPOINTS,
        *figures.ENDPOINTS,
        *tables.ENDPOINTS,
        *trials.ENDPOINTS,
        *curves.ENDPOINTS,
        *compare.ENDPOINTS,
        *actions.ENDPOINTS,
        Endpoint("/openapi.json", reference, "This description, as OpenAPI 3.1", Document),
    )


def reference(dashboard: Dashboard, call: Call) -> Document:
    return document()


@cache
def document() -> Document:
    """The description of all entries."""
    return Document.model_validate(describe(endpoints()))
