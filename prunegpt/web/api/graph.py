"""The stages of a sweep as a graph: what is shared, and how far each is."""

from typing import Literal, NamedTuple

from pydantic import Field

from prunegpt.records import StageRecord, TrialResult
from prunegpt.report.format import percent
from prunegpt.spec.code import method_label
from prunegpt.spec.plan import StagePlan
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, endpoint
from prunegpt.web.rows import StageShort, stages

_RANK = ("published", "running", "failed", "diverged", "stopped", "waiting")  # what one trial says outranks another's


class Node(Answer):
    """One stage, computed once for all trials that have it."""

    key: str
    kind: str
    state: Literal["published", "running", "waiting", "failed", "diverged", "stopped"]
    shared: int = Field(description="trials that have it")
    cached: bool = Field(description="whether all of them found it computed, by another sweep or an earlier run")
    trials: list[str]
    seconds: float | None
    tokens: int | None
    perplexity: float | None = Field(description="none where the trials that share it measured it in different ways")
    sparsity: float | None
    label: str
    depth: int = Field(description="stages before it")


class Edge(Answer):
    """From a stage to one that takes its model, or is taught by it."""

    source: str = Field(alias="from", serialization_alias="from")
    to: str
    kind: Literal["parent", "teacher"]


class Graph(Answer):
    nodes: list[Node]
    edges: list[Edge]


@endpoint("/sweeps/{name}/graph")
def graph(dashboard: Dashboard, name: str) -> Graph:
    """The stage graph: what is shared, and how far it is."""
    with dashboard.source.following():
        revision = dashboard.source.sweep_revision(name)
        trials = dashboard.source.trials(name)
    return dashboard.kept.get(("graph", name), revision, lambda: made(trials))


class _Held(NamedTuple):
    """A stage as one trial knows it."""

    trial: TrialResult
    depth: int
    planned: StagePlan
    short: StageShort
    record: StageRecord | None


def made(trials: list[TrialResult]) -> Graph:
    """The graph of these trials' chains; a teacher's stage is there where one of them has it."""
    held: dict[str, list[_Held]] = {}
    edges: dict[tuple[str, str, str], Edge] = {}
    for trial in trials:
        records = {stage.index: stage for stage in trial.stages}
        for index, (stage, short) in enumerate(zip(trial.plan.stages, stages(trial), strict=True)):
            held.setdefault(short.key, []).append(_Held(trial, index, stage, short, records.get(index)))
            for source, kind in ((stage.parent, "parent"), (stage.teacher, "teacher")):
                if source:
                    edge = Edge.model_validate({"from": source, "to": short.key, "kind": kind})
                    edges[source, short.key, kind] = edge
    nodes = [_node(found) for found in held.values()]
    return Graph(nodes=nodes, edges=[edge for edge in edges.values() if edge.source in held])


def _node(found: list[_Held]) -> Node:
    """A stage as all trials know it that have it."""
    ranked = sorted(found, key=lambda one: _RANK.index(one.short.state))
    first = ranked[0]
    records = [one.record for one in ranked if one.record]
    evaluations = [record.evaluation for record in records if record.evaluation]
    alike = len({one.comparison_key for one in evaluations}) == 1
    cached = [one.short.cached for one in found if one.short.state == "published"]
    return Node(
        key=first.short.key,
        kind=first.short.kind,
        state=first.short.state,
        shared=len(found),
        cached=bool(cached) and all(cached),
        trials=[one.trial.name for one in found],
        seconds=records[0].seconds if records else None,
        tokens=records[0].train_tokens if records else None,
        perplexity=evaluations[0].perplexity if alike else None,
        sparsity=next((record.sparsity.pruned for record in records if record.sparsity), None),
        label=_label(first.planned) if first.depth else first.trial.label,
        depth=first.depth,
    )


def _label(stage: StagePlan) -> str:
    """A stage in a few words: its kind, and what it prunes with."""
    pruning = stage.pruning
    if pruning is None:
        return stage.kind
    share = f" {percent(round(100 * pruning.sparsity, 10))}%" if pruning.sparsity is not None else ""
    return f"{stage.kind} {method_label(pruning.method)}{share}"
