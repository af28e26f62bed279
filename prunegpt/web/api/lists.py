"""Lists to take away: every trial of a sweep in full precision."""

import json

from starlette.responses import Response

from prunegpt.report.render.csv import lines
from prunegpt.web.api.curves import attachment
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Call, Endpoint
from prunegpt.web.rows import columns, value

_ALSO = ("protocol", "text", "error")


def as_csv(dashboard: Dashboard, call: Call) -> Response:
    """A row a trial, swept values first after the name."""
    trials = dashboard.source.trials(call.path["name"])
    keys = [column.key for column in columns(trials)]
    header = [*(key.removeprefix("swept.") for key in keys), *_ALSO]
    text = lines([header, *([value(trial, key) for key in (*keys, *_ALSO)] for trial in trials)])
    return Response(text, media_type="text/csv", headers=attachment(f"{call.path['name']}-trials.csv"))


def as_json(dashboard: Dashboard, call: Call) -> Response:
    """The records themselves."""
    trials = dashboard.source.trials(call.path["name"])
    text = json.dumps({"trials": [trial.described() for trial in trials]}, ensure_ascii=False)
    name = f"{call.path['name']}-trials.json"
    return Response(text, media_type="application/json", headers=attachment(name))


ENDPOINTS = (
    Endpoint("/sweeps/{name}/trials.csv", as_csv, "Every trial as CSV", media=("text/csv",)),
    Endpoint("/sweeps/{name}/trials.json", as_json, "Every trial's record as JSON"),
)
