"""Lists of trials: filtered, sorted, grouped, a page at a time."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from prunegpt.records import TrialResult
from prunegpt.report.field import TrialField
from prunegpt.report.fields import FieldError, TrialFields, ordered
from prunegpt.report.format import is_number
from prunegpt.report.groups import Group, Spread, grouped
from prunegpt.report.query import where
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, ApiRequest, RequestError, endpoint
from prunegpt.web.rows import TrialColumn, TrialRow, column, columns, rows

_MOST = 10_000  # trials in one answer
_MOST_BY = 5  # fields to group by
_COUNT = "count"  # what groups can be sorted by beside their fields


class TrialFilter(ApiRequest):
    """Which trials of a sweep."""

    where: str = Field("", description="a filter, such as `perplexity < 40 and seed == 1`; see docs/how-to/filters.md")
    state: str = Field("", description="only of these states, with commas between them")
    q: str = Field("", description="a second filter; the same as `where`")


class TrialPage(TrialFilter):
    """Which of them, in which order."""

    offset: int = Field(0, ge=0, le=10**9, description="the first one of the page")
    limit: int = Field(200, ge=1, le=_MOST, description="how many the page has")
    sort: str = Field("", description="name or key of a field; spec order where empty")
    descending: bool = Field(False, description="greatest first")
    columns: list[str] = Field([], description="names or keys of further fields, with commas between them")


class GroupQuery(TrialPage):
    by: list[str] = Field([], description="names or keys of the fields that trials of a group agree in")


class TrialList(Answer):
    revision: str = Field(description="what /events takes as `since`, to get all that changes from here on")
    total: int = Field(description="trials that match, on all pages")
    columns: list[TrialColumn]
    trials: list[TrialRow]


class FieldShort(TrialColumn):
    differs: bool = Field(description="whether trials of the sweep have several values of it")


class FieldList(Answer):
    fields: list[FieldShort]


class GroupRow(Answer):
    """Trials that agree in some fields."""

    values: list[Any] = Field(description="of the fields that were grouped by")
    count: int
    states: dict[str, int]
    where: str = Field(description="the filter of its trials")
    figures: dict[str, Spread] = Field(
        description="by the key of a column: mean and sample standard deviation; null where there is none, with why"
    )


class GroupList(Answer):
    revision: str
    total: int
    by: list[TrialColumn]
    columns: list[TrialColumn]
    groups: list[GroupRow]


@endpoint("/sweeps/{name}/trials")
def trials(dashboard: Dashboard, name: str, asked: TrialPage) -> TrialList:
    """Trials of a sweep, filtered and sorted, a page at a time."""
    mark, found, fields = filtered(dashboard, name, asked)
    more = chosen(fields, asked.columns)
    if asked.sort:
        by = _field(fields, asked.sort)
        if by.key.startswith("perplexity_"):
            dashboard.intervals.find(found)
        found = ordered(found, by, asked.descending)
    elif asked.descending:
        found = found[::-1]
    page = found[asked.offset : asked.offset + asked.limit]
    shown = columns(dashboard, name, more)
    return TrialList(revision=mark, total=len(found), columns=shown, trials=rows(dashboard, page, more))


@endpoint("/sweeps/{name}/fields")
def listed(dashboard: Dashboard, name: str) -> FieldList:
    """Everything that is known of trials: what columns, filters and groups can be made of."""
    dashboard.source.sweep(name)
    fields = dashboard.fields(name)
    curves = dashboard.summaries(name)

    def made() -> FieldList:
        every = [(field, () if field.origin == "curve" else fields.trials) for field in fields]
        found = [(column(field, sample), fields.differs(field)) for field, sample in every]
        return FieldList(fields=[FieldShort(**one.model_dump(), differs=differs) for one, differs in found])

    return dashboard.kept.get(("field list", name), (fields, curves), made)


@endpoint("/sweeps/{name}/groups")
def groups(dashboard: Dashboard, name: str, asked: GroupQuery) -> GroupList:
    """Groups of trials with mean and spread of every figure."""
    mark, found, fields = filtered(dashboard, name, asked)
    by = chosen(fields, asked.by)
    if not 1 <= len(by) <= _MOST_BY:
        raise RequestError(400, f"trials are grouped by 1 to {_MOST_BY} fields, got {len(by)}. Give `by`.")
    figures = [field for field in chosen(fields, asked.columns) if field.numeric and field not in by]
    every = grouped(found, by)
    if asked.sort:
        every = _in_order(every, by, fields, asked.sort, asked.descending)
    page = every[asked.offset : asked.offset + asked.limit]
    return GroupList(
        revision=mark,
        total=len(every),
        by=[column(field, fields.trials) for field in by],
        columns=[column(field, fields.trials) for field in figures],
        groups=[_row(group, figures) for group in page],
    )


def filtered(dashboard: Dashboard, name: str, asked: TrialFilter) -> tuple[str, list[TrialResult], TrialFields]:
    """The revision, the trials of a sweep that a request means, and the fields of all."""
    with dashboard.source.following():
        mark = dashboard.source.mark
        found = dashboard.source.trials(name)
        fields = dashboard.fields(name)
    states = f"state in {asked.state.split(',')!r}" if asked.state else ""
    tests = [where(text, fields) for text in (asked.where, asked.q, states) if text.strip()]
    return mark, [trial for trial in found if all(test(trial) for test in tests)], fields


def chosen(fields: TrialFields, names: Sequence[str]) -> list[TrialField]:
    """The fields of these names."""
    try:
        return fields.chosen(names)
    except FieldError as error:
        raise RequestError(400, str(error)) from error


def _field(fields: TrialFields, name: str) -> TrialField:
    (found,) = chosen(fields, [name])[:1] or [fields.fixed["name"]]
    return found


def _in_order(
    every: list[Group], by: Sequence[TrialField], fields: TrialFields, sort: str, descending: bool
) -> list[Group]:
    """By a field that was grouped by, the number of trials, or the mean of a figure; what has none comes last."""
    field = None if sort == _COUNT else _field(fields, sort)

    def of(group: Group) -> Any:
        if field is None:
            return len(group.trials)
        return group.values[by.index(field)] if field in by else group.spread(field).mean

    known = [(value, group) for group in every if (value := of(group)) is not None]
    missing = [group for group in every if of(group) is None]

    def size(pair: tuple[Any, Group]) -> tuple[bool, float, str]:
        return (False, pair[0], "") if is_number(pair[0]) else (True, 0.0, str(pair[0]).casefold())

    return [group for _, group in sorted(known, key=size, reverse=descending)] + missing


def _row(group: Group, figures: Sequence[TrialField]) -> GroupRow:
    states: dict[str, int] = {}
    for trial in group.trials:
        states[trial.state] = states.get(trial.state, 0) + 1
    return GroupRow(
        values=list(group.values),
        count=len(group.trials),
        states=states,
        where=group.where,
        figures={field.key: group.spread(field) for field in figures},
    )
