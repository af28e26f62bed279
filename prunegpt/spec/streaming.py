"""What can be pruned with one decoder layer at a time on the device. No torch."""

from prunegpt.registry import ACTIVATIONS, Scope
from prunegpt.spec.code import method_label
from prunegpt.spec.methods import method_entry, scope_of, statistics_of
from prunegpt.spec.schema import PruneSpec


def unstreamed(prune: PruneSpec) -> str | None:
    """Why a prune stage cannot be streamed, see :func:`streaming_problem`."""
    scope = scope_of(method_entry(prune.method), prune.allocation)
    return streaming_problem(method_label(prune.method), statistics_of(prune), scope, repair=prune.repair is not None)


def streaming_problem(name: str, needs: frozenset[str], scope: Scope, *, repair: bool) -> str | None:
    """Why a model cannot be pruned with one decoder layer at a time on the device; None where it can.

    Args:
        name: of the method.
        needs: what it and its refinement are given.
        scope: what scores are compared over.
        repair: whether layers are repaired.
    """
    both = (
        "gradients" in needs and needs & ACTIVATIONS
    )  # single ones come from the last layer, activations from the first
    whole = "single gradients and activations" if both else "allocation global" if scope == "global" else ""
    whole = "repair" if repair else whole
    if not whole:
        return None
    return (
        f"layers are streamed where one is done before the next one begins; {name} with {whole} needs the whole model. "
        "Prune it where the model fits, without streaming."
    )
