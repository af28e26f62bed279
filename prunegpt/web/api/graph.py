"""The stages of a sweep as a graph: what is shared, and how far each is."""

from typing import Literal

from pydantic import Field

from prunegpt.records import ComparisonKey, TrialResult
from prunegpt.report.format import percent
from prunegpt.spec.plan import StagePlan
from prunegpt.web.dashboard import Dashboard
from prunegpt.web.endpoint import Answer, Call, Endpoint
from prunegpt.web.rows import stages

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


def graph(dashboard: Dashboard, call: Call) -> Graph:
    name = call.path["name"]
    with dashboard.source.following():
        revision = dashboard.source.sweep_revision(name)
        trials = dashboard.source.trials(name)
    return dashboard.kept.get(("graph", name), revision, lambda: made(trials))


def made(trials: list[TrialResult]) -> Graph:
    """The graph of these trials' chains; a teacher's stage is there where one of them has it."""
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str, str], Edge] = {}
    measured: dict[str, set[ComparisonKey]] = {}  # by stage key
    for trial in trials:
        records = {stage.index: stage for stage in trial.stages}
        for index, (stage, short) in enumerate(zip(trial.plan.stages, stages(trial), strict=True)):
            record = records.get(index)
            if record and record.evaluation:
                measured.setdefault(short.key, set()).add(record.evaluation.comparison_key)
            node = Node(
                key=short.key,
                kind=short.kind,
                state=short.state,
                shared=1,
                cached=short.cached,
                trials=[trial.name],
                seconds=record.seconds if record else None,
                tokens=record.train_tokens if record else None,
                perplexity=record.evaluation.perplexity if record and record.evaluation else None,
                sparsity=record.sparsity.pruned if record and record.sparsity else None,
                label=trial.label if index == 0 else _label(stage),
                depth=index,
            )
            nodes[short.key] = _joined(nodes[short.key], node) if short.key in nodes else node
            for source, kind in ((stage.parent, "parent"), (stage.teacher, "teacher")):
                if source:
                    edge = Edge.model_validate({"from": source, "to": short.key, "kind": kind})
                    edges[source, short.key, kind] = edge
    for key, ways in measured.items():
        if len(ways) > 1:  # trials that share the stage measured it in different ways: it has no one figure
            nodes[key] = nodes[key].model_copy(update={"perplexity": None})
    return Graph(nodes=list(nodes.values()), edges=[edge for edge in edges.values() if edge.source in nodes])


def _joined(one: Node, two: Node) -> Node:
    """A stage as two trials know it."""
    first, second = sorted((one, two), key=lambda node: _RANK.index(node.state))
    published = [node for node in (one, two) if node.state == "published"]
    return first.model_copy(
        update={
            "trials": [*one.trials, *two.trials],
            "shared": one.shared + two.shared,
            "cached": bool(published) and all(node.cached for node in published),
            "seconds": first.seconds if first.seconds is not None else second.seconds,
            "tokens": first.tokens if first.tokens is not None else second.tokens,
            "perplexity": first.perplexity if first.perplexity is not None else second.perplexity,
            "sparsity": first.sparsity if first.sparsity is not None else second.sparsity,
        }
    )


def _label(stage: StagePlan) -> str:
    """A stage in a few words: its kind, and what it prunes with."""
    pruning = stage.pruning
    if pruning is None:
        return stage.kind
    share = f" {percent(round(100 * pruning.sparsity, 10))} %" if pruning.sparsity is not None else ""
    return f"{stage.kind} {pruning.method}{share}"


ENDPOINTS = (Endpoint("/sweeps/{name}/graph", graph, "The stage graph: what is shared, and how far it is", Graph),)
