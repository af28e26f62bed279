"""One evaluation of a model: what was measured, on what and how; and what all records are."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from prunegpt.root import read_sealed, write_text


class Record(BaseModel):
    """Frozen; an unknown key is an error, and so is NaN or infinity: these travel as None beside a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            OSError: there is none.
            ValueError: it is none, or was changed since its folder was sealed.
        """
        return cls.model_validate_json(read_sealed(path))

    def write(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")


class ComparisonKey(NamedTuple):
    """On what and how a figure was measured. Figures are comparable where theirs are equal, and in no other case."""

    text: str  # fingerprint of the tokens; the evaluation key, which stands for the text too, of older records
    split: str
    protocol: str  # windows, tokeniser, and the precision that the arithmetic had

    def differs(self, other: "ComparisonKey") -> str:
        """Where two keys differ, in words: the dataset is named where all else is equal. Empty where they are equal."""
        named = {"split": (self.split, other.split), "protocol": (self.protocol, other.protocol)}
        if self[1:] == other[1:]:
            named["text"] = (self.text, other.text)
        found = [
            f"the {name} is {one} in one and {two} in the other" for name, (one, two) in named.items() if one != two
        ]
        return ", and ".join(found)


class TaskScore(Record):
    """One score of a task or group of tasks, as lm-evaluation-harness gives it."""

    task: str
    metric: str  # acc, acc_norm, exact_match, ...
    filter: str = "none"  # what an answer went through before it was scored
    value: float | None  # None where it is not finite
    stderr: float | None  # standard error; None where the harness gives none
    documents: int  # that were scored
    shots: int | None = None  # examples before each question; None of a group
    version: str = ""  # of the task
    higher_is_better: bool = True
    asked: bool = True  # False: a member of a group that was asked for


class Timed(Record):
    """The median of repeated measurements, and its 95% interval by the sign test, which assumes no distribution."""

    value: float
    low: float
    high: float


class Speed(Record):
    """How fast a model generates, measured in turns with a reference."""

    prefill: Timed  # tokens per second of the prompt
    decode: Timed  # tokens per second after the first one
    first_token: Timed  # seconds
    speedup: Timed  # tokens per second of decoding over those of the reference, of runs that follow each other
    speedup_prefill: Timed
    memory: int  # bytes of weights and buffers, and the most that generation holds beside them
    noise: float  # how far off 1 a ratio of the reference to itself may be by the same method: of decoding
    noise_prefill: float
    repeats: int
    reference: str  # what it is called; empty where it is the model itself

    @property
    def timed(self) -> dict[str, Timed]:
        """What has an interval, by the names of `spec.metrics.SPEEDS`."""
        own = {"speedup": self.speedup, "speedup:prefill": self.speedup_prefill, "decode": self.decode}
        return {**own, "prefill": self.prefill, "first_token": self.first_token}

    @property
    def metrics(self) -> dict[str, float]:
        """By the names of `spec.metrics.SPEEDS`."""
        return {**{name: one.value for name, one in self.timed.items()}, "memory": self.memory}

    @property
    def words(self) -> str:
        """In a line."""
        times, prompt = (
            f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (self.speedup, self.speedup_prefill)
        )
        prefill = f"prefill {self.prefill.value:.4g} tokens/s, × {prompt}"
        rest = f"memory {self.memory / 1e6:,.1f} MB; noise {self.noise:.1%} and {self.noise_prefill:.1%}"
        return f"decode {self.decode.value:.4g} tokens/s, × {times}; {prefill}; {rest}"

    def noise_of(self, metric: str) -> float:
        """How far off 1 the reference beside itself was in what a metric is made of."""
        return self.noise if metric in ("speedup", "decode") else self.noise_prefill


class Evaluation(Record):
    """One evaluation of a model: a perplexity, the scores of tasks, or the speed of generation.

    Beside a perplexity are the losses of its windows, float64 [windows, 2]: nats, scored tokens; beside scores those of
    each document, an array [documents] by TASK/METRIC/FILTER; beside a speed the seconds of every run, see `lm.speed`.
    """

    key: str = ""  # evaluation key: of all that a plan says of the measurement; its path in a stage's folder
    stage: str = ""  # key of the stage that was measured; records of earlier versions do not say
    text: str = ""  # fingerprint of the tokens that were measured on; records of earlier versions have none
    protocol: str  # how text became windows, with which tokeniser, and in which precision where it is not float32
    split: str = ""
    perplexity: float | None  # None where the loss is not finite
    loss: float | None  # mean nats a scored token
    bits_per_byte: float | None
    word_perplexity: float | None
    tokens: int  # scored
    windows: int
    finite: bool = True
    seconds: float = 0.0
    scores: tuple[TaskScore, ...] = ()
    speed: Speed | None = None

    @property
    def is_number(self) -> bool:
        """Whether it came to what can be compared: a finite perplexity, or a speed."""
        return self.finite and (self.perplexity is not None or self.speed is not None)

    @property
    def comparison_key(self) -> ComparisonKey:
        """Whoever compares two figures, or puts them into one mean, asks whether these are equal."""
        return ComparisonKey(self.text or self.key, self.split, self.protocol)


def task_scores(scores: Sequence[TaskScore]) -> dict[str, float | None]:
    """Scores of tasks by the names of columns: task:NAME/METRIC, task:NAME and tasks:mean; see `main_scores`."""
    main = main_scores(scores)
    found = {f"task:{one.task}/{one.metric}": one.value for one in reversed(scores)}
    found |= {f"task:{name}": one.value for name, one in main.items()}
    values = [one.value for one in main.values() if one.asked]
    if values:
        known = [value for value in values if value is not None]
        found["tasks:mean"] = sum(known) / len(known) if len(known) == len(values) else None
    return found


def main_scores(scores: Iterable[TaskScore]) -> dict[str, TaskScore]:
    """The one score of each task that a table shows and means are of: accuracy, else the first that the task has."""
    found: dict[str, TaskScore] = {}
    for one in scores:
        if one.task not in found or (one.metric == "acc" and found[one.task].metric != "acc"):
            found[one.task] = one
    return found


def finite(value: float | None) -> float | None:
    """The value, or None where there is none or it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None
