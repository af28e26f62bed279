"""One pruning modifier of either dialect in the words of a spec's `prune`, and one section for several."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunegpt.recipes.matching import as_exclusion, as_target
from prunegpt.recipes.reader import Dialect, Modifier
from prunegpt.registry import SCHEDULES
from prunegpt.spec.schema import GradualSpec, PruneSpec


@dataclass(frozen=True)
class Pruning:
    """One pruning modifier.

    Attributes:
        modifier: as it was written.
        dialect: decides how entries match.
        entries: of `params` or `targets`.
        spec: fields of a spec's `prune`, but for what depends on entries; a schedule that there is not as written.
        finals: entry -> its own final sparsity, where they differ.
        one_shot: pruned at once, without training.
        ignored: layers left alone, names and `re:` expressions.
    """

    modifier: Modifier
    dialect: Dialect
    entries: tuple[str, ...]
    spec: Mapping[str, Any]
    finals: Mapping[str, float] = field(default_factory=dict)
    one_shot: bool = False
    ignored: tuple[str, ...] = ()

    def target(self, entry: str) -> str | None:
        """An entry as a pattern of a spec's `targets`; None = all decoder weight matrices.

        Raises:
            MatchingError: it is no regular expression.
        """
        return as_target(entry, modules=self.dialect == "session")

    @property
    def supported(self) -> bool:
        """Whether a spec has its schedule."""
        return self.one_shot or self.spec["schedule"] in SCHEDULES

    def as_spec(self) -> dict[str, Any]:
        """All fields of a spec's `prune`: of one that trains (GradualSpec), or of a one-shot stage (PruneSpec).

        Raises:
            MatchingError: an entry is no regular expression.
        """
        fields = dict(self.spec)
        if self.finals and "sparsity" in fields:
            del fields["sparsity"]
            fields.setdefault("allocation", {self.target(entry) or "*": final for entry, final in self.finals.items()})
        targets = list(dict.fromkeys(self.target(entry) for entry in self.entries))
        if targets and None not in targets:
            fields["targets"] = targets
        if self.ignored:
            fields["exclude"] = [as_exclusion(entry) for entry in self.ignored]
        return {name: fields[name] for name in GradualSpec.model_fields if name in fields}  # in the order of a spec


def section_of(fields: Mapping[str, Any], *, one_shot: bool) -> PruneSpec:
    """Fields of a `prune` by the spec's schema; a schedule that a spec does not have is taken for a linear one.

    Raises:
        pydantic.ValidationError: a value out of its range.
    """
    if one_shot:
        return PruneSpec.model_validate(fields)
    known = fields.get("schedule", "cubic") in SCHEDULES
    return GradualSpec.model_validate(fields if known else {**fields, "schedule": "linear"})


def merge(specs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """One `prune` section for several that differ in tensors and final sparsity alone; None where they differ more."""
    first, *others = specs
    if not others:
        return first
    own = {"targets", "sparsity", "allocation"}
    shared = [
        {**{name: value for name, value in spec.items() if name not in own}, "allocation": _named(spec)}
        for spec in specs
    ]
    if any(item != shared[0] for item in shared):
        return None
    everything = any(not spec.get("targets") for spec in specs)
    merged = {**first, "targets": list(dict.fromkeys(name for spec in specs for name in spec.get("targets", ())))}
    if everything:
        del merged["targets"]
    if all(spec.get(name) == first.get(name) for spec in others for name in ("sparsity", "allocation")):
        return merged
    if _named(first) or ":" in first.get("pattern", ""):
        return None
    shares: dict[str, float] = {}
    for spec in specs:
        given = spec.get("allocation") or dict.fromkeys(spec.get("targets") or ["*"], spec["sparsity"])
        for name, share in given.items():
            if shares.setdefault(name, share) != share:
                return None
    merged["allocation"] = dict(sorted(shares.items(), key=lambda item: item[0] == "*"))  # the first match decides
    merged.pop("sparsity", None)
    return merged


def _named(spec: Mapping[str, Any]) -> str | None:
    allocation = spec.get("allocation")
    return allocation if isinstance(allocation, str) else None
