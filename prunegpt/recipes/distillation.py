"""What distillation modifiers of both dialects ask for, in the words of a spec's `distill`."""

from dataclasses import dataclass, replace
from typing import Any

from prunegpt.recipes.fields import FieldReader, shown
from prunegpt.recipes.notes import Defect
from prunegpt.spec.names import block_index

_HIDDEN = ("square_head", "l2_distance", "l2_distance_sqrd", "mse")
_OTHERS = ("cosine_similarity", "l1_distance", "linf_distance", "inner_product", "cross_entropy", "nll")


@dataclass(frozen=True)
class Blend:
    """A training loss: ce · cross-entropy + kd · divergence of the outputs + hidden · hidden-state term.

    Attributes:
        temperature: of the divergence.
        loss: name of a distillation loss of ours.
        layer_map: student block -> teacher block of the hidden-state term; empty = by position.
        line: of the first modifier.
    """

    ce: float = 1.0
    kd: float = 0.0
    hidden: float = 0.0
    temperature: float = 2.0
    loss: str = "forward_kl"
    layer_map: tuple[tuple[int, int], ...] = ()
    line: int = 0

    def as_spec(self) -> dict[str, Any]:
        """The fields of a spec's `distill`, scaled so that cross-entropy and divergence weigh 1 together."""
        whole = self.ce + self.kd
        fields: dict[str, Any] = {
            "loss": self.loss,
            "hardness": self.kd / whole,
            "temperature": self.temperature,
        }
        if self.hidden:
            fields["hidden_gain"] = self.hidden / whole
        if self.layer_map:
            fields["layer_map"] = dict(self.layer_map)
        return fields


def legacy_output(reader: FieldReader, blend: Blend, epochs: float | None) -> tuple[Blend, list[Defect]]:
    """DistillationModifier of the legacy dialect.

    Args:
        reader: of the modifier.
        blend: the loss before it.
        epochs: the training's, where the recipe says it.
    """
    line = reader.modifier.line
    hardness = reader.number("hardness", 0.5, low=0, high=1)
    temperature = reader.number("temperature", 2.0, low=0)
    if temperature == 0:
        reader.problem("temperature", "temperature must be above 0, but got 0.")
    _window(reader, epochs)
    reader.skip("update_frequency", "teacher_input_keys", "log_types")
    keys = reader.names("distill_output_keys")
    defects = [
        Defect(
            "divergence-is-a-sum",
            line,
            "SparseML 0.8 to 0.11 summed the divergence over all positions of a sequence instead of averaging, and "
            "every version measures eval_loss with the blended loss, so that exp(eval_loss) is no perplexity.",
            "Here the divergence is averaged over the tokens of the cross-entropy, and perplexity never sees it.",
        )
    ]
    if not keys:
        defects.append(
            Defect(
                "all-outputs-distilled",
                line,
                "without distill_output_keys every output is distilled, past_key_values of GPT-2 too, which crashes.",
                "Here the logits are distilled. Write distill_output_keys: [logits].",
            )
        )
    elif keys != ("logits",):
        reader.partly(f"distill_output_keys {', '.join(keys)}: here the logits are distilled.")
    blend = replace(blend, ce=blend.ce * (1 - hardness), kd=blend.kd * (1 - hardness) + hardness, line=line)
    return replace(blend, temperature=temperature or 1.0), defects


def per_layer(reader: FieldReader, blend: Blend, epochs: float | None) -> tuple[Blend, list[Defect]]:
    """PerLayerDistillationModifier: a hidden-state term of several layers."""
    gain = reader.number("gain", 1.5, low=0)
    students = reader.names("student_layer_names")
    teachers = reader.names("teacher_layer_names")
    reader.unlike(
        "normalize",
        True,
        "normalize: false compares hidden states as they are; here each is divided by the teacher's norm.",
    )
    reader.unlike(
        "project_features", True, "project_features: false; here hidden states are projected where the widths differ."
    )
    reader.skip("epsilon", "update_frequency", "log_types")
    _window(reader, epochs)
    count = len(students)
    if count:
        reader.partly(
            f"the term is summed over {count} layers in SparseML and averaged here: the gain is {gain * count:g}.",
        )
    else:
        reader.partly(
            "the term is summed over layers in SparseML and averaged here: multiply hidden_gain by their number.",
        )
    pairs = _layer_map(students, teachers)
    if students and pairs is None:
        reader.partly("layers are not told by number: here blocks are paired by position.")
    line = blend.line or reader.modifier.line
    return replace(blend, hidden=blend.hidden + gain * max(count, 1), layer_map=pairs or (), line=line), []


