"""Who teaches a stage, or is measured beside a trial: a trial of its own sweep, or one of a sweep whose spec is next to
it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunegpt.builtin import PREFIX
from prunegpt.errors import SpecError, listed, nearest
from prunegpt.planning.checks import teacher_problem
from prunegpt.planning.facts import ModelFacts
from prunegpt.planning.fingerprint import digest
from prunegpt.planning.stages import source_stage
from prunegpt.planning.texts import block_size_of
from prunegpt.spec.distilling import distill_problems
from prunegpt.spec.expand import MAX_NAME, Configuration, slug
from prunegpt.spec.plan import PlannedEvaluation, StagePlan, TrialPlan
from prunegpt.spec.schema import DistillSpec, EvaluateSpec, ModelSpec, TeacherModel

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner

_IMPLICIT = "teacher-"  # begins the name of a trial that only teaches
MAX_TEACHERS = 50  # that teach one another in a row
_LISTED = 8


@dataclass(frozen=True)
class ResolvedTrial:
    """A resolved trial that is about to enter the plan."""

    trial: TrialPlan
    facts: ModelFacts  # of the model that its chain starts from
    final: ModelFacts  # of the one that it ends with
    teachers: tuple["ResolvedTrial", ...] = ()


def teacher_of(
    planner: "Planner", item: Configuration, index: int, config: DistillSpec, student: ModelFacts | None
) -> ResolvedTrial | None:
    """The trial that teaches a stage; None where there are problems, which are noted here or at that trial."""
    where, teacher = f"stages.{index}.distill.teacher", config.teacher
    if isinstance(teacher, TeacherModel):
        chain = _model_teacher(planner, item, teacher.model, where)
    else:
        chain = _named(planner, item, teacher, where)
    if chain is None or student is None:
        return chain
    block_size = block_size_of(config.data, item.spec.data.block_size if item.spec.data else 0)
    problems = [("teacher", message)] if (message := teacher_problem(student, chain.final, block_size)) else []
    problems += distill_problems(config, student.shape, chain.final.shape)
    for path, message in problems:
        planner.opened.note(item, f"stages.{index}.distill.{path}", message)
    return None if problems else chain


def reference_of(planner: "Planner", item: Configuration, evaluate: EvaluateSpec, where: str) -> ResolvedTrial | None:
    """The trial whose model a trial's speed is measured beside; None where there are problems, which are noted."""
    assert evaluate.speed is not None
    return _named(planner, item, evaluate.speed.against or "", f"{where}.speed.against", "reference")


def beside(
    sweep: str,
    planned: PlannedEvaluation,
    item: Configuration,
    facts: ModelFacts,
    stages: Sequence[StagePlan],
    reference: ResolvedTrial | None,
) -> PlannedEvaluation:
    """An evaluation with its reference, where it is of speed: a trial, the trial itself, or where its chain starts.

    Args:
        sweep: of the trial.
        stages: of the trial.
        reference: the trial that it names, where that is another one.
    """
    speed = planned.evaluate.speed
    if speed is None:
        return planned
    if reference is not None:
        key, called = reference.trial.key, f"{reference.trial.sweep}/{reference.trial.group}"
    elif speed.against is not None:
        key, called = stages[-1].key, f"{sweep}/{item.group}"
    else:
        key, called = stages[0].key, facts.model.model_copy(update={"source": facts.source}).name
        called += "" if stages[0].kind == "init" else f" ({key[:8]})"  # drawn weights are others for each seed
    decisive = [planned.key, item.spec.device, speed.model_dump(exclude={"against"}), key]
    return planned.model_copy(update={"key": digest(decisive), "reference": key, "called": called})


def teacher_label(trial: TrialPlan) -> str:
    """What the study's tables show: gpt2(zero-shot)."""
    return f"{trial.label}({trial.group})" if not trial.implicit else trial.label


def _model_teacher(planner: "Planner", item: Configuration, model: ModelSpec, where: str) -> ResolvedTrial | None:
    """A model as a teacher: a trial of its own, evaluated as it is, unless one of the spec's trials is that."""
    facts = planner.model(item, model, where)
    text = planner.text(item, item.spec.data, item.spec.evaluations[:1])
    if facts is None or text is None:
        return None
    stage = source_stage(facts, item.spec.precision, item.seed)
    for other in planner.opened.configurations:
        if not other.spec.stages:
            chain = planner.chain(other)
            if chain and chain.trial.key == stage.key:
                return chain
    if stage.key not in planner.implicit:
        name = _free_name(planner, _IMPLICIT + slug(Path(model.source).name.removeprefix(PREFIX)))
        order = planner.opened.places + len(planner.implicit)
        trial = planner.trial(item, facts, *text, (stage,), (), name=name, group=name, order=order, implicit=True)
        planner.implicit[stage.key] = ResolvedTrial(trial, facts, facts)
    return planner.implicit[stage.key]


