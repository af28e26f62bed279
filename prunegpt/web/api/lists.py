"""Lists to take away: every trial of a sweep in full precision."""

import csv
import io
import json

from starlette.responses import Response

from prunegpt.web.api.curves import attachment
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Call, Endpoint
from prunegpt.web.rows import columns, value

_ALSO = ("protocol", "text", "error")


def as_csv(dashboard: Dashboard, call: Call) -> Response:
    """A row a trial, swept values first after the name."""
    trials = dashboard.source.trials(call.path["name"])
    keys = [column.key for column in columns(trials)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(key.removeprefix("swept.") for key in keys), *_ALSO])
    for trial in trials:
        writer.writerow([_text(value(trial, key)) for key in (*keys, *_ALSO)])
    name = f"{call.path['name']}-trials.csv"
    return Response(text.getvalue(), media_type="text/csv", headers=attachment(name))


def _text(given: bool | int | float | str | None) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        return given.replace("\r\n", "\n").replace("\r", "\n")
    return str(given).lower() if isinstance(given, bool) else repr(given)


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
