"""A checked spec becomes a plan: every trial a chain of stages with keys, teachers resolved, all problems listed."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from prunegpt.errors import Problem, PruneGPTError, SpecError
from prunegpt.planning import checks
from prunegpt.planning.facts import ModelFacts, model_facts
from prunegpt.planning.filled import SensitivityCurvesOf, filled
from prunegpt.planning.fingerprint import Files, digest
from prunegpt.planning.inputs import planned_inputs
from prunegpt.planning.opened import OpenedSpec
from prunegpt.planning.outlines import before_each
from prunegpt.planning.precision import precisions
from prunegpt.planning.searches import plan_search, resolve_suggestion
from prunegpt.planning.stages import StagePlace, next_stage, source_stage
from prunegpt.planning.teachers import ResolvedTrial, beside, borrowed, reference_of, teacher_label, teacher_of
from prunegpt.planning.texts import Texts, with_block_size
from prunegpt.planning.whole import sweep_problems
from prunegpt.root import Root
from prunegpt.spec.execution import LauncherSpec
from prunegpt.spec.expand import Configuration
from prunegpt.spec.metrics import is_measured
from prunegpt.spec.plan import PlannedEvaluation, SearchPlan, StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.read import plain_document, read_document
from prunegpt.spec.schema import (
    DataSpec,
    DistillSpec,
    EvaluateSpec,
    FinetuneSpec,
    ModelSpec,
    StageConfig,
)
from prunegpt.spec.training_arguments import precision_problem

Computed = TypeVar("Computed")


def plan_file(path: Path, overrides: Sequence[str] = (), **options: Any) -> SweepPlan:
    """The plan of a spec file; `options` are those of :class:`Planner`.

    Raises:
        SpecError: with every problem of the spec.
    """
    return Planner(path, overrides, **options).plan


def plan_data(data: Mapping[str, Any], *, source: str = "the spec", **options: Any) -> SweepPlan:
    """As plan_file, from plain data. `source`: what messages call it."""
    return Planner(data, called=source, **options).plan


def _addressee(override: str) -> str | None:
    """The sweep that an override is for, or None for the spec itself."""
    name, colon, _ = override.partition("=")[0].partition(":")
    return name if colon else None


def _writable(value: Any) -> Any:
    """The same data with what JSON has no number for as text: a published figure may be `.inf`."""
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_writable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Planner:
    """Plans one spec, and then what its searches suggest. Each trial is resolved once.

    Args:
        source: the file, or plain data.
        overrides: PATH=VALUE. One `NAME:PATH=VALUE` goes to another sweep that teachers come from.
        root: where hashes of files are remembered.
        curves: gives the sensitivity curves that a sweep measured, for allocation `sensitivity`.
        strict: what cannot be checked without a network is an error, not a note.
        path: of data, the file that it was read from: relative paths begin there, and specs of teachers are next to it.
        called: what messages call plain data.
        home: of a sweep that teachers come from, the planner that was asked first; it keeps what all of them share.

    Raises:
        SpecError: the spec cannot be read. Its other problems are reported by the plan.
    """

    def __init__(
        self,
        source: Path | Mapping[str, Any],
        overrides: Sequence[str] = (),
        root: Root | None = None,
        curves: SensitivityCurvesOf | None = None,
        *,
        strict: bool = False,
        path: Path | None = None,
        called: str = "the spec",
        home: "Planner | None" = None,
    ) -> None:
        own = [text for text in overrides if _addressee(text) is None]
        if isinstance(source, Path):
            path, document = source, read_document(source, own)
        else:
            document = plain_document(source, called, own)
        self.opened = OpenedSpec(document)
        self.path = path.absolute() if path else None
        self.name = str(document.data.get("name", ""))
        self.chains: dict[str, ResolvedTrial | None] = {}
        self.searched: dict[int, list[ResolvedTrial]] = {}  # trial of the spec -> what was tried of its search
        self.implicit: dict[str, ResolvedTrial] = {}  # teachers that no trial is, by stage key
        self._shared: dict[Hashable, Any] = {}  # what trials of a grid have in common, by what they say of it
        self.home = home or self
        if home is None:
            self.files = Files(root)
            self.curves = curves
            self.unchecked: dict[str, None] = {}  # an ordered set
            self.pending: list[tuple[Planner, str]] = []  # trials being resolved, for circles
            self._overrides = tuple(overrides)
            self._strict = strict
            self._planners: dict[Path, Planner] = {}  # by spec file: each is opened once
            self._models: dict[str, tuple[ModelFacts | None, str | None]] = {}  # facts and a problem
        self.texts = Texts(self.home.files, self.path.parent if self.path else None, self.home.unchecked)
        if self.path:
            self.home._planners[self.path] = self

    def beside(self, path: Path) -> "Planner":
        """The planner of another spec file.

        Raises:
            SpecError: it cannot be read.
        """
        known = self.home._planners.get(path)
        if known is not None:
            return known
        overrides = [text.partition(":")[2] for text in self.home._overrides if _addressee(text) == path.stem]
        return Planner(path, overrides, home=self.home)

    @cached_property
    def plan(self) -> SweepPlan:
        """The plan of the spec.

        Raises:
            SpecError: with every problem of the spec.
        """
        opened, spec = self.opened, self.opened.spec
        chains = [self.chain(item) for item in opened.configurations]
        searches = tuple(plan_search(self, template) for template in opened.searches)
        problems = [*opened.problems, *self._stray_overrides(), *sweep_problems(self, chains)]
        if self._strict:
            problems += [Problem("", f"{text}. Download it, or give a local folder.") for text in self.unchecked]
        if problems or opened.malformed or spec is None:
            unique = list(dict.fromkeys([*opened.malformed, *map(opened.settled, opened.told(problems))]))
            raise SpecError(sorted(unique, key=lambda problem: problem.line or 0), opened.document.source)
        self.files.save()
        own = [chain for chain in [*chains, *self.implicit.values()] if chain]
        tried = [chain for found in self.searched.values() for chain in found]
        return SweepPlan(
            name=spec.name,
            title=spec.title or spec.name,
            source=str(self.path) if self.path else None,
            folder=str(Path.cwd()),
            trials=(*(chain.trial for chain in own), *borrowed([*own, *tried], spec.name).values()),
            searches=searches,
            early_stop=spec.early_stop,
            target=spec.target,
            keep=spec.keep,
            failures=spec.failures,
            launcher=spec.launcher,
            tracking=spec.tracking,
            tables=spec.tables,
            spec=_writable(opened.document.data),
            unchecked=tuple(self.unchecked),
        )

    def suggested(self, search: SearchPlan, values: Mapping[str, Any], number: int) -> TrialPlan:
        """The trial that a suggestion means.

        Args:
            search: one of `plan.searches`.
            values: path -> choice: a value, or the name of one that has a name.
            number: counted within its search from 1.

        Raises:
            SpecError: these values make no trial.
        """
        template = next(template for template in self.opened.searches if template.index == search.index)
        return resolve_suggestion(self, template, values, number)

    def problems(self, wrong: Sequence[tuple[TrialPlan, str, str]]) -> list[Problem]:
        """Problems with fields of planned trials, each at the line where its field was written."""
        found: list[tuple[OpenedSpec, Problem]] = []
        for trial, path, message in wrong:
            opened = next(one for one in (self, *self._planners.values()) if one.name == trial.sweep).opened
            item = opened.named(trial.name, trial.seed)
            found.append((opened, opened.located(item, path, message) if item else Problem(trial.name, message)))
        return [opened.settled(problem) for opened, problem in found]

    @property
    def watched(self) -> bool:
        """Whether early stopping compares perplexities, which must then be measured while trials train."""
        spec = self.opened.spec
        return bool(spec and spec.early_stop and is_measured(spec.early_stop.metric))

    def _stray_overrides(self) -> list[Problem]:
        asked = {path.stem for path in self._planners if path != self.path}
        return [
            Problem("", f"--set {text}: no teacher comes from a sweep {name!r}. Give its path without that name.")
            for text in self._overrides
            if (name := _addressee(text)) is not None and name not in asked
        ]

    # -- one trial ---------------------------------------------------------------------------------------------

    def chain(self, item: Configuration) -> ResolvedTrial | None:
        """The resolved trial; None where it has problems, which are noted."""
        if item.name not in self.chains:
            self.home.pending.append((self, item.name))
            try:
                self.chains[item.name] = self._resolve(item)
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, "", str(error))
                self.chains[item.name] = None
            finally:
                self.home.pending.pop()
        return self.chains[item.name]

    def tried(self, item: Configuration) -> tuple[ResolvedTrial | None, list[Problem]]:
        """The resolved configuration, or what is wrong with it, which is noted nowhere."""
        before = len(self.opened.problems)
        chain = self.chain(item)
        self._shared.clear()  # a search has no end of configurations
        problems = self.opened.problems[before:]
        del self.opened.problems[before:]
        del self.chains[item.name]
        return chain, problems

    def _once(self, key: Hashable, compute: Callable[[], Computed]) -> Computed:
        """What is computed, once for equal keys; again where a problem was noted or raised: each trial has its own."""
        if key not in self._shared:
            before = len(self.opened.problems)
            found = compute()
            if len(self.opened.problems) > before:
                return found
            self._shared[key] = found
        return self._shared[key]  # type: ignore[no-any-return]

    def _resolve(self, item: Configuration) -> ResolvedTrial | None:
        before = len(self.opened.problems)
        frame = item.frame
        item = self._filled(item)
        facts = self._once(("model", frame), lambda: self.model(item, item.spec.model, "model"))
        if facts and item.spec.data:
            filled = with_block_size(item.spec.data, facts.positions)
            item = replace(item, spec=item.spec.model_copy(update={"data": filled}))
        spec = item.spec
        text = self._once(("text", frame), lambda: self.text(item, spec.data, spec.evaluations))
        known = (
            before_each(facts, [stage.shrink for stage in spec.stages]) if facts else [None] * (len(spec.stages) + 1)
        )
        self._check(item, facts, known)
        teachers = {
            index: teacher_of(self, item, index, stage.config, known[index])
            for index, stage in enumerate(spec.stages)
            if isinstance(stage.config, DistillSpec)
        }
        own = (None, item.name, item.group)
        named = [one for one in spec.evaluations if one.speed and one.speed.against not in own]
        references = {one.called: reference_of(self, item, one, item.place_of(one)) for one in named}
        if facts is None or text is None or None in (*teachers.values(), *references.values()):
            return None
        data, evaluations = text
        source = self._once(("source", frame, item.seed), lambda: source_stage(facts, spec.precision, item.seed))
        stages = [source]

        def planned(config: StageConfig, teacher: str | None) -> StagePlan:
            texts = replace(self.texts, writer=f"{source.key} {spec.precision}")
            evaluated = evaluations[0]
            place = StagePlace(
                stages[-1], item.seed, spec.device, spec.precision, spec.train, data, evaluated, texts, self.watched
            )
            return next_stage(config, place, teacher)

        for index, (stage, step) in enumerate(zip(spec.stages, item.steps, strict=True)):
            teacher = taught.trial.key if (taught := teachers.get(index)) else None
            key = ("stage", frame, item.seed, stages[-1].key, step, teacher)
            try:
                stages.append(self._once(key, partial(planned, stage.config, teacher)))
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, f"stages.{index}.{stage.kind}", str(error))
        if len(self.opened.problems) > before:
            return None
        teaching = tuple(found for found in (*teachers.values(), *references.values()) if found)
        trial = self.trial(
            item,
            facts,
            data,
            [beside(self.name, one, item, facts, stages, references.get(one.name)) for one in evaluations],
            tuple(stages),
            teaching,
            name=item.name,
            group=item.group,
            order=self.opened.order.get(item.name, self.opened.places),
            swept=item.swept,
            config=item.merged,
        )
        return ResolvedTrial(trial, facts, known[-1] or facts, teaching)

    def _filled(self, item: Configuration) -> Configuration:
        """The configuration with recipes, measured curves and precision filled in; what is wrong is noted."""
        spec, known = item.spec, (self.texts.base, self.home.files, self.home.curves)
        stages = list(spec.stages)
        for index, (stage, step) in enumerate(zip(spec.stages, item.steps, strict=True)):
            try:
                config = self._once(("filled", step), partial(filled, stage.config, *known))
                stages[index] = stage.filled(config)
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, f"stages.{index}.{stage.kind}", str(error))
        update = self._once(("precision", item.frame), lambda: precisions(spec, self._launcher))
        return replace(item, spec=spec.model_copy(update={**update, "stages": tuple(stages)}))

    @property
    def _launcher(self) -> LauncherSpec:
        run = self.home.opened.spec  # teachers of other sweeps run where this one does
        return run.launcher if run else LauncherSpec()

    def _check(self, item: Configuration, facts: ModelFacts | None, known: Sequence[ModelFacts | None]) -> None:
        """Notes what does not fit between the model and the trial's windows and stages.

        Args:
            known: what is known of the model before each stage.
        """
        spec = item.spec
        found = checks.evaluation_problems(spec, facts, self._launcher, item.place_of)
        for path, told in self._once(("evaluations", item.frame), partial(tuple, found)):
            self.opened.note(item, path, told)
        trains = (facts and facts.builtin) or any(isinstance(stage.config, FinetuneSpec) for stage in spec.stages)
        if trains and (message := precision_problem(spec.device, spec.precision)):
            self.opened.note(item, "precision", message)
        for path, message in checks.chat_problems(spec, facts):
            self.opened.note(item, path, message)
        for index, stage in enumerate(spec.stages):
            within = checks.stage_problems(stage.config, known[index], spec, self._launcher)
            for path, told in self._once(("problems", item.frame, item.steps[: index + 1]), partial(tuple, within)):
                self.opened.note(item, f"stages.{index}.{stage.kind}.{path}".rstrip("."), told)

    def trial(
        self,
        item: Configuration,
        facts: ModelFacts,
        data: DataSpec,
        evaluations: Sequence[PlannedEvaluation],
        stages: tuple[StagePlan, ...],
        teaching: Sequence[ResolvedTrial],
        **fields: Any,
    ) -> TrialPlan:
        """The plan of a trial; `fields`: those of its place in the spec."""
        teachers = {teacher.trial.key: teacher.trial for teacher in teaching}
        models = [*facts.files, *(file for teacher in teaching for file in teacher.facts.files)]
        return TrialPlan(
            sweep=self.name,
            seed=item.seed,
            label=facts.model.model_copy(update={"source": facts.source}).name,
            model=facts.model,
            data=data,
            evaluate=evaluations[0].evaluate,
            evaluation_key=evaluations[0].key,
            also=tuple(evaluations[1:]),
            device=item.spec.device,
            precision=item.spec.precision,
            stages=stages,
            needs=tuple(teachers),
            teachers={key: teacher_label(teacher) for key, teacher in teachers.items()},
            teacher_models={key: teacher.model for key, teacher in teachers.items()},
            inputs=planned_inputs(models, stages, evaluations, self.home.files),
            **fields,
        )

    def model(self, item: Configuration, model: ModelSpec | None, where: str) -> ModelFacts | None:
        """What is known of a model; None where it has problems, which are noted."""
        if model is None:
            self.opened.note(item, "model", "a trial needs a model: set `model` in base or in the trial.")
            return None
        identity = digest([model.model_dump(), str(self.texts.base)])
        if identity not in self.home._models:
            self.home._models[identity] = self._look_at(model)
        facts, problem = self.home._models[identity]
        if problem:
            self.opened.note(item, where, problem)
        return facts

    def _look_at(self, model: ModelSpec) -> tuple[ModelFacts | None, str | None]:
        """What is known of a model, and what is wrong with it."""
        try:
            facts = model_facts(model, self.home.files, self.texts.base)
            if facts.unchecked:
                self.home.unchecked[facts.unchecked] = None
            return facts, (
                checks.model_problem(facts) or checks.shape_problem(facts) or checks.tokenizer_problem(facts)
            )
        except (PruneGPTError, OSError) as error:
            return None, str(error)

    def text(
        self, item: Configuration, data: DataSpec | None, evaluations: Sequence[EvaluateSpec]
    ) -> tuple[DataSpec, list[PlannedEvaluation]] | None:
        """Text and measurements, with their keys; None where there are problems, which are noted."""
        if data is None:
            self.opened.note(item, "data", "a trial needs text: set `data` in base or in the trial.")
            return None
        try:
            located = self.texts.located(data)
        except (PruneGPTError, OSError) as error:
            self.opened.note(item, "data", str(error))
            return None
        found = []
        for one in evaluations:
            try:
                found.append(self.texts.evaluation(located, one))
            except (PruneGPTError, OSError) as error:
                self.opened.note(item, item.place_of(one), str(error))
        return (located, found) if len(found) == len(evaluations) else None