def session_output(reader: FieldReader, blend: Blend) -> tuple[Blend, list[Defect]]:
    """OutputDistillationModifier of the session dialect: loss = orig_scale · loss + distill_scale · term."""
    modifier = reader.modifier
    before = reader.number("orig_scale", 1.0, low=0)
    scale = reader.number("distill_scale", 1.0, low=0)
    comparison = str(reader.raw("comparison") or "kl_divergence")
    arguments = reader.raw("comparison_args")
    targets = reader.raw("targets")
    reader.skip("start", "end", "update", "transforms", "transforms_args", "offload_layer_output")
    if reader.raw("projection"):
        reader.partly("projection: here hidden states are projected only where the widths differ.")
    reader.skip("projection_args")
    update = reader.number("update", 0.0) if reader.has("update") else None
    blend = replace(
        blend,
        ce=blend.ce * before,
        kd=blend.kd * before,
        hidden=blend.hidden * before,
        line=blend.line or modifier.line,
    )
    defects = _update_defects(update, modifier.line)
    if update and update > 0 and not defects:
        reader.partly(f"it fires at one step every {update:g} epochs in SparseML; here at every step.")
    if comparison == "kl_divergence":
        softened = arguments.get("temperature", 1) if isinstance(arguments, dict) else 1
        defects.append(
            Defect(
                "kl-direction",
                modifier.line,
                "kl_divergence computes KL(student‖teacher), not the usual KL(teacher‖student), and divides "
                f"probabilities by the temperature ({shown(softened)}), which softens nothing.",
                "Here it is loss reverse_kl at temperature 1. Use loss forward_kl, temperature 2 for the usual one.",
            )
        )
        reader.say("supported", "the divergence is taken of the logits.")
        return replace(blend, kd=blend.kd + scale, loss="reverse_kl", temperature=1.0), defects
    if comparison in _HIDDEN:
        if comparison != "square_head":
            reader.partly(f"{comparison} compares hidden states as they are; here relative to the teacher's.")
        pairs = _session_pairs(targets)
        if targets is not None and pairs is None:
            reader.partly("layers are not told by number: here blocks are paired by position.")
        return replace(blend, hidden=blend.hidden + scale, layer_map=pairs or blend.layer_map), defects
    if comparison in _OTHERS:
        reader.unsupported(f"comparison {comparison}; here are kl_divergence and square_head.")
    else:
        reader.problem("comparison", f"comparison must be kl_divergence or square_head, but got {shown(comparison)}.")
    return blend, defects


def _update_defects(update: float | None, line: int) -> list[Defect]:
    if update is None or update <= 0 or update == round(update):
        return []
    return [
        Defect(
            "distillation-never-fires",
            line,
            f"update: {update:g} fires only where epoch % {update:g} is below 1e-10 in floating point, which a "
            f"fractional number seldom meets: distillation then hardly ever happens.",
            "Leave update out. Here every step is distilled.",
        )
    ]


def _window(reader: FieldReader, epochs: float | None) -> None:
    start = reader.number("start_epoch", -1.0, low=-1)
    end = reader.number("end_epoch", -1.0, low=-1)
    if start > 0:
        reader.partly(f"it starts at epoch {start:g} in the recipe; here with training.")
    if end >= 0 and (epochs is None or end < epochs):
        reader.partly(f"it ends at epoch {end:g} in the recipe; here with training.")


def _layer_map(students: tuple[str, ...], teachers: tuple[str, ...]) -> tuple[tuple[int, int], ...] | None:
    pairs = []
    teachers = teachers or students
    if not students or len(students) != len(teachers):
        return None
    for student, teacher in zip(students, teachers, strict=True):
        mine, theirs = block_index(student), block_index(teacher)
        if mine is None or theirs is None:
            return None
        pairs.append((mine, theirs))
    return tuple(pairs)


def _session_pairs(targets: Any) -> tuple[tuple[int, int], ...] | None:
    """`targets`: names, or [student, teacher] pairs."""
    items = targets if isinstance(targets, list) else [targets]
    students, teachers = [], []
    for item in items:
        pair = item if isinstance(item, list) else [item, item]
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            return None
        students.append(pair[0])
        teachers.append(pair[1])
    return _layer_map(tuple(students), tuple(teachers))
