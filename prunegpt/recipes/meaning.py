"""From modifiers to what they mean here: sections of a spec, notes on what is honoured, and known defects."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import Problem, unknown
from prunegpt.recipes.catalogue import CATALOGUE, IGNORED, UNSUPPORTED
from prunegpt.recipes.defects import name_defects, pruning_defects
from prunegpt.recipes.fields import Defect, FieldReader, ModifierNote, as_number
from prunegpt.recipes.learning_rate import LearningRateCurve, Segment, as_arguments
from prunegpt.recipes.matching import ALL, ALL_PRUNABLE, MatchingError, ModelNames, as_in, version_of
from prunegpt.recipes.pruning import Pruning, merge, section_of
from prunegpt.recipes.pruning_modifiers import PRUNINGS
from prunegpt.recipes.reader import Dialect, Modifier, RecipeStage, RunMode, parse_recipe
from prunegpt.recipes.source import RecipeError
from prunegpt.recipes.training_modifiers import BLENDS, CURVES, Blend

_ONCE = {"SparseGPTModifier", "WandaPruningModifier", "GPTQModifier", "SmoothQuantModifier", "AWQModifier"}


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
        keep_zeros: whether every zero of the model that it is given stays one.
    """

    name: str
    run: RunMode
    line: int
    epochs: float | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    prune: Mapping[str, Any] | None = None
    distill: Mapping[str, Any] | None = None
    learning_rate: LearningRateCurve | None = None
    follow_curve: bool = False
    prunings: tuple[Pruning, ...] = ()
    keep_zeros: bool = False

    @property
    def sections(self) -> dict[str, Any]:
        """It in our own recipe format: its sections and `keep_zeros`, each where there is something."""
        curve = self.learning_rate if self.follow_curve else None
        found = {
            "train": dict(self.train) or None,
            "prune": None if self.prune is None else dict(self.prune),
            "distill": None if self.distill is None else dict(self.distill),
            "learning_rate": curve and [item.model_dump(exclude_none=True) for item in curve.segments],
            "keep_zeros": self.keep_zeros or None,
        }
        return {name: section for name, section in found.items() if section is not None}


