"""The columns a table may have: name -> meaning and unit. How each is filled is in `report/columns.py`."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from prunegpt.errors import UnknownPartError, unknown
from prunegpt.spec.metrics import NAMED, SPEEDS, is_speed, is_task, metric_parts
from prunegpt.spec.part import REFERENCE

CONFIG = "config:"  # and a path of the resolved configuration
REPORTED = "reported"  # the published perplexity; of another column it is behind a colon
LOGGED = "logged:"  # and the name of a metric that a W&B run has logged
CURVE = "curve:"  # and which value of which curve: last.loss, min.eval_loss, stages.1.max.grad_norm
COLUMNS: Mapping[str, str] = {
    "trial": "name of the trial, or the name its seeds share",
    "model": "label of the row, else of the model",
    "state": "how far the row is: finished, running, failed, ...",
    "sparsity": "zeros counted in the tensors selected for pruning, percent",
    "sparsity_all": "zeros counted in all parameters, percent",
    "parameters": "weights of the model, zeros included",
    "nonzero": "weights of the model that are not zero",
    "bytes": "of the files that hold the weights, in the dtype that they are stored in",
    "coverage": "weights outside the embeddings that are in the tensors selected for pruning, percent",
    "perplexity": "measured after the last stage, with its interval",
    "before": "perplexity before the last stage that trains, such as of a pruned model before it is healed",
    "difference": "perplexity less that of the best row of the same protocol, with its interval",
    "beside_median": "perplexity over that of the pruned row in the middle, with its interval; which rows differ",
    **{name: about for name, (_, about) in SPEEDS.items()},
    "distilled": "Yes where the chain has a distillation",
    "teacher": "what taught it, such as gpt2(zero-shot)",
    "layer": "index of the decoder layer, where exactly one was pruned",
    "method": "criterion or solver, with the schedule where pruning is gradual, and what refines and repairs it",
    "pattern": "unstructured, N:M or block",
    "allocation": "how the budget was spread over the tensors",
    "stages": "the chain, such as finetune → prune",
    "protocol": "how, on what and with which tokeniser it was measured",
    "bits_per_byte": "loss in bits by bytes of text; for any tokeniser",
    "word_perplexity": "perplexity by words; for any tokeniser",
    "tokens": "tokens trained on",
    "seconds": "wall time of computing all stages, in whichever trial",
    "device_seconds": "device-seconds: wall time multiplied by the number of devices",
    "peak_memory": "the most memory that a stage held, loading included: of the device, or of the process on a CPU",
    "device": "what computed the stages",
    "seeds": "runs the row is the mean of",
    "reported": "the published figure, as it was printed",
}


# Columns of one evaluation. Of one that is not the first, its name is behind a colon: perplexity:c4.
EVALUATED = ("perplexity", "difference", "beside_median", "protocol", "bits_per_byte", "word_perplexity")


def column_parts(name: str) -> tuple[str, str]:
    """A column without the evaluation that it names, and that; empty where it names none."""
    if is_speed(name):
        return metric_parts(name)
    base, _, evaluation = name.partition(":")
    return (base, evaluation) if base in EVALUATED else (name, "")


class CurveValue(NamedTuple):
    """One value that a curve comes to."""

    name: str  # of the curve
    end: str  # last, min or max
    stage: int | None = None  # None means the last stage that has the curve

    @property
    def path(self) -> str:
        """What it is called in columns and fields."""
        return f"{'' if self.stage is None else f'stages.{self.stage}.'}{self.end}.{self.name}"

    @property
    def label(self) -> str:
        return f"{self.name}, {_ENDS[self.end]}{self._where}"

    @property
    def about(self) -> str:
        return f"{_ENDS[self.end]} value of the curve {self.name}{self._where}"

    @property
    def _where(self) -> str:
        return "" if self.stage is None else f", stage {self.stage}"


_ENDS = {"last": "last", "min": "least", "max": "greatest"}
_CURVE_VALUE = re.compile(rf"(?:stages\.(?P<stage>\d+)\.)?(?P<end>{'|'.join(_ENDS)})\.(?P<name>.+)")


def curve_value(path: str) -> CurveValue | None:
    """The value of a curve that a path such as last.loss means; None where it means none."""
    found = _CURVE_VALUE.fullmatch(path)
    return found and CurveValue(found["name"], found["end"], int(found["stage"]) if found["stage"] else None)


def check_column(name: str) -> str:
    """The name, where there is such a column.

    Raises:
        UnknownPartError: there is none; the nearest names are listed.
    """
    if is_below(name, f"{REPORTED}:"):
        check_column(name.removeprefix(f"{REPORTED}:"))
        return name
    if curve_value(name.removeprefix(CURVE)):
        if name.startswith(CURVE):
            return name
        raise UnknownPartError(f"a column of a curve must begin with {CURVE}, got {name!r}. Write {CURVE}{name}.")
    if name.startswith(CURVE):
        raise UnknownPartError(
            f"a column of a curve must name its last, least or greatest value, got {name!r}. Write {CURVE}last.NAME, "
            f"{CURVE}min.NAME or {CURVE}max.NAME; of one stage {CURVE}stages.N.last.NAME."
        )
    if column_parts(name)[0] in COLUMNS or is_task(name) or any(is_below(name, kind) for kind in (CONFIG, LOGGED)):
        return name
    kinds = (f"{CONFIG}PATH", f"{CURVE}VALUE", f"{LOGGED}METRIC")
    raise UnknownPartError(unknown("column", name, [*COLUMNS, *NAMED, *kinds], REFERENCE))


def is_below(name: str, kind: str) -> bool:
    """Whether a column is of a kind, such as `config:`, and has a name behind it."""
    return name.startswith(kind) and len(name) > len(kind)