def _free_name(planner: "Planner", name: str) -> str:
    taken = {*planner.opened.order, *planner.opened.groups}
    taken |= {chain.trial.name for chain in planner.implicit.values()}
    name = name[: MAX_NAME - len("-1000")]
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    return free


def _named(
    planner: "Planner", item: Configuration, name: str, where: str, what: str = "teacher"
) -> ResolvedTrial | None:
    """The trial that a name means; None where it has problems, which are noted at the asking field or that trial."""
    sweep, slash, trial = name.partition("/")
    if not slash or sweep == planner.name:
        return _sibling(planner, item, trial if slash else name, where, what)
    return _foreign(planner, item, sweep, trial, where, what)


def _sibling(planner: "Planner", item: Configuration, name: str, where: str, what: str) -> ResolvedTrial | None:
    """A trial of this sweep; where it has several seeds, the one of the asking trial's seed, else its first."""
    opened = planner.opened
    found = opened.named(name, item.seed)
    if found is not None:
        return planner.chain(found) if _may_teach(planner, item, planner, found.name, where, what) else None
    if not opened.may_be_broken(name):
        close = listed(nearest(name, opened.groups), _LISTED)
        model, hint = (", SWEEP/TRIAL or {model: SOURCE}", f" For a model write {{model: {name}}}.")
        model, hint = (model, hint) if what == "teacher" else (" or SWEEP/TRIAL", "")
        opened.note(
            item,
            where,
            f"a {what} must be a trial of this sweep{model}; there is no trial {name!r}. Trials: {close}.{hint}",
        )
    return None


def _foreign(
    planner: "Planner", item: Configuration, sweep: str, trial: str, where: str, what: str
) -> ResolvedTrial | None:
    """A trial of a sweep whose spec is next to this one."""
    own = planner.opened
    other = _beside(planner, item, sweep, trial, where, what)
    if other is None:
        return None
    before = len(other.opened.problems)
    found = other.opened.named(trial, item.seed)
    if found is None and other.opened.complete:
        close = listed(nearest(trial, other.opened.groups), _LISTED)
        own.note(item, where, f"sweep {sweep} has no trial {trial!r}. Trials: {close}.")
        return None
    if found is not None:
        if not _may_teach(planner, item, other, found.name, where, what):
            return None
        if (chain := other.chain(found)) and other.opened.is_well_formed(found):
            return chain
    reasons = other.opened.problems[before:] or [*other.opened.malformed, *other.opened.problems]
    own.note(item, where, f"the {what} {sweep}/{trial} cannot run, {other.path}: {'; '.join(map(str, reasons))}")
    return None


def _beside(planner: "Planner", item: Configuration, sweep: str, trial: str, where: str, what: str) -> "Planner | None":
    """The sweep of SWEEP.yaml in this spec's folder; None where there is none, which is noted."""
    path = planner.path.with_name(f"{sweep}.yaml") if planner.path and sweep else None
    if path is None or not path.is_file():
        hint = f" For a model on the hub write {{model: {sweep}/{trial}}}." if what == "teacher" else ""
        planner.opened.note(
            item,
            where,
            f"a {what} SWEEP/TRIAL needs the spec of that sweep beside this one; there is no {sweep}.yaml.{hint}",
        )
        return None
    try:
        return planner.beside(path)
    except SpecError as error:
        told = "; ".join(map(str, error.problems))
        planner.opened.note(item, where, f"the {what} {sweep}/{trial} cannot run, {path}: {told}")
        return None


def _may_teach(planner: "Planner", item: Configuration, sweep: "Planner", name: str, where: str, what: str) -> bool:
    """Whether a trial is not itself waiting for the one that asks."""
    pending = planner.home.pending
    if (sweep, name) in pending:
        circle = [*pending[pending.index((sweep, name)) :], (sweep, name)]
        several = len({id(other) for other, _ in circle}) > 1
        names = " → ".join(f"{other.name}/{trial}" if several else trial for other, trial in circle)
        hint = "Distil one of them from something else." if what == "teacher" else "Measure one beside something else."
        message = f"{what}s must not form a circle: {names}. {hint}"
    elif len(pending) > MAX_TEACHERS:
        message = f"at most {MAX_TEACHERS} trials may teach one another in a row; more do."
    else:
        return True
    planner.opened.note(item, where, message)
    return False


def borrowed(chains: Iterable[ResolvedTrial], own: str) -> dict[str, TrialPlan]:
    """The trials of other sweeps that these chains need, each after its own teachers: SWEEP/TRIAL -> plan."""
    found: dict[str, TrialPlan] = {}
    seen: set[int] = set()

    def visit(chain: ResolvedTrial) -> None:
        if id(chain) in seen:
            return
        seen.add(id(chain))
        for teacher in chain.teachers:
            visit(teacher)
        if chain.trial.sweep != own:
            found[f"{chain.trial.sweep}/{chain.trial.name}"] = chain.trial

    for chain in chains:
        visit(chain)
    return found
