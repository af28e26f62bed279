"""One pruning modifier of either dialect, and the words of a spec's `prune` for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunegpt.recipes.fields import as_number
from prunegpt.recipes.matching import as_target
from prunegpt.recipes.modifiers import Dialect

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
        end: epoch of the last one; None where masks never change after the start.
        every: epochs between updates, -1 = every step.
        schedule: as written: linear, cubic, inverse_cubic, acdc, constant, polynomial, multi_step, calc(...).
        arguments: of the schedule.
        spread: allocation of ours: None or global.
        options: of the method.
        calibration: fields of a spec's calibration.
        propagate: for one-shot methods.
        one_shot: pruned at once, without training.
        written_update: whether the recipe says how often masks change.
        unit: of start, end and every; epochs but in our own format.
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
    end: float | None = None
    every: float = -1.0
    schedule: str = "cubic"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spread: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    propagate: bool | None = None
    one_shot: bool = False
    written_update: bool = False
    unit: Literal["epochs", "steps", "fraction"] = "epochs"

    @property
    def targets(self) -> tuple[str, ...]:
        """The entries as a spec's `targets`; empty = all block matrices.

        Raises:
            MatchingError: an entry is no regular expression.
        """
        found = [as_target(entry, modules=self.dialect == "session") for entry in self.entries]
        return () if None in found else tuple(dict.fromkeys(item for item in found if item is not None))


def spec_schedule(schedule: str, arguments: Mapping[str, Any]) -> str | None:
    """The name of a spec's schedule with the same curve; None where there is none."""
    exponent = as_number(arguments.get("exponent", 2))
    if schedule in {"polynomial", "polynomial_decay"} and exponent == 1:
        return "linear"
    if schedule == "polynomial_decay" and exponent == 3:
        return "cubic"
    return schedule if schedule in {*FUNCTIONS, "acdc", "constant"} else None


def as_spec(pruning: Pruning) -> dict[str, Any]:
    """The fields of a spec's `prune`: of one that trains (GradualSpec), or of a one-shot stage (PruneSpec).

    Raises:
        MatchingError: an entry is no regular expression.
    """
    fields: dict[str, Any] = {"method": pruning.method}
    fixed = ":" in pruning.pattern
    if pruning.finals and not fixed:
        modules = pruning.dialect == "session"
        shares = {as_target(entry, modules=modules) or "*": final for entry, final in pruning.finals.items()}
        fields["allocation"] = shares
    elif not fixed:
        fields["sparsity"] = pruning.final
    if pruning.spread:
        fields["allocation"] = pruning.spread
    if pruning.pattern != "unstructured":
        fields["pattern"] = pruning.pattern
    if targets := pruning.targets:
        fields["targets"] = list(targets)
    if pruning.options:
        fields["options"] = dict(pruning.options)
    if pruning.calibration:
        fields["calibration"] = dict(pruning.calibration)
    if pruning.propagate is not None:
        fields["propagate"] = pruning.propagate
    if pruning.one_shot:
        return fields
    schedule = spec_schedule(pruning.schedule, pruning.arguments)
    fields |= {"schedule": schedule or pruning.schedule, "initial": pruning.initial, "start": pruning.start}
    fields |= {"end": pruning.end, "every": pruning.every if pruning.every > 0 else EVERY_STEP}
    if schedule == "acdc":
        fields["regrow"] = True
    return fields
