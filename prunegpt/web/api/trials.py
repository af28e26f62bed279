"""One trial: configuration, results, log."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nh3
from markdown_it import MarkdownIt
from pydantic import Field

from prunegpt.errors import StoreError, listed
from prunegpt.records import TrialResult
from prunegpt.report.config import differing
from prunegpt.report.stored_model import StoredModel, stored_model
from prunegpt.store import CurveRow
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import PREFIX, Answer, ApiRequest, RequestError, endpoint
from prunegpt.web.rows import StageShort, stages

_LOG_AT_MOST = 1 << 20  # bytes of a log in one answer
_LOG = "log.txt"
_OVERWRITTEN = re.compile(
    r"[^\n]*\r(?=[^\r\n])"
)  # what a terminal would no longer show, such as earlier states of a bar
_TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


class IntervalAnswer(Answer):
    low: float
    high: float


class AttemptDetail(Answer):
    """One execution."""

    number: int
    state: str
    reason: str
    error: str
    trace: str
    started: float
    ended: float | None
    device: str
    versions: dict[str, str]
    folder: str
    log: str | None = Field(description="where its log is read; null where no worker ran")
    last_lines: str = Field(description="of its log, where it did not finish")
    outcome: str = Field(description="the state that the trial got with it, or retried; empty while it runs")


class Relative(Answer):
    trial: str
    key: str


class Lineage(Answer):
    """Parents: trials that this one resumes from; children resume from it; teachers taught it."""

    parents: list[Relative]
    children: list[Relative]
    teachers: list[Relative]
    twins: list[Relative] = Field(description="trials with the same configuration")


class Difference(Answer):
    path: str
    base: Any
    value: Any


class TrialNote(Answer):
    text: str
    html: str


class Trial(Answer):
    """A trial: its result as recorded, and its context."""

    revision: str = Field(description="what /events takes as `since`, to get all that changes from here on")
    id: int
    sweep: str
    name: str
    group: str
    seed: int
    label: str
    order: int
    implicit: bool
    shown: bool
    state: str
    running_now: bool = Field(description="whether somebody runs it: its coordinator may have died")
    key: str
    evaluation_key: str
    swept: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    stages: list[dict[str, Any]]
    reason: str
    error: str
    folder: str
    asked: str = Field(description="what was requested of it and has not happened yet: stop, retry, or empty")
    started: float | None
    ended: float | None
    chain: list[StageShort]
    interval: IntervalAnswer | None
    attempts: list[AttemptDetail]
    lineage: Lineage
    differences: list[Difference]
    logged: bool = Field(description="it is a run that a W&B client has logged, which cannot be run here")
    command: str | None = Field(description="runs it; null for what cannot be run")
    replay: str | None = Field(description="runs the last attempt's folder again by hand")
    model: StoredModel | None = Field(description="null until it has finished, and of what W&B clients have logged")
    notes: TrialNote
    curves: list[CurveRow]


class LogQuery(ApiRequest):
    attempt: int | None = Field(None, ge=1, le=2**31, description="attempt number (default: the last)")
    tail: int = Field(200, ge=1, le=10_000, description="lines from the end")


class Log(Answer):
    text: str
    size: int
    path: str
    attempt: int
    truncated: bool


@endpoint("/trials/{sweep}/{trial}")
def one(dashboard: Dashboard, sweep: str, trial: str) -> Trial:
    """One trial with attempts, lineage, differences and notes."""
    with dashboard.source.following():
        mark = dashboard.source.mark
        found = dashboard.source.trial(sweep, trial)
    store = dashboard.source.store
    bounds = dashboard.intervals.find([found])[found.id]
    note = store.note(found.id)
    source = dashboard.source.sweep(found.sweep)
    log = f"{PREFIX}/trials/{found.address}/log?attempt="
    attempts = [
        AttemptDetail.model_validate(
            {**asdict(row), "log": f"{log}{row.number}" if row.folder else None, "last_lines": row.log}
        )
        for row in store.attempts(found.id)
    ]
    again = ("sweep", "run", source.source or "SPEC", "--only", found.plan.search or found.name)
    runs = found.folder and not found.plan.foreign
    result = found.described()
    del result["attempts"]  # their number; here they are listed
    return Trial(
        **result,
        revision=mark,
        asked=dashboard.asked(found.sweep, found.name),
        running_now=dashboard.runs(found),
        chain=stages(found),
        interval=IntervalAnswer(low=bounds[0], high=bounds[1]) if bounds else None,
        attempts=attempts,
        lineage=lineage(found, dashboard.source.every_trial()),
        differences=differences(source.spec.get("base") or {}, found.config),
        logged=found.plan.foreign,
        command=None if found.plan.foreign else dashboard.root.command(*again, always=True),
        replay=dashboard.root.command("trial", "run", f"{dashboard.root.path}/{found.folder}") if runs else None,
        model=stored_model(found, dashboard.root),
        notes=noted(note),
        curves=store.curves(found.id),
    )


def lineage(trial: TrialResult, others: list[TrialResult]) -> Lineage:
    """Who shares what with a trial, over all sweeps."""
    planned = trial.plan.stages
    before = {stage.key for stage in planned[:-1]}
    taught = {stage.teacher for stage in planned if stage.teacher}
    parents, children, teachers, twins = [], [], [], []
    for other in others:
        if other.id == trial.id or not other.shown:
            continue
        relative = Relative(trial=other.address, key=other.key)
        if other.key == trial.key:
            twins.append(relative)
        elif other.key in before:
            parents.append(relative)
        elif any(stage.key == trial.key for stage in other.plan.stages):
            children.append(relative)
        if other.key in taught:
            teachers.append(relative)
    return Lineage(parents=parents, children=children, teachers=teachers, twins=twins)


def differences(base: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """Where a trial's configuration differs from the base of its sweep; null where one side has nothing."""
    here = {key: item for key, item in config.items() if key not in ("name", "seeds")}
    there = {key: _long(item, here.get(key)) for key, item in base.items() if key not in ("name", "seeds")}
    return [Difference(path=path, base=one, value=two) for path, (one, two) in differing(there, here).items()]


