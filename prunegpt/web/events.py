"""Live updates by server-sent events: only what has changed, to everyone who looks."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from prunegpt.records import TrialResult
from prunegpt.store.watch import LastPoint
from prunegpt.web.api.sweeps import progress, slots
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import ErrorAnswer, reply
from prunegpt.web.rows import rows

_EVERY = 0.5  # seconds between two looks
_HEARTBEAT = 15  # seconds
_MOST_ROWS = 200  # in one event; more, and the page fetches them
_MOST_LISTENERS = 100


class Events:
    """The stream of one dashboard. An event's id is SESSION-REVISION, from which a reconnecting page continues."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._listeners = 0

    async def answer(self, request: Request) -> Response:
        """?sweep=NAME for one sweep, &trial=NAME for the points of one of its trials; all sweeps without.

        &since=REVISION of what the page has shown first gets it what has changed meanwhile; a page that comes back
        sends the id of the last event instead.
        """
        if self._listeners >= _MOST_LISTENERS:
            return reply(ErrorAnswer(error=f"at most {_MOST_LISTENERS} pages can listen at a time. Close some."), 503)
        sweep = request.query_params.get("sweep") or None
        trial = request.query_params.get("trial") or None
        last = request.headers.get("last-event-id") or request.query_params.get("since", "")
        stream = self._stream(sweep, trial, last)
        return EventSourceResponse(stream, ping=_HEARTBEAT, headers={"Cache-Control": "no-store"})

    async def _stream(self, sweep: str | None, trial: str | None, last: str) -> AsyncIterator[ServerSentEvent]:
        self._listeners += 1
        try:
            source = self._dashboard.source
            seen = await run_in_threadpool(source.refresh)
            missed = source.after(last)
            if missed is not None:
                seen = missed
            elif last:
                yield self._event("reload", {}, seen)
            yield self._event("ready", {"revision": seen}, seen)
            while True:
                now, told = await run_in_threadpool(self._since, seen, sweep, trial)
                for kind, data in told:
                    yield self._event(kind, data, now)
                seen = now
                await asyncio.sleep(_EVERY)
        finally:
            self._listeners -= 1

    def _event(self, kind: str, data: Any, revision: int) -> ServerSentEvent:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return ServerSentEvent(text, event=kind, id=f"{self._dashboard.source.session}-{revision}")

    def _since(self, seen: int, sweep: str | None, trial: str | None) -> tuple[int, list[tuple[str, Any]]]:
        """The events after a revision."""
        source = self._dashboard.source
        with source.following():
            now = source.revision
            if now == seen:
                return now, []
            changed = source.changed_trials(seen, sweep)
            written = source.written(seen, sweep)
            moved = source.changed_sweeps(seen)
        shown = dict.fromkeys([*moved, *(one.sweep for one in changed)])
        names = [name for name in shown if sweep in (None, name)]
        told: list[tuple[str, Any]] = [("sweep", self._sweep(name, changed)) for name in names]
        told += [("points", _points(one, points)) for one, points in written if trial is None or trial == one.name]
        moved_on = dict.fromkeys([*names, *(one.sweep for one, _ in written)])
        told += [("progress", self._progress(name)) for name in moved_on if source.has(name)]
        return now, told

    def _sweep(self, name: str, changed: list[TrialResult]) -> dict[str, Any]:
        own = [trial for trial in changed if trial.sweep == name and trial.shown]
        more = len(own) > _MOST_ROWS
        shown = [] if more else rows(self._dashboard, own)
        return {"name": name, "changed": [row.model_dump(mode="json") for row in shown], "more": more}

    def _progress(self, name: str) -> dict[str, Any]:
        with self._dashboard.source.following():
            running = slots(self._dashboard, name)
            done = progress(
                self._dashboard.source.sweep(name),
                self._dashboard.source.trials(name),
                running,
                self._dashboard.budgets,
            )
        return {"sweep": name, "slots": [asdict(slot) for slot in running], "progress": done.model_dump()}


def _points(trial: TrialResult, points: list[LastPoint]) -> dict[str, Any]:
    newest: dict[str, LastPoint] = {}
    for point in sorted(points, key=lambda point: (point.stage, point.step)):
        newest[point.name] = point
    return {
        "trial": trial.address,
        "id": trial.id,
        "names": sorted(newest),
        "last": {
            name: {"stage": point.stage, "step": point.step, "value": point.value, "tokens": point.tokens}
            for name, point in sorted(newest.items())
        },
    }
