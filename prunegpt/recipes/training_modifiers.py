"""The modifiers of distillation and of the learning rate: a spec's `distill`, and segments of a curve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunegpt.errors import shown
from prunegpt.recipes.fields import FieldReader, as_number
from prunegpt.recipes.learning_rate import Segment
from prunegpt.recipes.reader import Dialect
from prunegpt.spec.names import block_index

_HIDDEN = ("square_head", "l2_distance", "l2_distance_sqrd", "mse")
_OTHERS = ("cosine_similarity", "l1_distance", "linf_distance", "inner_product", "cross_entropy", "nll")
_SHAPES = ("linear", "cosine", "cyclic_linear")
_SCHEDULERS = ("StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts")
_BY_POSITION = "layers are not identified by number: here layers are paired by position."

Pairs = dict[int, int]


@dataclass(frozen=True)
class Blend:
    """A training loss: ce · cross-entropy + kd · divergence of the outputs + hidden · hidden-state term.

    Attributes:
        temperature: of the divergence.
        loss: name of a distillation loss of ours.
        pairs: student layer -> teacher layer of the hidden-state term; empty = by position.
        line: of the first modifier.
    """

    ce: float = 1.0
    kd: float = 0.0
    hidden: float = 0.0
    temperature: float = 2.0
    loss: str = "forward_kl"
    pairs: Pairs | None = None
    line: int = 0

    def as_spec(self) -> dict[str, Any]:
        """The fields of a spec's `distill`, scaled so that cross-entropy and divergence weigh 1 together."""
        whole = self.ce + self.kd
        fields: dict[str, Any] = {"loss": self.loss, "hardness": self.kd / whole, "temperature": self.temperature}
        if self.hidden:
            fields["hidden_gain"] = self.hidden / whole
        if self.pairs:
            fields["layer_map"] = self.pairs
        return fields


def legacy_output(reader: FieldReader, blend: Blend) -> Blend:
    """DistillationModifier of the legacy dialect; `blend` is the loss before it."""
    hardness = reader.number("hardness", 0.5, low=0, high=1)
    temperature = reader.number("temperature", 2.0, low=0)
    if temperature == 0:
        reader.problem("temperature", "temperature must be above 0, got 0.")
    _window(reader)
    keys = reader.names("distill_output_keys")
    reader.defect(
        "divergence-is-a-sum",
        "SparseML 0.8 to 0.11 summed the divergence over all positions of a sequence instead of averaging, and "
        "every version measures eval_loss with the blended loss, so that exp(eval_loss) is no perplexity.",
        "Here the divergence is averaged over the tokens of the cross-entropy, and perplexity never sees it.",
    )
    if not keys:
        reader.defect(
            "all-outputs-distilled",
            "without distill_output_keys every output is distilled, past_key_values of GPT-2 too, which crashes.",
            "Here the logits are distilled. Write distill_output_keys: [logits].",
        )
    elif keys != ("logits",):
        reader.partly(f"distill_output_keys {', '.join(keys)}: here the logits are distilled.")
    ce, kd = blend.ce * (1 - hardness), blend.kd * (1 - hardness) + hardness
    return replace(blend, ce=ce, kd=kd, line=reader.modifier.line, temperature=temperature or 1.0)


def per_layer(reader: FieldReader, blend: Blend) -> Blend:
    """PerLayerDistillationModifier: a hidden-state term of several layers."""
    gain = reader.number("gain", 1.5, low=0)
    students, teachers = reader.names("student_layer_names"), reader.names("teacher_layer_names")
    _window(reader)
    count = len(students)
    summed = f"over {count} layers" if count else "over layers"
    what = f"the gain is {gain * count:g}" if count else "multiply hidden_gain by their number"
    reader.partly(f"the term is summed {summed} in SparseML and averaged here: {what}.")
    pairs = _pairs(list(zip(students, teachers or students, strict=False)))
    if students and (pairs is None or len(teachers) not in (0, count)):
        reader.partly(_BY_POSITION)
        pairs = None
    hidden, line = blend.hidden + gain * max(count, 1), blend.line or reader.modifier.line
    return replace(blend, hidden=hidden, pairs=pairs, line=line)


