"""Searches of a spec: what they may try is tried for being valid before anything runs, and a suggestion is resolved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunegpt.errors import Problem, PruneGPTError, SpecError, shown
from prunegpt.planning.checks import unmeasured
from prunegpt.planning.samplers import sampler_of
from prunegpt.planning.teachers import ResolvedTrial
from prunegpt.spec.expand import SearchTemplate, suggested
from prunegpt.spec.metrics import evaluation_of
from prunegpt.spec.plan import SearchPlan, TrialPlan
from prunegpt.spec.schema import Settings
from prunegpt.spec.space import chosen_of, probes

if TYPE_CHECKING:
    from prunegpt.planning.resolve import Planner


@dataclass(frozen=True)
class _Probe:
    """One choice of one searched field, and why no trial with it is valid."""

    path: str
    choice: Any
    problems: tuple[Problem, ...]


def plan_search(planner: "Planner", template: SearchTemplate) -> SearchPlan:
    """The plan of a search; its problems are added to those of the spec."""
    _check_sampler(planner, template)
    _check_metrics(planner, template)
    space = template.spec.space
    planner.searched[template.index] = []
    _note(planner, template, [_probe(planner, template, path, one) for path in space for one in space[path].corners])
    tried = planner.searched[template.index]
    named = set(map(evaluation_of, template.spec.measured))
    kept = ([one for one in chain.trial.evaluations if not one.evaluate.speed or one.name in named] for chain in tried)
    measured = {tuple(one.key for one in evaluations) for evaluations in kept}
    if template.spec.measured and len(measured) > 1:
        told = (
            "a search compares figures of its trials, so they must be measured alike; what it searches changes the "
            "text, windows or precision of the measurement. Set evaluate in the trial (data, split, block_size, "
            "precision), so that it does not follow."
        )
        _problem(planner, template, told, "space")
    return SearchPlan(
        name=template.name,
        index=template.index,
        order=planner.opened.search_order(template),
        spec=template.spec,
        needs=tuple(dict.fromkeys(need for chain in tried for need in chain.trial.needs)),
    )


def resolve_suggestion(
    planner: "Planner", template: SearchTemplate, values: Mapping[str, Any], number: int
) -> TrialPlan:
    """The trial that a suggestion means; see `Planner.suggested`."""
    try:
        chosen = chosen_of(template.spec.space, values)
    except ValueError as error:
        raise SpecError([Problem("", str(error))]) from error
    chain, problems = _tried(planner, template, chosen, number)
    if chain is None:
        listed = ", ".join(f"{path}={shown(choice)}" for path, choice in chosen.items())
        found = [Problem(problem.where, f"{problem.message} (with {listed})", problem.line) for problem in problems]
        raise SpecError(found or [Problem("", f"no trial can be made with {listed}.")])
    place = {
        "search": template.name,
        "number": number,
        "order": planner.opened.search_order(template),
        "constraints": template.spec.constraints,
    }
    return chain.trial.model_copy(update=place)


def _tried(
    planner: "Planner", template: SearchTemplate, chosen: Mapping[str, Any], number: int
) -> tuple[ResolvedTrial | None, list[Problem]]:
    item, problems = suggested(planner.opened.document, template, chosen, template.name_of(number))
    return (None, problems) if item is None else planner.tried(item)


def _probe(planner: "Planner", template: SearchTemplate, path: str, choice: Any) -> _Probe:
    first: list[Problem] = []
    for chosen in probes(template.spec.space, path, choice):
        chain, problems = _tried(planner, template, chosen, 0)
        if chain is not None:
            planner.searched[template.index].append(chain)
        if not problems:  # what is wrong with a teacher alone is reported at the teacher
            return _Probe(path, choice, ())
        first = first or problems
    excluded = Problem("", "no trial searches it, for its conditions exclude one another.")
    return _Probe(path, choice, tuple(first) or (excluded,))


def _note(planner: "Planner", template: SearchTemplate, tried: list[_Probe]) -> None:
    """Adds what is wrong: once where every choice has it, else at the field whose choice has it."""
    everywhere = set.intersection(*(set(probe.problems) for probe in tried))
    planner.opened.problems += sorted(everywhere, key=str)
    for probe in tried:
        for problem in probe.problems:
            if problem not in everywhere:
                inside = f"trials.{template.index}.search.space.{probe.path}"
                where = f"{problem.where}: " if problem.where not in ("", inside) else ""
                told = f"with {shown(probe.choice)}: {where}{problem.message}"
                _problem(planner, template, told, "space", probe.path)


def _check_sampler(planner: "Planner", template: SearchTemplate) -> None:
    try:
        sampler_of(template.spec)
    except PruneGPTError as error:
        field = "sampler_options" if template.spec.sampler_options else "sampler"
        _problem(planner, template, str(error), field)


def _check_metrics(planner: "Planner", template: SearchTemplate) -> None:
    """Adds what asks for a measurement that is not made."""
    try:
        evaluations = Settings.model_validate({"evaluate": template.merged.get("evaluate") or {}}).evaluations
    except ValidationError:
        return  # reported at the field
    for metric, place in template.spec.metrics.items():
        for told in unmeasured([metric], evaluations):
            _problem(planner, template, told, *place)


def _problem(planner: "Planner", template: SearchTemplate, message: str, *place: str | int) -> None:
    opened = planner.opened
    opened.problems.append(opened.document.problem(("trials", template.index, "search", *place), message))
