"""A checked spec becomes a plan: every trial a chain of stages with keys, teachers resolved, all problems listed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunegpt.builtin import PREFIX
from prunegpt.errors import Problem, PruneGPTError, SpecError, nearest
from prunegpt.planning import checks
from prunegpt.planning.facts import ModelFacts, data_fingerprint, model_facts, split_files
from prunegpt.planning.fingerprint import FORMAT, Files, digest, subset, versions
from prunegpt.registry import SOLVERS
from prunegpt.root import Root
from prunegpt.spec.expand import Configuration, expand
from prunegpt.spec.plan import StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import Document, plain_document, read_document
from prunegpt.spec.schema import (
    CalibrationSpec,
    DataSpec,
    DistillSpec,
    EvaluateSpec,
    FinetuneSpec,
    ModelSpec,
    PruneSpec,
    Spec,
    TeacherModel,
)
from prunegpt.spec.training_arguments import NEUTRAL

_CALIBRATED = {"wanda", "taylor", *SOLVERS.names()}  # methods that look at text
_IMPLICIT = "teacher-"


def plan_file(
    path: Path, overrides: Sequence[str] = (), *, root: Root | None = None, strict: bool = False
) -> SweepPlan:
    """Reads, checks and resolves a spec file.

    An override `NAME:PATH=VALUE` goes to another sweep that teachers come from.

    Args:
        strict: what cannot be checked for want of a network is a problem, not a remark.

    Raises:
        SpecError: with every problem of the spec.
    """
    return _Resolver(Shared(Files(root), tuple(overrides), strict), read_document(path, _own(overrides)), path).plan()


def plan_data(
    data: Mapping[str, Any],
    *,
    source: str = "the spec",
    overrides: Sequence[str] = (),
    root: Root | None = None,
    strict: bool = False,
) -> SweepPlan:
    """As plan_file, from plain data."""
    shared = Shared(Files(root), tuple(overrides), strict)
    return _Resolver(shared, plain_document(data, source, _own(overrides)), None).plan()


def _own(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if ":" not in text.partition("=")[0]]


@dataclass
class Shared:
    """What resolvers of one plan have in common: the sweeps that teachers come from are resolved once."""

    files: Files
    overrides: tuple[str, ...]
    strict: bool
    foreign: dict[str, "_Resolver"] = field(default_factory=dict)
    facts: dict[str, ModelFacts] = field(default_factory=dict)
    unchecked: dict[str, None] = field(default_factory=dict)  # an ordered set


@dataclass
class Chain:
    """A resolved trial on its way into the plan."""

    trial: TrialPlan
    facts: ModelFacts


class _Resolver:
    """Resolves the trials of one spec, each once, whoever asks: the spec itself or a student of another one."""

    def __init__(self, shared: Shared, document: Document, path: Path | None) -> None:
        self.shared = shared
        self.document = document
        self.path = path
        self.base = path.parent if path else None
        self.problems: list[Problem] = []
        self.malformed: dict[int, str] = {}  # index of a trial -> its name; told of, and looked at no further
        self.configurations: list[Configuration] = []
        self.spec, sound = self._validate()
        if sound:
            self.configurations, found = expand(document, self.malformed)
            self.problems += found
        self.by_name = {item.name: item for item in self.configurations}
        self.chains: dict[str, Chain | None] = {}
        self.implicit: dict[str, Chain] = {}
        self.pending: list[str] = []  # trials being resolved, for cycles
        self.borrowed: dict[str, TrialPlan] = {}  # trials of other sweeps that ours need

    def _validate(self) -> tuple[Spec | None, bool]:
        """The spec, where it is well formed; and whether its trials can be looked at one by one."""
        try:
            return Spec.model_validate(self.document.data), True
        except ValidationError as error:
            self.problems += problems_of(error, Spec, self.document)
            places = [item["loc"] for item in error.errors(include_url=False)]
        trials = self.document.data.get("trials")
        if not isinstance(trials, list) or any(place[:1] != ("trials",) or len(place) < 2 for place in places):
            return None, False
        for place in places:
            index = int(place[1])
            name = trials[index].get("name") if isinstance(trials[index], dict) else None
            self.malformed[index] = str(name)
        return None, True

    def plan(self) -> SweepPlan:
        for item in self.configurations:
            self.chain(item.name)
        self._check_tables()
        if self.shared.strict:
            self.problems += [
                Problem("", f"{text}. Download it, or give a local folder.") for text in self.shared.unchecked
            ]
        if self.problems or self.spec is None:
            unique = list(dict.fromkeys(self.problems))
            raise SpecError(sorted(unique, key=lambda problem: problem.line or 0), self.document.source)
        self.shared.files.save()
        trials = [chain.trial for chain in self.chains.values() if chain]
        trials += [chain.trial for chain in self.implicit.values()]
        return SweepPlan(
            name=self.spec.name,
            title=self.spec.title or self.spec.name,
            source=str(self.path.absolute()) if self.path else None,
            trials=(*trials, *self.borrowed.values()),
            tables=self.spec.tables,
            spec=self.document.data,
            unchecked=tuple(self.shared.unchecked),
        )

    # -- one trial ---------------------------------------------------------------------------------------------

    def chain(self, name: str) -> Chain | None:
        """The resolved trial; None where it has problems, which are noted."""
        if name in self.chains:
            return self.chains[name]
        item = self.by_name[name]
        if name in self.pending:
            circle = " → ".join([*self.pending[self.pending.index(name) :], name])
            self._note(
                item, "", f"teachers must not form a circle, but {circle}. Distil one of them from something else."
            )
            return None
        self.pending.append(name)
        try:
            self.chains[name] = self._resolve(item)
        except PruneGPTError as error:
            self._note(item, "", str(error))
            self.chains[name] = None
        finally:
            self.pending.remove(name)
        return self.chains[name]

    def _note(self, item: Configuration, path: str, message: str) -> None:
        varied = next(
            (swept for swept in item.swept if path and (path.startswith(swept) or swept.startswith(path))), None
        )
        steps: list[str | int] = ["trials", item.index]
        steps += (
            ["vary", varied] if varied else [int(step) if step.isdigit() else step for step in path.split(".") if step]
        )
        self.problems.append(self.document.problem(steps, message))

    def _resolve(self, item: Configuration) -> Chain | None:
        spec = item.spec
        if spec.model is None:
            self._note(item, "", "a trial needs a model: set `model` in base or in the trial.")
            return None
        before = len(self.problems)
        facts = self._facts(item, spec.model)
        data, evaluate, evaluation_key = self._text(item, spec.data, spec.evaluate)
        if facts is None or data is None or evaluate is None:
            return None
        if message := checks.tokenizer_problem(facts):
            self._note(item, "model", message)
        first = self._first(spec.model, facts)
        stages, teachers, needs = [first], {}, []
        for index, stage in enumerate(spec.stages):
            where = f"stages.{index}.{stage.kind}"
            config = stage.config
            if isinstance(config, DistillSpec):
                teacher = self._teacher(item, config.teacher, f"{where}.teacher", facts)
                if teacher is None:
                    continue
                teachers[teacher.trial.key] = _teacher_label(teacher.trial)
                needs.append(teacher.trial.key)
            planned = self._stage(item, config, stage.kind, where, stages[-1], facts, data, needs, evaluation_key)
            if planned:
                stages.append(planned)
        if len(self.problems) > before:
            return None
        trial = TrialPlan(
            sweep=self.spec.name if self.spec else "",
            name=item.name,
            group=item.group,
            seed=item.seed,
            label=spec.model.label or Path(spec.model.source).name.removeprefix(PREFIX),
            order=self.configurations.index(item),
            model=spec.model,
            data=data,
            evaluate=evaluate,
            evaluation_key=evaluation_key,
            device=spec.device,
            precision=spec.precision,
            stages=tuple(stages),
            needs=tuple(dict.fromkeys(needs)),
            swept=item.swept,
            config=item.merged,
            teachers=teachers,
        )
        return Chain(trial, facts)

    def _facts(self, item: Configuration, model: ModelSpec) -> ModelFacts | None:
        identity = digest(model.model_dump(exclude={"label"}))
        if identity not in self.shared.facts:
            try:
                self.shared.facts[identity] = facts = model_facts(model, self.shared.files)
            except PruneGPTError as error:
                self._note(item, "model", str(error))
                return None
            if facts.unchecked:
                self.shared.unchecked[facts.unchecked] = None
        return self.shared.facts[identity]

    def _fingerprint(self, data: DataSpec, split: str) -> str:
        key, unchecked = data_fingerprint(data, split, self.shared.files, self.base)
        if unchecked:
            self.shared.unchecked[unchecked] = None
        return key

    def _located(self, data: DataSpec) -> DataSpec:
        """The same text with local files named absolutely."""
        local = split_files(data, self.base)
        if local is None:
            return data
        names = {split: tuple(str(file) for file in found) for split, found in local.items()}
        return data.model_copy(update={"path": None, "files": names})

    def _text(
        self, item: Configuration, data: DataSpec | None, evaluate: EvaluateSpec
    ) -> tuple[DataSpec | None, EvaluateSpec | None, str]:
        if data is None:
            self._note(item, "", "a trial needs text: set `data` in base or in the trial.")
            return None, None, ""
        try:
            located = self._located(data)
            measured = self._located(evaluate.data) if evaluate.data else located
            split = evaluate.split
            if evaluate.data and measured.files and len(measured.files) == 1:
                split = next(iter(measured.files))  # a single file is all there is to measure on
            resolved = evaluate.model_copy(
                update={"data": measured, "split": split, "block_size": evaluate.block_size or data.block_size}
            )
            key = digest(
                {
                    "format": FORMAT,
                    "text": self._fingerprint(measured, split),
                    **resolved.model_dump(exclude={"data", "batch_size", "split", "skip"}),
                }
            )
        except PruneGPTError as error:
            self._note(item, "data", str(error))
            return None, None, ""
        return located, resolved, key

    # -- stages ------------------------------------------------------------------------------------------------

    def _first(self, model: ModelSpec, facts: ModelFacts) -> StagePlan:
        kind = "pretrain" if facts.builtin else "load"
        plain = model.model_dump(exclude={"label", "source", "revision"}, exclude_defaults=True)
        payload = {"kind": kind, "format": FORMAT, "model": facts.fingerprint, **plain}
        if not facts.builtin:
            return StagePlan(key=digest(payload), kind="load", model=model)
        key = digest({**payload, "versions": versions()})
        data = DataSpec(path="builtin:text")
        return StagePlan(key=key, kind="pretrain", model=model, data=data)

    def _stage(
        self,
        item: Configuration,
        config: FinetuneSpec | PruneSpec | DistillSpec,
        kind: str,
        where: str,
        before: StagePlan,
        facts: ModelFacts,
        data: DataSpec,
        needs: Sequence[str],
        evaluation_key: str,
    ) -> StagePlan | None:
        spec = item.spec
        common: dict[str, Any] = {"parent": before.key, "model": before.model, "seed": item.seed}
        payload: dict[str, Any] = {"kind": kind, "format": FORMAT, "parent": before.key, "versions": versions()}
        payload["precision"] = spec.precision
        try:
            if isinstance(config, PruneSpec):
                prune, text = self._pruning(item, config, where, facts, data)
                payload |= {"prune": text}
                if prune.method == "random":
                    payload["seed"] = item.seed
                return StagePlan(key=digest(payload), kind="prune", prune=prune, data=data, **common)
            located = self._located(config.data) if config.data else data
            train = {**spec.train, **config.train}
            text = config.model_dump(exclude={"train", "data", "prune", "recipe", "teacher", "keep_checkpoints"})
            update: dict[str, Any] = {"train": train, "data": located}
            if config.prune:
                if message := checks.clock_problem(config.prune, train):
                    self._note(item, f"{where}.prune", message)
                update["prune"], text["prune"] = self._pruning(item, config.prune, f"{where}.prune", facts, located)
            payload |= {
                "seed": item.seed,
                "data": self._fingerprint(located, located.train_split),
                "block_size": located.block_size,
                "max_train_blocks": located.max_train_blocks,
                "train": subset(train, NEUTRAL),
                "config": text,
            }
            if train.get("load_best_model_at_end"):
                payload["evaluation"] = evaluation_key
            neutral = {name: value for name, value in train.items() if name in NEUTRAL}
            resolved = config.model_copy(update=update)
            if isinstance(resolved, DistillSpec):
                key = digest({**payload, "teacher": needs[-1]})
                return StagePlan(
                    key=key,
                    kind="distill",
                    distill=resolved,
                    data=located,
                    teacher=needs[-1],
                    neutral=neutral,
                    **common,
                )
            return StagePlan(
                key=digest(payload), kind="finetune", finetune=resolved, data=located, neutral=neutral, **common
            )
        except PruneGPTError as error:
            self._note(item, where, str(error))
            return None

    def _pruning(
        self, item: Configuration, prune: PruneSpec, where: str, facts: ModelFacts, data: DataSpec
    ) -> tuple[PruneSpec, dict[str, Any]]:
        """The pruning config with its calibration text filled in, and what of it goes into the key."""
        if message := checks.pruning_problem(prune, facts):
            self._note(item, where, message)
        text = prune.model_dump(exclude={"calibration", "propagate"})
        if not is_calibrated(prune):
            return prune, text
        calibration = prune.calibration
        located = self._located(calibration.data) if calibration.data else data
        split = calibration.split or located.train_split
        filled = CalibrationSpec(
            **calibration.model_dump(exclude={"data", "split", "length"}),
            data=located,
            split=split,
            length=calibration.length or located.block_size,
        )
        text["calibration"] = {
            **filled.model_dump(exclude={"data", "split"}),
            "text": self._fingerprint(located, split),
        }
        text["propagate"] = prune.propagate
        return prune.model_copy(update={"calibration": filled}), text

    # -- teachers ----------------------------------------------------------------------------------------------

    def _teacher(
        self, item: Configuration, teacher: str | TeacherModel, where: str, student: ModelFacts
    ) -> Chain | None:
        before = len(self.problems)
        if isinstance(teacher, TeacherModel):
            chain = self._teacher_model(item, teacher.model, where)
        elif "/" in teacher:
            chain = self._foreign(item, teacher, where)
        else:
            chain = self._sibling(item, teacher, where)
        if chain is None:
            if len(self.problems) == before:
                self._note(item, where, f"the teacher {teacher!r} has problems of its own, see there.")
            return None
        if message := checks.teacher_problem(student, chain.facts):
            self._note(item, where, message)
            return None
        return chain

    def _sibling(self, item: Configuration, name: str, where: str) -> Chain | None:
        """A trial of this sweep; where it has several seeds, the one of the student's seed, else its first."""
        found = [other for other in self.configurations if name in (other.name, other.group)]
        if not found and name in self.malformed.values():
            return None
        if not found:
            close = nearest(name, [other.group for other in self.configurations])[:8]
            self._note(
                item,
                where,
                f"a teacher must be a trial of this sweep, SWEEP/TRIAL or {{model: SOURCE}}, but there is no trial "
                f"{name!r}. Trials: {', '.join(dict.fromkeys(close))}. For a model write {{model: {name}}}.",
            )
            return None
        same = [other for other in found if other.seed == item.seed]
        return self.chain((same or found)[0].name)

    def _foreign(self, item: Configuration, name: str, where: str) -> Chain | None:
        """A trial of a sweep whose spec lies beside this one."""
        sweep, _, trial = name.partition("/")
        if self.spec and sweep == self.spec.name:
            return self._sibling(item, trial, where)
        resolver = self._beside(sweep)
        if resolver is None:
            self._note(
                item,
                where,
                f"a teacher SWEEP/TRIAL needs the spec of that sweep beside this one, but there is no {sweep}.yaml. "
                f"For a model on the hub write {{model: {name}}}.",
            )
            return None
        before = len(resolver.problems)
        found = [other for other in resolver.configurations if trial in (other.name, other.group)]
        if not found:
            names = ", ".join(dict.fromkeys(other.group for other in resolver.configurations)) or "none"
            self._note(item, where, f"sweep {sweep} has no trial {trial!r}. Trials: {names}.")
            return None
        same = [other for other in found if other.seed == item.seed]
        chain = resolver.chain((same or found)[0].name)
        if chain is None:
            reasons = "; ".join(str(problem) for problem in resolver.problems[before:]) or "it has problems of its own"
            self._note(item, where, f"the teacher {name} cannot run: {reasons}")
            return None
        self._borrow(resolver, chain)
        return chain

    def _borrow(self, resolver: "_Resolver", chain: Chain) -> None:
        """Takes a trial of another sweep into this plan, with the trials that its own teachers are."""
        trial = chain.trial
        if f"{trial.sweep}/{trial.name}" in self.borrowed:
            return
        candidates = [*resolver.chains.values(), *resolver.implicit.values()]
        for other in candidates:
            if other and other.trial.key in trial.needs:
                self._borrow(resolver, other)
        self.borrowed |= resolver.borrowed
        self.borrowed[f"{trial.sweep}/{trial.name}"] = trial

    def _beside(self, sweep: str) -> "_Resolver | None":
        if sweep not in self.shared.foreign:
            path = self.base / f"{sweep}.yaml" if self.base else None
            if path is None or not path.is_file():
                return None
            prefix = f"{sweep}:"
            overrides = [text.removeprefix(prefix) for text in self.shared.overrides if text.startswith(prefix)]
            self.shared.foreign[sweep] = _Resolver(self.shared, read_document(path, overrides), path)
        return self.shared.foreign[sweep]

    def _teacher_model(self, item: Configuration, model: ModelSpec, where: str) -> Chain | None:
        """A model as a teacher: a trial of its own, evaluated as it is, unless one of the spec's trials is that."""
        facts = self._facts(item, model)
        if facts is None:
            return None
        stage = self._first(model, facts)
        for other in self.configurations:
            if not other.spec.stages and other.spec.model and other.name not in self.pending:
                chain = self.chain(other.name)
                if chain and chain.trial.key == stage.key:
                    return chain
        if stage.key not in self.implicit:
            data, evaluate, evaluation_key = self._text(item, item.spec.data, item.spec.evaluate)
            if data is None or evaluate is None:
                return None
            name = _IMPLICIT + Path(model.source).name.replace(":", "-")
            trial = TrialPlan(
                sweep=self.spec.name if self.spec else "",
                name=name,
                group=name,
                seed=item.seed,
                label=model.label or Path(model.source).name.removeprefix(PREFIX),
                order=len(self.configurations) + len(self.implicit),
                implicit=True,
                model=model,
                data=data,
                evaluate=evaluate,
                evaluation_key=evaluation_key,
                device=item.spec.device,
                precision=item.spec.precision,
                stages=(stage,),
            )
            self.implicit[stage.key] = Chain(trial, facts)
        return self.implicit[stage.key]

    # -- tables ------------------------------------------------------------------------------------------------

    def _check_tables(self) -> None:
        """Every row of a table must match a trial: a typing error would otherwise show as a result that is missing."""
        if self.spec is None or not self.configurations:
            return
        from fnmatch import fnmatchcase

        groups = list(dict.fromkeys(item.group for item in self.configurations))
        for index, table in enumerate(self.spec.tables):
            for position, row in enumerate(table.rows):
                if not any(fnmatchcase(group, row.trial) for group in groups):
                    close = ", ".join(nearest(row.trial, groups)[:6])
                    message = f"a row must match a trial, but {row.trial!r} matches none. Trials: {close}."
                    self.problems.append(self.document.problem(("tables", index, "rows", position), message))
            for name in table.reported:
                if not any(fnmatchcase(group, name) for group in groups):
                    close = ", ".join(nearest(name, groups)[:6])
                    message = f"a published figure must name a trial, but {name!r} is none. Trials: {close}."
                    self.problems.append(self.document.problem(("tables", index, "reported", name), message))


def is_calibrated(prune: PruneSpec) -> bool:
    """Whether a pruning looks at text."""
    return prune.method in _CALIBRATED or prune.allocation == "owl"


def _teacher_label(trial: TrialPlan) -> str:
    """What the study's tables show: gpt2(zero-shot)."""
    return f"{trial.label}({trial.group})" if not trial.implicit else trial.label


def describe(plan: SweepPlan) -> Mapping[str, Any]:
    """Counts over a plan: trials, distinct stages, and those that several trials share."""
    users: dict[str, int] = {}
    for trial in plan.trials:
        for stage in trial.stages:
            users[stage.key] = users.get(stage.key, 0) + 1
    return {
        "trials": len(plan.trials),
        "stages": len(users),
        "shared": sum(1 for count in users.values() if count > 1),
        "users": users,
    }
