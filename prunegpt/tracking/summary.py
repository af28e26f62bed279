"""What a trial came to, by the names that searches and tables know."""

from collections.abc import Sequence

from prunegpt.records import StageRecord


def summary_of(stages: Sequence[StageRecord]) -> dict[str, float]:
    """Metrics of a finished trial; what was not measured, or is not finite, is left out."""
    if not stages:
        return {}
    evaluation, sparsity = stages[-1].evaluation, stages[-1].sparsity
    found: dict[str, float | None] = {
        "perplexity": evaluation.perplexity if evaluation else None,
        "loss": evaluation.loss if evaluation else None,
        "bits_per_byte": evaluation.bits_per_byte if evaluation else None,
        "sparsity": sparsity.pruned if sparsity else None,
        "sparsity_all": sparsity.overall if sparsity else None,
        "size": round(sparsity.parameters * (1 - sparsity.overall)) if sparsity else None,
        "tokens": sum(stage.train_tokens for stage in stages),
        "seconds": sum(stage.seconds for stage in stages),
    }
    return {name: value for name, value in found.items() if value is not None}
