"""One `prune` section for several pruning modifiers, as recipes have one a block or one a matrix."""

from collections.abc import Mapping
from typing import Any


def merge(specs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """One `prune` section for several that differ in tensors and final sparsity alone; None where they differ more."""
    first, *others = specs
    if not others:
        return first
    own = {"targets", "sparsity"}
    bare = [
        {name: value for name, value in spec.items() if name not in own and not isinstance(value, Mapping)}
        for spec in specs
    ]
    shared = [
        {name: value for name, value in spec.items() if isinstance(value, Mapping) and name != "allocation"}
        for spec in specs
    ]
    if any(item != bare[0] for item in bare) or any(item != shared[0] for item in shared):
        return None
    everything = any(not spec.get("targets") for spec in specs)
    targets = [] if everything else list(dict.fromkeys(name for spec in specs for name in spec["targets"]))
    merged = {**first, "targets": targets}
    if everything:
        del merged["targets"]
    if any(
        spec.get("sparsity") != first.get("sparsity") or spec.get("allocation") != first.get("allocation")
        for spec in specs
    ):
        if isinstance(first.get("allocation"), str) or ":" in first.get("pattern", ""):
            return None
        shares: dict[str, float] = {}
        for spec in specs:
            given = spec.get("allocation") or dict.fromkeys(spec.get("targets") or ["*"], spec["sparsity"])
            for name, share in dict(given).items():
                if shares.setdefault(name, share) != share:
                    return None
        merged["allocation"] = dict(sorted(shares.items(), key=lambda item: item[0] == "*"))  # the first match decides
        merged.pop("sparsity", None)
    return merged
