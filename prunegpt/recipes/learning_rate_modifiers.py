"""The learning-rate modifiers of the legacy dialect, as segments of a curve."""

from collections.abc import Callable, Mapping

from prunegpt.recipes.fields import FieldReader, as_number, shown
from prunegpt.recipes.learning_rate import Segment, piecewise

_FUNCTIONS = ("linear", "cosine", "cyclic_linear")
_CLASSES = ("StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts")


def set_rate(reader: FieldReader) -> list[Segment]:
    """SetLearningRateModifier: one value from start_epoch on."""
    rate = reader.number("learning_rate", low=0, high=1)
    start = reader.number("start_epoch", -1.0, low=-1)
    reader.skip("end_epoch")
    return list(piecewise([(start, rate)]))


def function(reader: FieldReader) -> list[Segment]:
    """LearningRateFunctionModifier: linear, cosine or cyclic_linear between two values."""
    shape = reader.choice("lr_func", None, _FUNCTIONS)
    first, last = reader.number("init_lr", low=0, high=1), reader.number("final_lr", low=0, high=1)
    start = max(reader.number("start_epoch", -1.0, low=-1), 0.0)
    end = reader.number("end_epoch", -1.0, low=-1)
    cycle = reader.number("cycle_epochs", 1.0)
    if end < 0:
        reader.problem("end_epoch", "end_epoch is required for a learning rate that changes.")
    elif end <= start:
        reader.problem("end_epoch", f"end_epoch must come after start_epoch, but they are {end:g} and {start:g}.")
    elif shape == "cyclic_linear" and cycle <= 0:
        reader.problem("cycle_epochs", f"cycle_epochs must be above 0, but got {cycle:g}.")
    else:
        settings = {"shape": shape, "start": start, "end": end, "first": first, "last": last}
        return [Segment.model_validate(settings | ({"cycle": cycle} if shape == "cyclic_linear" else {}))]
    return []


def scheduler(reader: FieldReader) -> list[Segment]:
    """LearningRateModifier: a scheduler of torch, its times in epochs."""
    name = reader.choice("lr_class", None, _CLASSES)
    first = reader.number("init_lr", low=0, high=1)
    start = max(reader.number("start_epoch", -1.0, low=-1), 0.0)
    stop = reader.number("end_epoch", -1.0, low=-1)
    end = stop if stop > start else None
    given = reader.raw("lr_kwargs")
    if not isinstance(given, dict):
        reader.problem("lr_kwargs", f"lr_kwargs must be a mapping, but got {shown(given)}.")
        return []

    def number(key: str, default: float | None = None, high: float = 1e6) -> float:
        value = as_number(given.get(key, default))
        if value is None or not 0 <= value <= high:
            message = f"{key} of {name} must be a number from 0 to {high:g}, but got {shown(given.get(key))}."
            reader.problem("lr_kwargs", message)
            return 1.0
        return value

    if name == "MultiStepLR":
        factor, milestones = number("gamma", 0.1, 1), given.get("milestones")
        times = [as_number(item) for item in milestones] if isinstance(milestones, list) else [None]
        if any(time is None or time <= start for time in times):
            reader.problem("lr_kwargs", f"milestones must be epochs after {start:g}, but got {shown(milestones)}.")
            return []
        steps = sorted(time for time in times if time is not None)
        return list(piecewise([(start, first), *((time, first * factor ** (n + 1)) for n, time in enumerate(steps))]))
    if name == "CosineAnnealingWarmRestarts":
        if number("T_mult", 1) != 1 or number("cycle_mult", 1) != 1:
            reader.problem("lr_kwargs", "cycles of growing length are not supported. Write one modifier a cycle.")
        shape = {"shape": "cosine_restarts", "last": number("lr_min", 0.0), "cycle": number("cycle_epochs")}
    else:  # SparseML makes ExponentialLR a step an epoch
        cycle = 1.0 if name == "ExponentialLR" else number("step_size")
        shape = {"shape": "step", "cycle": cycle, "factor": number("gamma", 0.1 if name == "StepLR" else None, 1)}
    return [Segment.model_validate({"start": start, "end": end, "first": first, **shape})]


CURVES: Mapping[str, Callable[[FieldReader], list[Segment]]] = {
    "SetLearningRateModifier": set_rate,
    "LearningRateFunctionModifier": function,
    "LearningRateModifier": scheduler,
}
