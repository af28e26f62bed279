"""Evaluations of speed, made by hand."""

from prunegpt.records import Evaluation, Speed, Timed
from tests.support.results import evaluation


def speed(ratio: float = 1.2, *, noise: float = 0.01) -> Speed:
    """A model that is so much faster than its reference."""
    around = Timed(value=ratio, low=ratio - 0.02, high=ratio + 0.02)
    times = {name: Timed(value=20 * ratio, low=19 * ratio, high=21 * ratio) for name in ("prefill", "decode")}
    first = Timed(value=0.5, low=0.4, high=0.6)
    return Speed(
        **times, speedup=around, speedup_prefill=around, first_token=first, memory=5_000_000, noise=noise,
        noise_prefill=noise, repeats=9, reference="dense",
    )  # fmt: skip


def timed_evaluation(found: Speed, protocol: str = "speed/here") -> Evaluation:
    """The evaluation that holds a speed."""
    update = {"speed": found, "perplexity": None, "loss": None, "split": "", "key": "k", "tokens": 0, "windows": 0}
    return evaluation(protocol=protocol).model_copy(update=update)
