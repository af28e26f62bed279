"""What a trial came to, by the names that searches and tables know."""

from collections.abc import Sequence

from prunegpt.records import StageRecord, chain_metrics


def summary_of(stages: Sequence[StageRecord]) -> dict[str, float]:
    """Metrics of a finished trial; what was not measured, or is not finite, is left out."""
    if not stages:
        return {}
    return {name: value for name, value in chain_metrics(stages).items() if value is not None}
