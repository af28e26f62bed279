"""What the modifiers of one stage ask for together."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import Problem, unknown
from prunegpt.recipes.defects import pruning_defects
from prunegpt.recipes.distillation import Blend, legacy_output, per_layer, session_output
from prunegpt.recipes.fields import FieldReader, as_number
from prunegpt.recipes.learning_rate import LearningRateCurve, Segment, as_arguments
from prunegpt.recipes.learning_rate_modifiers import CURVES
from prunegpt.recipes.matching import ALL, ALL_PRUNABLE, MatchingError, Tensors, match_params
from prunegpt.recipes.merging import merge
from prunegpt.recipes.modifiers import Dialect, Modifier, Run, StageHeader
from prunegpt.recipes.notes import Defect, Level, Note
from prunegpt.recipes.pruning import Pruning, as_spec, spec_schedule
from prunegpt.recipes.pruning_modifiers import Say, acdc, gradual, obs, one_shot, session_magnitude
from prunegpt.spec.schema import GradualSpec, PruneSpec

_QUANTISATION = "weights and activations are not quantised here."
_UNSUPPORTED: Mapping[str, str] = {  # modifiers of either dialect that have no counterpart
    "MFACPruningModifier": "there is no M-FAC here; OBSPruningModifier becomes obert, which is the nearest.",
    "StructuredPruningModifier": "filters and channels are not removed here.",
    "LayerPruningModifier": "layers are not dropped here.",
    "LayerThinningModifier": "layers are not removed from the model here.",
    "RigLPruningModifier": "there is no RigL here; ACDCPruningModifier also lets weights come back.",
    "TopKASTPruningModifier": "there is no Top-KAST here; ACDCPruningModifier also lets weights come back.",
    "PowerpropagationModifier": "weights are not reparametrised here.",
    "ASRegModifier": "activations are not regularised here.",
    "TrainableParamsModifier": "parameters are not frozen here.",
    "SetParamModifier": "parameters are not set by hand here.",
    "GradualParamModifier": "parameters are not set by hand here.",
    "SparseOPTModifier": "write SparseGPTModifier in a `oneshot` stage.",
    "SparseLlamaModifier": "write SparseGPTModifier in a `oneshot` stage.",
    "QuantizationModifier": _QUANTISATION,
    "LegacyQuantizationModifier": _QUANTISATION,
    "vLLMQuantizationModifier": _QUANTISATION,
    "GPTQModifier": _QUANTISATION,
    "AWQModifier": _QUANTISATION,
    "AutoRoundModifier": _QUANTISATION,
    "SmoothQuantModifier": _QUANTISATION,
    "LogarithmicEqualizationModifier": _QUANTISATION,
}
_IGNORED = {"SparsificationLoggingModifier", "LoggingModifier"}


@dataclass(frozen=True)
class StageMeaning:
    """What one stage asks for.

    Attributes:
        name: of the recipe's stage; empty where it has none.
        run: whether it trains.
        line: where it begins.
        epochs: of its training; None where the recipe does not say.
        train: names of transformers.TrainingArguments.
        prune: fields of a spec's `prune`; None where it does not prune, or in a way that one section cannot say.
        distill: fields of a spec's `distill` but for the teacher; None where it does not distil.
        learning_rate: the curve; None where the recipe does not touch the learning rate.
        follow_curve: whether no transformers scheduler gives that curve, so that `train` does not hold it.
        prunings: its pruning modifiers, each as written.
        distillation_update: session dialect: `update` of its distillation.
    """

    name: str
    run: Run
    line: int
    epochs: float | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    prune: Mapping[str, Any] | None = None
    distill: Mapping[str, Any] | None = None
    learning_rate: LearningRateCurve | None = None
    follow_curve: bool = False
    prunings: tuple[Pruning, ...] = ()
    distillation_update: float | None = None


class StageBuilder:
    """Collects what the modifiers of one stage ask for."""

    def __init__(
        self, dialect: Dialect, header: StageHeader, modifiers: list[Modifier], problems: list[Problem]
    ) -> None:
        self.dialect = dialect
        self.header = header
        self.problems = problems
        self.notes: list[Note] = []
        self.defects: list[Defect] = []
        self.run: Run = header.run or _guess(modifiers)
        self.epochs = _epochs(modifiers) if dialect == "legacy" else None
        self._segments: list[Segment] = []
        self._prunings: list[Pruning] = []
        self._blend: Blend | None = None
        self._train: dict[str, Any] = {}

    def add(self, modifier: Modifier) -> None:
        """Takes one modifier in."""
        said = len(self.notes)
        say = self._speaker(modifier)
        reader = FieldReader(modifier, self.problems)
        name = modifier.name
        if name in _IGNORED:
            say("ignored", "it only writes logs.")
        elif name in _UNSUPPORTED:
            say("unsupported", _UNSUPPORTED[name])
        elif handler := self._handlers().get(name):
            if self.dialect == "session":
                reader.skip("index", "group")
            handler(reader, say)
            reader.finish()
            if len(self.notes) == said:
                say("supported", self._summary(name))
        else:
            valid = [*self._handlers(), *_UNSUPPORTED, *_IGNORED]
            self.problems.append(Problem(name, unknown("modifier", name, valid), modifier.line))

    def _speaker(self, modifier: Modifier) -> Say:
        def say(level: Level, text: str) -> None:
            self.notes.append(Note(modifier.name, modifier.line, modifier.stage, level, text))

        return say

    def _handlers(self) -> Mapping[str, Callable[[FieldReader, Say], None]]:
        if self.dialect == "session":
            return {
                "MagnitudePruningModifier": self._session_magnitude,
                "ConstantPruningModifier": self._constant,
                "SparseGPTModifier": self._one_shot("sparsegpt"),
                "WandaPruningModifier": self._one_shot("wanda"),
                "OutputDistillationModifier": self._session_distillation,
            }
        return {
            "EpochRangeModifier": self._epoch_range,
            "GMPruningModifier": self._gradual("magnitude", None),
            "MagnitudePruningModifier": self._gradual("magnitude", None),
            "GlobalMagnitudePruningModifier": self._gradual("magnitude", "global"),
            "MovementPruningModifier": self._gradual("movement", None),
            "OBSPruningModifier": lambda reader, say: self._prunings.append(obs(reader, say)),
            "ACDCPruningModifier": lambda reader, say: self._prunings.append(acdc(reader, say)),
            "ConstantPruningModifier": self._constant,
            "DistillationModifier": self._distillation,
            "PerLayerDistillationModifier": self._per_layer,
            "SetWeightDecayModifier": self._weight_decay,
            **{name: self._curve(name) for name in CURVES},
        }

    def _summary(self, name: str) -> str:
        if name == "EpochRangeModifier":
            return f"trains {self.epochs:g} epochs." if self.epochs else "sets no number of epochs."
        if name == "ConstantPruningModifier":
            return "what is zero stays zero (keep_masks)."
        return "as written."

    def _epoch_range(self, reader: FieldReader, say: Say) -> None:
        reader.number("start_epoch", -1.0, low=-1)
        reader.number("end_epoch", -1.0, low=-1)
        reader.skip("log_types", "update_frequency")

    def _gradual(self, method: str, spread: str | None) -> Callable[[FieldReader, Say], None]:
        def handle(reader: FieldReader, say: Say) -> None:
            self._prunings.append(gradual(reader, say, method=method, spread=spread))

        return handle

    def _one_shot(self, method: str) -> Callable[[FieldReader, Say], None]:
        def handle(reader: FieldReader, say: Say) -> None:
            if self.run == "train":
                say("unsupported", "a one-shot method must stand in a oneshot stage. Set run_type: oneshot.")
            self._prunings.append(one_shot(reader, say, method=method))

        return handle

    def _session_magnitude(self, reader: FieldReader, say: Say) -> None:
        self._prunings.append(session_magnitude(reader, say, one_shot=self.run == "oneshot"))

    def _constant(self, reader: FieldReader, say: Say) -> None:
        session = self.dialect == "session"
        names = reader.names("targets" if session else "params")
        start = reader.number("start" if session else "start_epoch", -1.0, low=-1)
        end = reader.number("end" if session else "end_epoch", -1.0, low=-1)
        reader.skip("update", "update_frequency", "log_types")
        lasts = reader.flag("leave_enabled", True)
        if start > 0:
            say("partly", f"masks are kept from epoch {start:g} on in the recipe; here from the beginning.")
        if end >= 0 and (not lasts or not session) and (self.epochs is None or end < self.epochs):
            say("partly", f"masks are let go at epoch {end:g} in the recipe; here they stay.")
        if names and not {ALL, ALL_PRUNABLE} & set(names):
            say("partly", "masks are kept in the named tensors only; here in all that earlier stages pruned.")

    def _distillation(self, reader: FieldReader, say: Say) -> None:
        self._blend, defects = legacy_output(reader, say, self._blend or Blend(), self.epochs)
        self.defects += defects

    def _session_distillation(self, reader: FieldReader, say: Say) -> None:
        self._blend, defects = session_output(reader, say, self._blend or Blend())
        self.defects += defects

    def _per_layer(self, reader: FieldReader, say: Say) -> None:
        self._blend = per_layer(reader, say, self._blend or Blend(), self.epochs)

    def _weight_decay(self, reader: FieldReader, say: Say) -> None:
        self._train["weight_decay"] = reader.number("weight_decay", low=0)
        if reader.number("start_epoch", -1.0, low=-1) > 0:
            say("partly", "it is set at start_epoch in the recipe; here from the beginning.")
        if reader.raw("param_groups"):
            say("partly", "param_groups: here it holds for all parameters that decay.")
        reader.skip("end_epoch", "constant_logging", "log_types")

    def _curve(self, name: str) -> Callable[[FieldReader, Say], None]:
        def handle(reader: FieldReader, say: Say) -> None:
            if reader.raw("param_groups"):
                say("partly", "param_groups: here the learning rate is that of all parameters.")
            reader.skip("constant_logging", "log_types", "update_frequency")
            try:
                self._segments += CURVES[name](reader)
            except ValidationError as error:
                for item in error.errors():
                    where = ".".join(str(step) for step in item["loc"])
                    reader.problem("", f"{where} {item['msg'].lower()}.".strip())

        return handle

    def finish(self, version: str | None, tensors: Tensors | None) -> StageMeaning:
        """What they ask for together."""
        if version is not None and tensors is not None:
            self._prunings = [_strict(item, version, tensors) for item in self._prunings]
        for item in self._prunings:
            self.defects += pruning_defects(item, self.epochs)
        curve = LearningRateCurve(segments=tuple(self._segments)) if self._segments else None
        expressed = as_arguments(curve, self.epochs) if curve else None
        if self.epochs:
            self._train["num_train_epochs"] = int(self.epochs)
        return StageMeaning(
            self.header.name,
            self.run,
            self.header.line,
            self.epochs,
            {**self._train, **(expressed or {})},
            self._prune(),
            self._distill(),
            curve,
            curve is not None and expressed is None,
            tuple(self._prunings),
            self._blend.update if self._blend else None,
        )

    def _prune(self) -> Mapping[str, Any] | None:
        if not self._prunings:
            return None
        specs = []
        for item in self._prunings:
            try:
                specs.append(as_spec(item))
            except MatchingError as error:
                self.problems.append(Problem(item.modifier, str(error), item.line))
        if len(specs) < len(self._prunings):
            return None
        merged = merge(specs)
        if merged is None:
            for item in self._prunings[1:]:
                text = (
                    "one section `prune` holds one schedule, and this one differs from the first. Use a stage for each."
                )
                self.notes.append(Note(item.modifier, item.line, item.stage, "unsupported", text))
            return None
        if any(spec_schedule(item.schedule, item.arguments) is None for item in self._prunings):
            return None  # said where the modifier was read
        self._check(merged, self._prunings[0])
        return merged

    def _check(self, fields: Mapping[str, Any], first: Pruning) -> None:
        spec: type[PruneSpec] = PruneSpec if first.one_shot else GradualSpec
        try:
            spec.model_validate(dict(fields))
        except ValidationError as error:
            for item in error.errors():
                message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
                self.problems.append(Problem(first.modifier, message, first.line))

    def _distill(self) -> Mapping[str, Any] | None:
        if self._blend is None:
            return None
        if self._blend.ce + self._blend.kd <= 0:
            message = "the cross-entropy or the divergence must have a weight above 0, but both are 0."
            self.problems.append(Problem("distillation", message, self._blend.line))
            return None
        return self._blend.as_spec()


def _strict(item: Pruning, version: str, tensors: Tensors) -> Pruning:
    """The modifier with keywords replaced by the tensors that a version of SparseML matched."""
    entries = [
        name
        for entry in item.entries
        for name in (match_params(entry, tensors, version) if entry in {ALL, ALL_PRUNABLE} else [entry])
    ]
    if item.dialect == "session" or tuple(entries) == item.entries:
        return item
    return replace(item, entries=tuple(dict.fromkeys(entries)))


def _guess(modifiers: list[Modifier]) -> Run:
    """The run of a stage that does not say: one-shot methods do not train."""
    once = {"SparseGPTModifier", "WandaPruningModifier", "GPTQModifier", "SmoothQuantModifier", "AWQModifier"}
    return "oneshot" if any(modifier.name in once for modifier in modifiers) else "train"


def _epochs(modifiers: list[Modifier]) -> float | None:
    """SparseML's max_epochs: the largest of all start and end epochs, rounded up; it overrides num_train_epochs."""
    times = [as_number(modifier.fields.get(name)) for modifier in modifiers for name in ("start_epoch", "end_epoch")]
    whole = [math.ceil(time) for time in times if time is not None and time > 0]
    return float(max(whole)) if whole else None
