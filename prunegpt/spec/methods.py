"""What is known of the parts that a pruning names: method, allocation, mode and refinement. No torch."""

from collections.abc import Collection, Mapping
from typing import Any

from prunegpt.errors import PruningError, alternatives, unknown
from prunegpt.registry import ALLOCATIONS, CRITERIA, MASK_MODES, NAMED_ALLOCATIONS, REFINEMENTS, SOLVERS, Entry, Scope
from prunegpt.spec.code import CodePart
from prunegpt.spec.schema import GradualSpec, PruneSpec

Allocation = str | Mapping[str, float] | None


def method_entry(name: str) -> Entry:
    """What is known of a criterion or solver.

    Raises:
        PruningError: there is none of that name.
        UnknownPartError: it is a plug-in that cannot be loaded.
    """
    if part := CodePart.of(name):
        return part.entry()
    if name not in CRITERIA and name not in SOLVERS:
        raise PruningError(unknown("pruning method", name, [*CRITERIA.names(), *SOLVERS.names()]))
    return (SOLVERS if name in SOLVERS else CRITERIA).entry(name)


def allocation_entry(allocation: Allocation) -> Entry:
    """What is known of an allocation: a name, a mapping (which is `explicit`), or None, which leaves the scope open.

    Raises:
        UnknownPartError: there is none of that name, or it is a plug-in that cannot be loaded.
    """
    if allocation is None:
        return Entry(ALLOCATIONS.entry("uniform").loader)
    return ALLOCATIONS.entry(allocation if isinstance(allocation, str) else "explicit")


def scope_of(method: Entry, allocation: Allocation) -> Scope:
    """What scores are compared over: what the allocation says, else the method, else each tensor for itself."""
    own = None if method.solver else method.scope
    return allocation_entry(allocation).scope or own or "tensor"


def reads_text(prune: PruneSpec) -> bool:
    """Whether a pruning needs calibration data."""
    training = isinstance(prune, GradualSpec)
    spread = allocation_entry(prune.allocation).reads_text(training=False)
    own = method_entry(prune.method).reads_text(training=training)
    return bool(prune.repair or prune.refine) or spread or own


def statistics_of(prune: PruneSpec) -> frozenset[str]:
    """What its method and its refinement are given."""
    return method_entry(prune.method).needs | (REFINEMENTS.entry(prune.refine).needs if prune.refine else frozenset())


def method_options(prune: PruneSpec) -> dict[str, Any]:
    """The options that are the method's."""
    return _taken(prune, method_entry(prune.method))


def allocation_options(prune: PruneSpec) -> dict[str, Any]:
    """The options that are the allocation's, or of what it needs."""
    return _taken(prune, allocation_entry(prune.allocation))


def refine_options(prune: PruneSpec) -> dict[str, Any]:
    """The options that are the refinement's."""
    return _taken(prune, REFINEMENTS.entry(prune.refine)) if prune.refine else {}


def mode_options(prune: GradualSpec) -> dict[str, Any]:
    """The options that are the mode's."""
    return _taken(prune, MASK_MODES.entry(prune.mode))


def _taken(prune: PruneSpec, entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in prune.options.items() if name in entry.valid_options}


def allocation_name(allocation: Allocation) -> str:
    """What messages call an allocation."""
    return allocation if isinstance(allocation, str) else "explicit" if allocation else "uniform"


def allocations(but: Collection[str]) -> str:
    """The allocations that have names, without those that compare scores over more."""
    return alternatives(name for name in NAMED_ALLOCATIONS if ALLOCATIONS.entry(name).scope not in but)