def session_output(reader: FieldReader, blend: Blend) -> Blend:
    """OutputDistillationModifier of the session dialect: loss = orig_scale · loss + distill_scale · term."""
    line = reader.modifier.line
    before = reader.number("orig_scale", 1.0, low=0)
    scale = reader.number("distill_scale", 1.0, low=0)
    comparison = str(reader.raw("comparison") or "kl_divergence")
    arguments, targets = reader.raw("comparison_args"), reader.raw("targets")
    kd, hidden = blend.kd * before, blend.hidden * before
    blend = replace(blend, ce=blend.ce * before, kd=kd, hidden=hidden, line=blend.line or line)
    update = reader.number("update", -1.0)
    if update > 0 and update != round(update):
        reader.defect(
            "distillation-never-fires",
            f"update: {update:g} fires only where epoch % {update:g} is below 1e-10 in floating point, which a "
            f"fractional number seldom meets: distillation then hardly ever happens.",
            "Leave update out. Here every step is distilled.",
        )
    elif update > 0:
        reader.partly(f"it fires at one step every {update:g} epochs in SparseML; here at every step.")
    if comparison == "kl_divergence":
        softened = arguments.get("temperature", 1) if isinstance(arguments, dict) else 1
        reader.say("supported", "the divergence is taken of the logits.")
        reader.defect(
            "kl-direction",
            "kl_divergence computes KL(student‖teacher), not the usual KL(teacher‖student), and divides "
            f"probabilities by the temperature ({shown(softened)}), which softens nothing.",
            "Here it is loss reverse_kl at temperature 1. Use loss forward_kl, temperature 2 for the usual one.",
        )
        return replace(blend, kd=blend.kd + scale, loss="reverse_kl", temperature=1.0)
    if comparison in _HIDDEN:
        if comparison != "square_head":
            reader.partly(f"{comparison} compares hidden states as they are; here relative to the teacher's.")
        items = targets if isinstance(targets, list) else [targets]
        pairs = _pairs([item if isinstance(item, list) else [item, item] for item in items])
        if targets is not None and pairs is None:
            reader.partly(_BY_POSITION)
        return replace(blend, hidden=blend.hidden + scale, pairs=pairs or blend.pairs)
    if comparison in _OTHERS:
        reader.unsupported(f"comparison {comparison}; here are kl_divergence and square_head.")
    else:
        reader.problem("comparison", f"comparison must be kl_divergence or square_head, got {shown(comparison)}.")
    return blend


def _window(reader: FieldReader) -> None:
    start = reader.number("start_epoch", -1.0, low=-1)
    end = reader.number("end_epoch", -1.0, low=-1)
    if start > 0:
        reader.partly(f"it starts at epoch {start:g} in the recipe; here with training.")
    if end >= 0 and (reader.epochs is None or end < reader.epochs):
        reader.partly(f"it ends at epoch {end:g} in the recipe; here with training.")


def _pairs(names: list[Any]) -> Pairs | None:
    """Student layer -> teacher layer of [student, teacher] names; None where names do not contain layer numbers."""
    found: Pairs = {}
    for pair in names:
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            return None
        mine, theirs = (block_index(name) for name in pair)
        if mine is None or theirs is None:
            return None
        found[mine] = theirs
    return found or None


BLENDS: Mapping[Dialect, Mapping[str, Callable[[FieldReader, Blend], Blend]]] = {
    "legacy": {"DistillationModifier": legacy_output, "PerLayerDistillationModifier": per_layer},
    "session": {"OutputDistillationModifier": session_output},
}

# -- the learning rate -------------------------------------------------------------------------------------------------


