"""A checked spec becomes a plan: every trial a chain of stages with keys, teachers resolved, all problems listed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunegpt.builtin import PREFIX
from prunegpt.errors import Problem, PruneGPTError, SpecError
from prunegpt.planning import checks
from prunegpt.planning.curves import CurvesOf, with_curves
from prunegpt.planning.facts import ModelFacts, model_facts
from prunegpt.planning.fingerprint import Files, digest
from prunegpt.planning.opened import OpenedSpec
from prunegpt.planning.recipes import with_recipe
from prunegpt.planning.samplers import early_stop_of
from prunegpt.planning.searches import Searches
from prunegpt.planning.stages import Place, next_stage, source_stage
from prunegpt.planning.teachers import Chain, Sweep, Teachers, borrowed
from prunegpt.planning.texts import Texts, block_size_of
from prunegpt.root import Root
from prunegpt.spec.distilling import distill_problems
from prunegpt.spec.expand import Configuration, slug
from prunegpt.spec.plan import StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.read import Document, plain_document, read_document
from prunegpt.spec.schema import DataSpec, DistillSpec, EvaluateSpec, ModelSpec, PruneSpec, TeacherModel
from prunegpt.spec.training_arguments import precision_problem

_IMPLICIT = "teacher-"
_NUMBERS = 999  # of a search's trials that table rows may name where it ends by time or tokens


def plan_file(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    root: Root | None = None,
    strict: bool = False,
    curves: CurvesOf | None = None,
) -> SweepPlan:
    """Reads, checks and resolves a spec file.

    An override `NAME:PATH=VALUE` goes to another sweep that teachers come from.

    Args:
        root: where hashes of files are remembered.
        strict: what cannot be checked for want of a network is a problem, not a remark.
        curves: gives the sensitivity curves that a sweep measured, for allocation `sensitivity`.

    Raises:
        SpecError: with every problem of the spec.
    """
    return Resolver.of_file(path, overrides, root=root, strict=strict, curves=curves).plan()


def plan_data(
    data: Mapping[str, Any],
    *,
    source: str = "the spec",
    overrides: Sequence[str] = (),
    path: Path | None = None,
    root: Root | None = None,
    strict: bool = False,
    curves: CurvesOf | None = None,
) -> SweepPlan:
    """As plan_file, from plain data.

    Args:
        source: what messages call it.
        path: the file that it was read from: where its relative paths begin, and the specs of its teachers lie.
    """
    resolver = Resolver.of_data(data, overrides, source=source, path=path, root=root, strict=strict, curves=curves)
    return resolver.plan()


def _addressee(override: str) -> str | None:
    """The sweep that an override is for, or None for the spec itself."""
    name, colon, _ = override.partition("=")[0].partition(":")
    return name if colon else None


def _own(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if _addressee(text) is None]


def _writable(value: Any) -> Any:
    """The same data with what JSON has no number for as text: a published figure may be `.inf`."""
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_writable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class _Shared:
    """What the resolvers of one plan have in common: the sweeps that teachers come from are resolved once."""

    files: Files
    overrides: tuple[str, ...]
    strict: bool
    curves: CurvesOf | None = None
    resolvers: dict[Path, "Resolver"] = field(default_factory=dict)  # by spec file
    models: dict[str, tuple[ModelFacts | None, str | None]] = field(default_factory=dict)  # facts and a problem
    unchecked: dict[str, None] = field(default_factory=dict)  # an ordered set
    pending: list[tuple[Sweep, str]] = field(default_factory=list)  # trials being resolved, for circles


class Resolver:
    """Resolves the trials of one spec, each once, whoever asks: the spec itself or a student of another one."""

    def __init__(self, shared: _Shared, document: Document, path: Path | None) -> None:
        self.shared = shared
        self.opened = OpenedSpec(document)
        self.path = path.absolute() if path else None
        self.name = str(document.data.get("name", ""))
        self.texts = Texts(shared.files, self.path.parent if self.path else None, shared.unchecked)
        self.chains: dict[str, Chain | None] = {}
        self.implicit: dict[str, Chain] = {}  # teachers that no trial is, by stage key
        self.teachers = Teachers(self, shared.pending, self._open)
        self.searches = Searches(self)
        if self.path:
            shared.resolvers[self.path] = self

    @classmethod
    def of_file(
        cls,
        path: Path,
        overrides: Sequence[str] = (),
        *,
        root: Root | None = None,
        strict: bool = False,
        curves: CurvesOf | None = None,
    ) -> "Resolver":
        """The resolver of a spec file; see plan_file."""
        shared = _Shared(Files(root), tuple(overrides), strict, curves)
        return cls(shared, read_document(path, _own(overrides)), path)

    @classmethod
    def of_data(
        cls,
        data: Mapping[str, Any],
        overrides: Sequence[str] = (),
        *,
        source: str = "the spec",
        path: Path | None = None,
        root: Root | None = None,
        strict: bool = False,
        curves: CurvesOf | None = None,
    ) -> "Resolver":
        """As of_file, from plain data; `path` as for plan_data."""
        shared = _Shared(Files(root), tuple(overrides), strict, curves)
        return cls(shared, plain_document(data, source, _own(overrides)), path)

    def _open(self, path: Path) -> "Resolver":
        """The resolver of another spec file, or of the one that somebody already opened."""
        if path not in self.shared.resolvers:
            overrides = [text.partition(":")[2] for text in self.shared.overrides if _addressee(text) == path.stem]
            return Resolver(self.shared, read_document(path, overrides), path)
        return self.shared.resolvers[path]

    def plan(self) -> SweepPlan:
        """The plan of the spec.

        Raises:
            SpecError: with every problem of the spec.
        """
        opened, spec = self.opened, self.opened.spec
        chains = [self.chain(item) for item in opened.configurations]
        searches = tuple(self.searches.plan(template) for template in opened.searches)
        problems = [*opened.problems, *self._table_problems(), *self._stray_overrides(), *self._early_stop_problems()]
        if self.shared.strict:
            problems += [Problem("", f"{text}. Download it, or give a local folder.") for text in self.shared.unchecked]
        if problems or spec is None:
            unique = list(dict.fromkeys(problems))
            raise SpecError(sorted(unique, key=lambda problem: problem.line or 0), opened.document.source)
        self.shared.files.save()
        own = [chain for chain in [*chains, *self.implicit.values()] if chain]
        return SweepPlan(
            name=spec.name,
            title=spec.title or spec.name,
            source=str(self.path) if self.path else None,
            trials=(*(chain.trial for chain in own), *borrowed([*own, *self.searches.chains], spec.name).values()),
            searches=searches,
            early_stop=spec.early_stop,
            target=spec.target,
            failures=spec.failures,
            launcher=spec.launcher,
            tracking=spec.tracking,
            tables=spec.tables,
            spec=_writable(opened.document.data),
            unchecked=tuple(self.shared.unchecked),
        )

    def _table_problems(self) -> list[Problem]:
        if self.opened.spec is None or not self.opened.complete:
            return []  # a row may be for a trial that has problems of its own
        return [
            self.opened.document.problem(("tables", index, *place), message)
            for index, table in enumerate(self.opened.spec.tables)
            for place, message in checks.table_problems(table, [*self.opened.groups, *self._searched_names()])
        ]

    def _searched_names(self) -> list[str]:
        """Names that searched trials may come to have."""
        return [
            template.name_of(number)
            for template in self.opened.searches
            for number in range(1, (template.spec.n_trials or _NUMBERS) + 1)
        ]

    def _early_stop_problems(self) -> list[Problem]:
        spec = self.opened.spec
        if spec is None or spec.early_stop is None:
            return []
        try:
            early_stop_of(spec.early_stop)
        except PruneGPTError as error:
            place = ("early_stop", "options") if spec.early_stop.options else ("early_stop",)
            return [self.opened.document.problem(place, str(error))]
        return []

    def _stray_overrides(self) -> list[Problem]:
        asked = {path.stem for path in self.shared.resolvers if path != self.path}
        return [
            Problem("", f"--set {text}: no teacher comes from a sweep {name!r}. Give its path without that name.")
            for text in self.shared.overrides
            if (name := _addressee(text)) is not None and name not in asked
        ]

    # -- one trial ---------------------------------------------------------------------------------------------

    def chain(self, item: Configuration) -> Chain | None:
        """The resolved trial; None where it has problems, which are noted."""
        if item.name not in self.chains:
            self.shared.pending.append((self, item.name))
            try:
                self.chains[item.name] = self._resolve(item)
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, "", str(error))
                self.chains[item.name] = None
            finally:
                self.shared.pending.pop()
        return self.chains[item.name]

    def tried(self, item: Configuration) -> tuple[Chain | None, list[Problem]]:
        """The resolved configuration, or what is wrong with it, which is noted nowhere."""
        before = len(self.opened.problems)
        chain = self.chain(item)
        problems = self.opened.problems[before:]
        del self.opened.problems[before:]
        del self.chains[item.name]
        return chain, problems

    def _resolve(self, item: Configuration) -> Chain | None:
        before = len(self.opened.problems)
        item = self._filled(item)
        spec = item.spec
        facts = self._model(item, spec.model, "model")
        text = self._text(item, spec.data, spec.evaluate)
        if facts:
            self._check(item, facts)
        teachers = {
            index: self._teacher(item, index, stage.config, facts)
            for index, stage in enumerate(spec.stages)
            if isinstance(stage.config, DistillSpec)
        }
        if facts is None or text is None or None in teachers.values():
            return None
        data, evaluate, evaluation_key = text
        stages = [source_stage(facts, spec.precision)]
        for index, stage in enumerate(spec.stages):
            place = Place(stages[-1], item.seed, spec.precision, spec.train, data, evaluation_key, self.texts)
            teacher = teachers.get(index)
            try:
                stages.append(next_stage(stage.config, place, teacher.trial.key if teacher else None))
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, f"stages.{index}.{stage.kind}", str(error))
        if len(self.opened.problems) > before:
            return None
        teaching = tuple(teacher for teacher in teachers.values() if teacher)
        trial = self._trial(
            item,
            facts,
            data,
            evaluate,
            evaluation_key,
            tuple(stages),
            name=item.name,
            group=item.group,
            order=self.opened.order.get(item.name, self.opened.places),
            needs=tuple(dict.fromkeys(teacher.trial.key for teacher in teaching)),
            swept=item.swept,
            config=item.merged,
            teachers={teacher.trial.key: _teacher_label(teacher.trial) for teacher in teaching},
        )
        return Chain(trial, facts, teaching)

    def _filled(self, item: Configuration) -> Configuration:
        """The configuration with recipes and measured curves read in; what is wrong with them is noted."""
        stages = list(item.spec.stages)
        for index, stage in enumerate(stages):
            try:
                config = with_curves(with_recipe(stage.config, self.texts.base), self.shared.curves)
                stages[index] = stage.filled(config)
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, f"stages.{index}.{stage.kind}", str(error))
        return replace(item, spec=item.spec.model_copy(update={"stages": tuple(stages)}))

    def _check(self, item: Configuration, facts: ModelFacts) -> None:
        """Notes what does not fit between the model and the trial's windows and stages."""
        spec = item.spec
        block_size = spec.data.block_size if spec.data else 0
        window = spec.evaluate.block_size or block_size
        if not spec.evaluate.skip and (message := checks.window_problem(facts, window)):
            self.opened.note(item, "evaluate.block_size" if spec.evaluate.block_size else "data", message)
        trains = facts.builtin or any(not isinstance(stage.config, PruneSpec) for stage in spec.stages)
        if trains and (message := precision_problem(spec.device, spec.precision)):
            self.opened.note(item, "precision", message)
        for index, stage in enumerate(spec.stages):
            for path, message in checks.stage_problems(stage.config, facts, spec.train, block_size):
                self.opened.note(item, f"stages.{index}.{stage.kind}.{path}".rstrip("."), message)

    def _trial(
        self,
        item: Configuration,
        facts: ModelFacts,
        data: DataSpec,
        evaluate: EvaluateSpec,
        evaluation_key: str,
        stages: tuple[StagePlan, ...],
        **fields: Any,
    ) -> TrialPlan:
        return TrialPlan(
            sweep=self.name,
            seed=item.seed,
            label=facts.model.label or Path(facts.source).name.removeprefix(PREFIX),
            model=facts.model,
            data=data,
            evaluate=evaluate,
            evaluation_key=evaluation_key,
            device=item.spec.device,
            precision=item.spec.precision,
            stages=stages,
            **fields,
        )

    def _model(self, item: Configuration, model: ModelSpec | None, where: str) -> ModelFacts | None:
        """What is known of a model; None where it has problems, which are noted."""
        if model is None:
            self.opened.note(item, "", "a trial needs a model: set `model` in base or in the trial.")
            return None
        identity = digest([model.model_dump(), str(self.texts.base)])
        if identity not in self.shared.models:
            self.shared.models[identity] = self._look_at(model)
        facts, problem = self.shared.models[identity]
        if problem:
            self.opened.note(item, where, problem)
        return facts

    def _look_at(self, model: ModelSpec) -> tuple[ModelFacts | None, str | None]:
        """What is known of a model, and what is wrong with it."""
        try:
            facts = model_facts(model, self.shared.files, self.texts.base)
            if facts.unchecked:
                self.shared.unchecked[facts.unchecked] = None
            return facts, checks.model_problem(facts) or checks.tokenizer_problem(facts)
        except (PruneGPTError, OSError) as error:
            return None, str(error)

    def _text(
        self, item: Configuration, data: DataSpec | None, evaluate: EvaluateSpec
    ) -> tuple[DataSpec, EvaluateSpec, str] | None:
        """Text, measurement and the key of the latter; None where there are problems, which are noted."""
        if data is None:
            self.opened.note(item, "", "a trial needs text: set `data` in base or in the trial.")
            return None
        try:
            located = self.texts.located(data)
        except (PruneGPTError, OSError) as error:
            self.opened.note(item, "data", str(error))
            return None
        try:
            return located, *self.texts.evaluation(located, evaluate, item.spec.precision)
        except (PruneGPTError, OSError) as error:
            self.opened.note(item, "evaluate", str(error))
            return None

    # -- teachers ----------------------------------------------------------------------------------------------

    def _teacher(
        self, item: Configuration, index: int, config: DistillSpec, student: ModelFacts | None
    ) -> Chain | None:
        """The trial that teaches a stage; None where there are problems, which are noted here or at that trial."""
        where, teacher = f"stages.{index}.distill.teacher", config.teacher
        if isinstance(teacher, TeacherModel):
            chain = self._teacher_model(item, teacher.model, where)
        else:
            chain = self.teachers.find(item, teacher, where)
        if chain is None or student is None:
            return chain
        block_size = block_size_of(config.data, item.spec.data.block_size if item.spec.data else 0)
        problems = (
            [("teacher", message)] if (message := checks.teacher_problem(student, chain.facts, block_size)) else []
        )
        problems += distill_problems(config, student.shape, chain.facts.shape)
        for path, message in problems:
            self.opened.note(item, f"stages.{index}.distill.{path}", message)
        return None if problems else chain

    def _teacher_model(self, item: Configuration, model: ModelSpec, where: str) -> Chain | None:
        """A model as a teacher: a trial of its own, evaluated as it is, unless one of the spec's trials is that."""
        facts = self._model(item, model, where)
        text = self._text(item, item.spec.data, item.spec.evaluate)
        if facts is None or text is None:
            return None
        stage = source_stage(facts, item.spec.precision)
        for other in self.opened.configurations:
            if not other.spec.stages:
                chain = self.chain(other)
                if chain and chain.trial.key == stage.key:
                    return chain
        if stage.key not in self.implicit:
            name = self._free_name(_IMPLICIT + slug(Path(model.source).name.removeprefix(PREFIX)))
            order = self.opened.places + len(self.implicit)
            trial = self._trial(item, facts, *text, (stage,), name=name, group=name, order=order, implicit=True)
            self.implicit[stage.key] = Chain(trial, facts)
        return self.implicit[stage.key]

    def _free_name(self, name: str) -> str:
        taken = {*self.opened.order, *self.opened.groups, *(chain.trial.name for chain in self.implicit.values())}
        number, free = 2, name
        while free in taken:
            number, free = number + 1, f"{name}-{number}"
        return free


def _teacher_label(trial: TrialPlan) -> str:
    """What the study's tables show: gpt2(zero-shot)."""
    return f"{trial.label}({trial.group})" if not trial.implicit else trial.label