def _long(short: Any, written: Any) -> Any:
    """`model: gpt2` means `{source: gpt2}`: a text where the trial has a mapping is the value of its one key."""
    if isinstance(short, str) and isinstance(written, dict):
        return next(({key: short} for key, item in written.items() if item == short), short)
    return short


@endpoint("/trials/{sweep}/{trial}/log")
def log(dashboard: Dashboard, sweep: str, trial: str, asked: LogQuery) -> Log:
    """The end of an attempt's log."""
    found = dashboard.source.trial(sweep, trial)
    ran = [row for row in dashboard.source.store.attempts(found.id) if row.folder]
    wanted = [row for row in ran if asked.attempt in (None, row.number)]
    if not wanted:
        numbers = listed(str(row.number) for row in ran)
        raise StoreError(f"a log belongs to an attempt that ran; {asked.attempt} is none. Attempts: {numbers}.")
    path = inside(dashboard.root.path, wanted[-1].folder, _LOG)
    text, size, truncated = tail(path, asked.tail) if path.is_file() else ("", 0, False)
    return Log(text=text, size=size, path=f"{wanted[-1].folder}/{_LOG}", attempt=wanted[-1].number, truncated=truncated)


def inside(root: Path, *parts: str) -> Path:
    """A path below the root, links followed.

    Raises:
        RequestError: it is elsewhere.
    """
    found = Path(root, *parts).resolve()
    if not found.is_relative_to(root.resolve()):
        raise RequestError(403, "only files in the root are served.")
    return found


def tail(path: Path, lines: int) -> tuple[str, int, bool]:
    """The last lines of a file, its size in bytes, and whether something before them is left out."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _LOG_AT_MOST)
        file.seek(start)
        text = file.read(_LOG_AT_MOST).decode("utf-8", "replace")
    text = _OVERWRITTEN.sub("", text)
    if start:
        text = text.partition("\n")[2] or text
    found = text.splitlines(keepends=True)
    return "".join(found[-lines:]), size, bool(start) or len(found) > lines


def noted(text: str) -> TrialNote:
    """A note with its Markdown as safe HTML, whatever the text is.

    Written HTML is shown as text, images are left out, and links lead to http, https and mail only.
    """
    html = nh3.clean(
        _PARSER.render(text),
        tags=_TAGS,
        attributes={"a": {"href", "title"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return TrialNote(text=text, html=html)
