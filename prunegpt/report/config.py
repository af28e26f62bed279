"""The resolved configuration of a trial, by path: what a column may show and two trials may differ in."""

from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.records import TrialResult
from prunegpt.registry import CRITERIA, SOLVERS, Entry
from prunegpt.spec.code import method_label
from prunegpt.spec.methods import scope_of
from prunegpt.spec.plan import StagePlan

MISSING: Any = object()
_SHOWN = {"model", "data", "evaluate", "device", "precision", "seed"}  # of a plan; the rest is book-keeping


def allocations(trial: TrialResult) -> list[str]:
    """How the budget of each stage's pruning was spread, by stage; empty of one that prunes nothing.

    From the record; if there is none yet, or it is of an earlier version, from the plan; by default, that of the
    built-in method.
    """
    recorded = {stage.index: stage.allocation for stage in trial.stages}
    return [recorded.get(index) or planned_allocation(stage) for index, stage in enumerate(trial.plan.stages)]


def planned_allocation(stage: StagePlan) -> str:
    if stage.pruning is None or stage.pruning.allocation is not None:
        return stage.allocation(by_row=False)
    method = builtin_method(stage.pruning.method)
    if method is None:
        return f"that of {method_label(stage.pruning.method)}"
    return stage.allocation(by_row=scope_of(method, None) == "row")


def builtin_method(name: str) -> Entry | None:
    """What is known of a built-in criterion or solver; None of a plug-in, which no table loads."""
    known = next((registry for registry in (CRITERIA, SOLVERS) if name in registry.builtin_names()), None)
    return known.entry(name) if known else None


def resolved(trial: TrialResult) -> Mapping[str, Any]:
    """The trial as its spec says it, with what planning filled in; `stages.0` is the first stage that is written."""
    plan = trial.plan
    planned: dict[str, Any] = plan.model_dump(mode="json", include=_SHOWN)
    planned["stages"] = [
        {stage.kind: _body(stage, spread, planned)}
        for stage, spread in zip(plan.stages, allocations(trial), strict=True)
        if not stage.starts
    ]
    planned["evaluate"] = _without_data(planned["evaluate"], planned)
    merged = _over(planned, {key: value for key, value in trial.config.items() if key not in ("name", "seeds")})
    return merged if isinstance(merged, Mapping) else {}


def _body(stage: StagePlan, spread: str, planned: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage's config, with how its budget was spread where it does not say that."""
    config = getattr(stage, stage.kind, None)
    body = config.model_dump(mode="json") if config else {}
    pruning = body if stage.kind == "prune" else body.get("prune")
    if pruning and pruning["allocation"] is None:
        pruning["allocation"] = spread
    return _without_data(body, planned)


def _without_data(part: Mapping[str, Any], planned: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part without its text, where that is the trial's own."""
    same = "data" in part and part["data"] == planned.get("data")
    return {key: value for key, value in part.items() if not (same and key == "data")}


def _over(below: Any, above: Any) -> Any:
    """`above` wins where both say something; lists of equal length are merged by position."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        said = {("method" if key == "criterion" and "method" in below else key): above[key] for key in above}
        return {key: _over(below.get(key), said.get(key)) for key in {**below, **said}}
    if isinstance(below, Mapping) and isinstance(above, str):
        return below  # `model: gpt2` is short for what was planned
    if isinstance(below, (list, tuple)) and isinstance(above, (list, tuple)) and len(below) == len(above):
        return [_over(under, over) for under, over in zip(below, above, strict=True)]
    return below if above is None else above


def value_at(trial: TrialResult, path: str) -> Any:
    """The value at a dotted path of the resolved configuration, or as the spec writes it; else MISSING."""
    found = find(resolved(trial), path)
    return find(trial.config, path) if found is MISSING else found


def find(tree: Any, path: str) -> Any:
    """The value at a dotted path, or MISSING. Keys may contain dots themselves; lists are indexed by number."""
    if not path:
        return tree
    parts = path.split(".")
    if isinstance(tree, (list, tuple)):
        inside = parts[0].isdecimal() and int(parts[0]) < len(tree)
        return find(tree[int(parts[0])], ".".join(parts[1:])) if inside else MISSING
    if isinstance(tree, Mapping):
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in tree:
                found = find(tree[key], ".".join(parts[length:]))
                if found is not MISSING:
                    return found
    return MISSING


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path; empty lists and mappings are leaves."""
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(tree))
    if not items:
        yield prefix, tree
    for key, value in items:
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def differing(*trees: Any) -> dict[str, list[Any]]:
    """Leaves where trees are not all alike: path -> the value in each, None where one has no such path."""
    flat = [dict(flatten(tree)) for tree in trees]
    found = {path: [one.get(path) for one in flat] for one in flat for path in one if path}
    return {path: values for path, values in found.items() if any(value != values[0] for value in values)}


def paths(tree: Any) -> list[str]:
    """Every path of the tree, leaves and what holds them."""
    leaves = [leaf.split(".") for leaf, _ in flatten(tree) if leaf]
    return list(dict.fromkeys(".".join(parts[:end]) for parts in leaves for end in range(1, len(parts) + 1)))