@dataclass(frozen=True)
class RecipeMeaning:
    """What a recipe asks for, in our words.

    Attributes:
        source: the file.
        dialect: of SparseML, or own.
        stages: in order; a legacy recipe is one, whatever stages it has, since they share one clock.
        notes: one or more a modifier, in order.
        defects: known ones, of the recipe or of the versions that ran it.
        variables: of the recipe, expressions computed.
    """

    source: str
    dialect: Dialect
    stages: tuple[StageMeaning, ...]
    notes: tuple[ModifierNote, ...] = ()
    defects: tuple[Defect, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unsupported(self) -> tuple[ModifierNote, ...]:
        """The notes on what is not done here, without which the run would be another experiment."""
        return tuple(note for note in self.notes if note.level == "unsupported")


def meaning_of(
    data: Any, source: str, dialect: Dialect, version: str | None, model: ModelNames | None
) -> RecipeMeaning:
    """What a parsed SparseML recipe means here; see :func:`prunegpt.recipes.load.meaning_of_text`."""
    if version is not None:
        version = version_of(version)
        if model is None:
            raise MatchingError(f"a version of SparseML goes with a model; {version} has none. Name one: --model.")
    problems: list[Problem] = []
    notes: list[ModifierNote] = []
    defects: list[Defect] = []
    stages: dict[str, StageMeaning] = {}
    written, variables = parse_recipe(data, source, dialect)
    if dialect == "legacy":  # they share one clock
        written = [RecipeStage("", written[0].line, "train", [item for stage in written for item in stage.modifiers])]
    for stage in written:
        if stage.name in stages:
            problems.append(Problem(stage.name, "two stages must not have one name. Rename one.", stage.line))
            continue
        stage_reader = _StageReader(dialect, stage, problems)
        stages[stage.name] = stage_reader.finish(version, model)
        notes += stage_reader.notes
        defects += stage_reader.defects
    if problems:
        raise RecipeError(problems, source)
    defects += name_defects(source, [item for meant in stages.values() for item in meant.prunings])
    first: dict[tuple[str, str], Defect] = {}  # one of a code and text, at its first line
    for defect in defects:
        first.setdefault((defect.code, defect.text), defect)
    return RecipeMeaning(source, dialect, tuple(stages.values()), tuple(notes), tuple(first.values()), variables)


class _StageReader:
    """Collects what the modifiers of one stage ask for."""

    def __init__(self, dialect: Dialect, stage: RecipeStage, problems: list[Problem]) -> None:
        modifiers = stage.modifiers
        self.dialect = dialect
        self.stage = stage
        self.problems = problems
        self.notes: list[ModifierNote] = []
        self.defects: list[Defect] = []
        self.run: RunMode = stage.run or ("oneshot" if any(item.name in _ONCE for item in modifiers) else "train")
        self.epochs = _epochs(modifiers) if dialect == "legacy" else None
        self._segments: list[Segment] = []
        self._prunings: list[Pruning] = []
        self._blend: Blend | None = None
        self._train: dict[str, Any] = {}
        self._keep_zeros = False
        for modifier in modifiers:
            self._add(modifier)

    def _add(self, modifier: Modifier) -> None:
        """Takes one modifier in."""
        name, dialect = modifier.name, self.dialect
        known = CATALOGUE[dialect]
        if name in IGNORED:
            return self.notes.append(ModifierNote.on(modifier, "ignored", "it only writes logs."))
        if name in UNSUPPORTED:
            return self.notes.append(ModifierNote.on(modifier, "unsupported", UNSUPPORTED[name]))
        if name not in known:
            valid = [*known, *UNSUPPORTED, *IGNORED]
            return self.problems.append(Problem(name, unknown("modifier", name, valid), modifier.line))
        before = len(self.notes)
        at_once = self.run == "oneshot"
        reader = FieldReader(
            modifier, dialect, self.problems, self.notes, self.defects, one_shot=at_once, epochs=self.epochs
        )
        done = "as written."
        if read := PRUNINGS[dialect].get(name):
            self._prunings.append(read(reader))
        elif blended := BLENDS[dialect].get(name):
            self._blend = blended(reader, self._blend or Blend())
        elif curve := CURVES[dialect].get(name):
            self._curve(reader, curve)
        elif name == "ConstantPruningModifier":
            self._constant(reader)
            done = "what is zero stays zero (keep_zeros)."
        elif name == "EpochRangeModifier":
            for field_name in ("start_epoch", "end_epoch"):
                reader.number(field_name, -1.0, low=-1)
            done = f"trains {self.epochs:g} epochs." if self.epochs else "sets no number of epochs."
        else:
            self._weight_decay(reader)
        if all(note.level == "ignored" for note in self.notes[before:]):
            reader.say("supported", done)
        return None

    def _constant(self, reader: FieldReader) -> None:
        self._keep_zeros = True
        session = self.dialect == "session"
        names = reader.names("targets" if session else "params")
        start = reader.number("start" if session else "start_epoch", -1.0, low=-1)
        end = reader.number("end" if session else "end_epoch", -1.0, low=-1)
        if start > 0:
            reader.partly(f"masks are kept from epoch {start:g} on in the recipe; here from the beginning.")
        if end >= 0 and (self.epochs is None or end < self.epochs):
            reader.partly(f"masks are let go at epoch {end:g} in the recipe; here they stay.")
        if names and not {ALL, ALL_PRUNABLE} & set(names):
            reader.partly("masks are kept in the named tensors only; here in all matrices of the decoder layers.")

    def _weight_decay(self, reader: FieldReader) -> None:
        self._train["weight_decay"] = reader.number("weight_decay", low=0)
        if reader.number("start_epoch", -1.0, low=-1) > 0:
            reader.partly("it is set at start_epoch in the recipe; here from the beginning.")

    def _curve(self, reader: FieldReader, read: Callable[[FieldReader], list[Segment]]) -> None:
        try:
            self._segments += read(reader)
        except ValidationError as error:
            for item in error.errors():
                where = ".".join(str(step) for step in item["loc"])
                reader.problem("", f"{where} {item['msg'].lower()}.".strip())

    def finish(self, version: str | None, model: ModelNames | None) -> StageMeaning:
        """What they ask for together."""
        if version is not None and model is not None and self.dialect == "legacy":
            self._prunings = [
                replace(item, entries=as_in(version, item.entries, model.classes)) for item in self._prunings
            ]
        for item in self._prunings:
            self.defects += pruning_defects(item, self.epochs)
        curve = LearningRateCurve(segments=tuple(self._segments)) if self._segments else None
        expressed = as_arguments(curve, self.epochs) if curve else None
        if self.epochs:
            self._train["num_train_epochs"] = int(self.epochs)
        return StageMeaning(
            self.stage.name,
            self.run,
            self.stage.line,
            self.epochs,
            {**self._train, **(expressed or {})},
            self._prune(),
            self._distill(),
            curve,
            curve is not None and expressed is None,
            tuple(self._prunings),
            self._keep_zeros,
        )

    def _prune(self) -> Mapping[str, Any] | None:
        specs = []
        for item in self._prunings:
            try:
                specs.append(item.as_spec())
                section_of(specs[-1], one_shot=item.one_shot)
            except MatchingError as error:
                self.problems.append(Problem(item.modifier.name, str(error), item.modifier.line))
            except ValidationError as error:
                for found in error.errors():
                    message = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
                    self.problems.append(Problem(item.modifier.name, message, item.modifier.line))
        if not specs or len(specs) < len(self._prunings):
            return None
        merged = merge(specs)
        if merged is None:
            text = "one section `prune` holds one schedule, and this one differs from the first. Use a stage for each."
            for item in self._prunings[1:]:
                self.notes.append(ModifierNote.on(item.modifier, "unsupported", text))
        if not all(item.supported for item in self._prunings):
            return None  # said where the modifier was read
        return merged

    def _distill(self) -> Mapping[str, Any] | None:
        if self._blend is not None and self._blend.ce + self._blend.kd <= 0:
            message = "the cross-entropy or the divergence must have a weight above 0; both are 0."
            self.problems.append(Problem("distillation", message, self._blend.line))
            return None
        return None if self._blend is None else self._blend.as_spec()


def _epochs(modifiers: list[Modifier]) -> float | None:
    """SparseML's max_epochs: the largest of all start and end epochs, rounded up; it overrides num_train_epochs."""
    times = [as_number(modifier.fields.get(name)) for modifier in modifiers for name in ("start_epoch", "end_epoch")]
    whole = [math.ceil(time) for time in times if time is not None and time > 0]
    return float(max(whole)) if whole else None
