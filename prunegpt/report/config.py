"""The resolved configuration of a trial, by path: what a column may show and two trials may differ in."""

from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.records import TrialResult

MISSING: Any = object()
_SHOWN = ("model", "data", "evaluate", "device", "precision", "seed")  # of a plan; the rest is book-keeping
_STARTS = ("load", "pretrain")  # stages that a spec does not write: they stand before stages.0


def resolved(trial: TrialResult) -> Mapping[str, Any]:
    """The trial as its spec says it, with what planning filled in; `stages.0` is the first stage that is written."""
    planned: dict[str, Any] = {key: trial.plan[key] for key in _SHOWN if key in trial.plan}
    if "stages" in trial.plan:
        chain = [stage for stage in trial.plan["stages"] if stage.get("kind") not in _STARTS]
        planned["stages"] = [{stage["kind"]: _without_data(stage.get(stage["kind"]) or {}, planned)} for stage in chain]
    if isinstance(planned.get("evaluate"), Mapping):
        planned["evaluate"] = _without_data(planned["evaluate"], planned)
    merged = _over(planned, {key: value for key, value in trial.config.items() if key not in ("name", "seeds")})
    return merged if isinstance(merged, Mapping) else {}


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


def paths(tree: Any) -> list[str]:
    """Every path of the tree, leaves and what holds them."""
    found: dict[str, None] = {}
    for leaf, _ in flatten(tree):
        parts = leaf.split(".")
        for length in range(1, len(parts) + 1):
            found[".".join(parts[:length])] = None
    return [path for path in found if path]
