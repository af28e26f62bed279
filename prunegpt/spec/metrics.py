"""Names of what a finished trial came to, as searches, targets, columns and trackers use them.

A measured metric may name one of several evaluations behind a colon: perplexity:c4, decode:long. Scores of tasks are
task:NAME, or task:NAME/METRIC where a task has several, and tasks:mean.
"""

from collections.abc import Mapping
from typing import Literal

from prunegpt.errors import unknown
from prunegpt.spec.part import REFERENCE

Direction = Literal["minimize", "maximize"]

METRICS: Mapping[str, tuple[Direction, str]] = {
    "perplexity": ("minimize", "measured after the last stage"),
    "loss": ("minimize", "its logarithm, nats per token"),
    "bits_per_byte": ("minimize", "loss in bits by bytes of text"),
    "sparsity": ("maximize", "zeros counted in the tensors selected for pruning, 0 to 1"),
    "sparsity_all": ("maximize", "zeros counted in all parameters, 0 to 1"),
    "parameters": ("minimize", "weights of the model, zeros included"),
    "nonzero": ("minimize", "parameters that are not zero"),
    "size": ("minimize", "the same as nonzero"),
    "bytes": ("minimize", "of the files that hold the weights, as they are stored"),
    "tokens": ("minimize", "trained on in all stages"),
    "seconds": ("minimize", "wall time of computing all stages, in whichever trial"),
}  # of a finished trial -> direction and meaning
MEASURED = frozenset({"perplexity", "loss", "bits_per_byte"})  # metrics that an evaluation of a text gives
SPEED = "speed"  # the evaluation that metrics of speed mean where they name none
SPEEDS: Mapping[str, tuple[Direction, str]] = {
    "speedup": ("maximize", "measured tokens per second of decoding over those of the reference"),
    "speedup:prefill": ("maximize", "the same of reading the prompt"),
    "decode": ("maximize", "tokens per second that are generated after the first one, in all sequences together"),
    "prefill": ("maximize", "tokens per second of the prompt, in all sequences together"),
    "first_token": ("minimize", "seconds from the prompt to the first token"),
    "memory": ("minimize", "bytes of weights, buffers and the most that generation holds beside them"),
}  # metrics that an evaluation of speed gives
TASK = "task"
MEAN = "tasks:mean"
NAMED = (*(f"{name}:EVALUATION" for name in sorted(MEASURED)), *SPEEDS, f"{TASK}:NAME", MEAN)  # for people


def is_task(metric: str) -> bool:
    """Whether it is a score of tasks."""
    return metric == MEAN or metric.startswith(f"{TASK}:")


def metric_parts(metric: str) -> tuple[str, str]:
    """A metric without the evaluation that it names, and that; empty where it means the first one, or tasks."""
    if is_task(metric):
        return metric, ""
    for name in ("speedup:prefill", metric.partition(":")[0]):
        if metric == name or metric.startswith(f"{name}:"):
            return name, metric[len(name) + 1 :] or (SPEED if name in SPEEDS else "")
    return metric, ""


def is_speed(metric: str) -> bool:
    """Whether an evaluation of speed gives it."""
    return metric_parts(metric)[0] in SPEEDS


def is_measured(metric: str) -> bool:
    """Whether an evaluation gives it."""
    return metric_parts(metric)[0] in MEASURED or is_speed(metric) or is_task(metric)


def evaluation_of(metric: str) -> str:
    """The evaluation that a metric names; empty where it means the first one, or tasks."""
    return metric_parts(metric)[1]


def speed_metric(name: str, evaluation: str) -> str:
    """What a metric of an evaluation of speed is called."""
    return name if evaluation == SPEED else f"{name}:{evaluation}"


def check_metric(name: str) -> str:
    """The name, where there may be such a metric.

    Raises:
        ValueError: there is none; the nearest names are listed.
    """
    kind, colon, rest = name.partition(":")
    known = name in METRICS or name == MEAN or is_speed(name)
    if known or (colon and rest and (kind in MEASURED or kind == TASK)):
        return name
    raise ValueError(unknown("metric", name, [*METRICS, *NAMED], REFERENCE))


def direction_of(metric: str) -> Direction:
    """Whether less or more of a metric is better, as long as nobody says otherwise."""
    return "maximize" if is_task(metric) else {**METRICS, **SPEEDS}[metric_parts(metric)[0]][0]
