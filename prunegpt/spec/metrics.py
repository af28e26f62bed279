"""Names of what a finished trial came to, as searches, targets, columns and trackers use them.

A measured metric may name one of several evaluations behind a colon: perplexity:c4. Scores of tasks are task:NAME, or
task:NAME/METRIC where a task has several, and tasks:mean.
"""

from collections.abc import Mapping
from typing import Literal

from prunegpt.errors import unknown

Direction = Literal["minimize", "maximize"]

METRICS: Mapping[str, tuple[Direction, str]] = {
    "perplexity": ("minimize", "measured after the last stage"),
    "loss": ("minimize", "its logarithm, nats per token"),
    "bits_per_byte": ("minimize", "loss in bits by bytes of text"),
    "sparsity": ("maximize", "zeros counted in the tensors selected for pruning, 0 to 1"),
    "sparsity_all": ("maximize", "zeros counted in all parameters, 0 to 1"),
    "size": ("minimize", "parameters that are not zero"),
    "tokens": ("minimize", "trained on in all stages"),
    "seconds": ("minimize", "wall time of computing all stages, in whichever trial"),
}  # of a finished trial -> direction and meaning
MEASURED = frozenset({"perplexity", "loss", "bits_per_byte"})  # metrics that an evaluation of a text gives
TASK = "task"
MEAN = "tasks:mean"
NAMED = (*(f"{name}:EVALUATION" for name in sorted(MEASURED)), f"{TASK}:NAME", MEAN)  # for people


def is_task(metric: str) -> bool:
    """Whether it is a score of tasks."""
    return metric == MEAN or metric.startswith(f"{TASK}:")


def is_measured(metric: str) -> bool:
    """Whether an evaluation gives it."""
    return metric.partition(":")[0] in MEASURED or is_task(metric)


def evaluation_of(metric: str) -> str:
    """The evaluation that a metric names; empty where it means the first one, or tasks."""
    return "" if is_task(metric) else metric.partition(":")[2]


def check_metric(name: str) -> str:
    """The name, where there may be such a metric.

    Raises:
        ValueError: there is none; the nearest names are listed.
    """
    kind, colon, rest = name.partition(":")
    if name in METRICS or name == MEAN or (colon and rest and (kind in MEASURED or kind == TASK)):
        return name
    raise ValueError(unknown("metric", name, [*METRICS, *NAMED]))


def direction_of(metric: str) -> Direction:
    """Whether less or more of a metric is better, as long as nobody says otherwise."""
    return "maximize" if is_task(metric) else METRICS[metric.partition(":")[0]][0]
