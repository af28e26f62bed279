"""One pruning modifier of either dialect, the words of a spec's `prune` for it, and one section for several."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunegpt.recipes.fields import as_number
from prunegpt.recipes.matching import as_target
from prunegpt.recipes.reader import Dialect
from prunegpt.registry import SCHEDULES
from prunegpt.spec.schema import GradualSpec, PruneSpec

EVERY_STEP = 1e-6  # epochs between updates that no training resolves

FUNCTIONS = ("linear", "cubic", "inverse_cubic")


@dataclass(frozen=True)
class Pruning:
    """One pruning modifier as it was written.

    Attributes:
        modifier: its name.
        line: in the file.
        stage: of the recipe.
        dialect: decides how entries match and when masks are updated.
        entries: of `params` or `targets`.
        method: criterion or solver of ours.
        pattern: unstructured, N:M with N kept, or [a, b].
        initial: sparsity at the start.
        final: sparsity at the end; the largest one where `finals` has several.
        finals: entry -> its own final sparsity, where they differ.
        start: epoch of the first update.
        end: epoch of the last one.
        every: epochs between updates, -1 = every step.
        schedule: as written: linear, cubic, inverse_cubic, acdc, polynomial, multi_step, calc(...).
        exponent: of a polynomial.
        spread: allocation of ours, where it is none by entries.
        options: of the method.
        windows: of calibration.
        propagate: for one-shot methods.
        one_shot: pruned at once, without training.
        written_update: whether the recipe says how often masks change.
    """

    modifier: str
    line: int
    stage: str
    dialect: Dialect
    entries: tuple[str, ...]
    method: str = "magnitude"
    pattern: str = "unstructured"
    initial: float = 0.0
    final: float = 0.0
    finals: Mapping[str, float] = field(default_factory=dict)
    start: float = 0.0
    end: float = 0.0
    every: float = -1.0
    schedule: str = "cubic"
    exponent: float = 2.0
    spread: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    windows: int | None = None
    propagate: bool | None = None
    one_shot: bool = False
    written_update: bool = False

    def target(self, entry: str) -> str | None:
        """An entry as a pattern of a spec's `targets`; None = all block matrices.

        Raises:
            MatchingError: it is no regular expression.
        """
        return as_target(entry, modules=self.dialect == "session")

    @property
    def spec_schedule(self) -> str | None:
        """The name of a spec's schedule with the same curve; None where there is none."""
        if self.schedule in {"polynomial", "polynomial_decay"} and self.exponent == 1:
            return "linear"
        if self.schedule == "polynomial_decay" and self.exponent == 3:
            return "cubic"
        return self.schedule if self.schedule in {*FUNCTIONS, "acdc"} else None

    def as_spec(self) -> dict[str, Any]:
        """The fields of a spec's `prune`: of one that trains (GradualSpec), or of a one-shot stage (PruneSpec).

        Raises:
            MatchingError: an entry is no regular expression.
        """
        fields: dict[str, Any] = {"method": self.method}
        fixed = ":" in self.pattern
        if self.finals and not fixed:
            fields["allocation"] = {self.target(entry) or "*": final for entry, final in self.finals.items()}
        elif not fixed:
            fields["sparsity"] = self.final
        if self.spread:
            fields["allocation"] = self.spread
        if self.pattern != "unstructured":
            fields["pattern"] = self.pattern
        targets = list(dict.fromkeys(self.target(entry) for entry in self.entries))
        if targets and None not in targets:
            fields["targets"] = targets
        if self.options:
            fields["options"] = dict(self.options)
        if self.windows:
            fields["calibration"] = {"windows": self.windows}
        if self.propagate is not None:
            fields["propagate"] = self.propagate
        if self.one_shot:
            return fields
        fields |= {"schedule": self.spec_schedule or self.schedule, "initial": self.initial, "start": self.start}
        fields |= {"end": self.end, "every": self.every if self.every > 0 else EVERY_STEP}
        if self.dialect == "legacy":
            fields["clock"] = "sparseml"
        if self.spec_schedule == "acdc":
            fields["regrow"] = True
        return fields


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
        {**{name: value for name, value in spec.items() if name not in own}, "allocation": _name(spec)}
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
    if _name(first) or ":" in first.get("pattern", ""):
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


def _name(spec: Mapping[str, Any]) -> str | None:
    allocation = spec.get("allocation")
    return allocation if isinstance(allocation, str) else None


def exponent_of(arguments: Any) -> float | None:
    """The exponent among the arguments of a schedule; None where it is no number above 0, up to 100."""
    exponent = as_number(arguments.get("exponent", 2)) if isinstance(arguments, Mapping) else 2.0
    return exponent if exponent is not None and 0 < exponent <= 100 else None