def set_rate(reader: FieldReader) -> list[Segment]:
    """SetLearningRateModifier: one value from start_epoch on."""
    rate = reader.number("learning_rate", low=0, high=1)
    start = reader.number("start_epoch", -1.0, low=-1)
    return [_constant(start, rate)]


def function(reader: FieldReader) -> list[Segment]:
    """LearningRateFunctionModifier: linear, cosine or cyclic_linear between two values."""
    shape = reader.choice("lr_func", None, _SHAPES)
    first, last = reader.number("init_lr", low=0, high=1), reader.number("final_lr", low=0, high=1)
    start = max(reader.number("start_epoch", -1.0, low=-1), 0.0)
    end = reader.number("end_epoch", -1.0, low=-1)
    cycle = reader.number("cycle_epochs", 1.0)
    if end < 0:
        reader.problem("end_epoch", "end_epoch is required for a learning rate that changes.")
    elif end <= start:
        reader.problem("end_epoch", f"end_epoch must come after start_epoch, got {end:g} and {start:g}.")
    elif shape == "cyclic_linear" and cycle <= 0:
        reader.problem("cycle_epochs", f"cycle_epochs must be above 0, got {cycle:g}.")
    else:
        settings = {"shape": shape, "start": start, "end": end, "first": first, "last": last}
        return [Segment.model_validate(settings | ({"cycle": cycle} if shape == "cyclic_linear" else {}))]
    return []


def scheduler(reader: FieldReader) -> list[Segment]:
    """LearningRateModifier: a scheduler of torch, its times in epochs."""
    name = reader.choice("lr_class", None, _SCHEDULERS)
    first = reader.number("init_lr", low=0, high=1)
    start = max(reader.number("start_epoch", -1.0, low=-1), 0.0)
    stop = reader.number("end_epoch", -1.0, low=-1)
    end = stop if stop > start else None
    given = reader.raw("lr_kwargs")
    if not isinstance(given, dict):
        reader.problem("lr_kwargs", f"lr_kwargs must be a mapping, got {shown(given)}.")
        return []

    def number(key: str, default: float | None = None, high: float = 1e6) -> float:
        value = as_number(given.get(key, default))
        if value is None or not 0 <= value <= high:
            message = f"{key} of {name} must be a number from 0 to {high:g}, got {shown(given.get(key))}."
            reader.problem("lr_kwargs", message)
            return 1.0
        return value

    if name == "MultiStepLR":
        factor, milestones = number("gamma", 0.1, 1), given.get("milestones")
        times = [as_number(item) for item in milestones] if isinstance(milestones, list) else [None]
        if any(time is None or time <= start for time in times):
            reader.problem("lr_kwargs", f"milestones must be epochs after {start:g}, got {shown(milestones)}.")
            return []
        steps = sorted(time for time in times if time is not None)
        return [_constant(start, first), *(_constant(time, first * factor ** (n + 1)) for n, time in enumerate(steps))]
    if name == "CosineAnnealingWarmRestarts":
        if number("T_mult", 1) != 1 or number("cycle_mult", 1) != 1:
            reader.problem("lr_kwargs", "cycles of growing length are not supported. Write one modifier per cycle.")
        shape = {"shape": "cosine_restarts", "last": number("lr_min", 0.0), "cycle": number("cycle_epochs")}
    else:  # SparseML makes ExponentialLR a step an epoch
        cycle = 1.0 if name == "ExponentialLR" else number("step_size")
        shape = {"shape": "step", "cycle": cycle, "factor": number("gamma", 0.1 if name == "StepLR" else None, 1)}
    return [Segment.model_validate({"start": start, "end": end, "first": first, **shape})]


def _constant(start: float, rate: float) -> Segment:
    return Segment(shape="constant", start=max(start, 0.0), first=rate)


CURVES: Mapping[Dialect, Mapping[str, Callable[[FieldReader], list[Segment]]]] = {
    "legacy": {
        "SetLearningRateModifier": set_rate,
        "LearningRateFunctionModifier": function,
        "LearningRateModifier": scheduler,
    },
    "session": {},
}
