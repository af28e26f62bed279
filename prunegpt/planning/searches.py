"""Searches of a spec: what they may try is tried for being valid before anything runs, and a suggestion is resolved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prunegpt.errors import Problem, PruneGPTError, SpecError
from prunegpt.planning.opened import OpenedSpec
from prunegpt.planning.samplers import sampler_of
from prunegpt.planning.teachers import Chain
from prunegpt.spec.expand import Configuration, SearchTemplate, suggested
from prunegpt.spec.plan import SearchPlan, TrialPlan
from prunegpt.spec.search import MEASURED, constraint_of
from prunegpt.spec.space import chosen_of, probes

_SHOWN = 60  # characters of a value in a message


class Sweep(Protocol):
    """A spec whose configurations can be resolved one by one."""

    opened: OpenedSpec

    def tried(self, item: Configuration) -> tuple[Chain | None, list[Problem]]:
        """The resolved configuration, or what is wrong with it, which is noted nowhere."""


@dataclass(frozen=True)
class _Probe:
    """One choice of one searched field, and why no trial with it is valid."""

    path: str
    choice: Any
    problems: tuple[Problem, ...]


class Searches:
    """The searches of one spec."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.chains: list[Chain] = []  # of the trials that were tried, for their teachers

    def plan(self, template: SearchTemplate) -> SearchPlan:
        """The plan of a search; its problems are added to those of the spec."""
        self._check_sampler(template)
        self._check_metrics(template)
        space = template.spec.space
        tried = [self._probe(template, path, choice) for path in space for choice in space[path].corners]
        self._note(template, tried)
        return SearchPlan(
            name=template.name,
            index=template.index,
            order=self._sweep.opened.search_order(template),
            spec=template.spec,
            needs=tuple(dict.fromkeys(need for chain in self.chains for need in chain.trial.needs)),
        )

    def suggested(self, template: SearchTemplate, values: Mapping[str, Any], number: int) -> TrialPlan:
        """The trial that a suggestion means.

        Raises:
            SpecError: it is none; the choices are told.
        """
        try:
            chosen = chosen_of(template.spec.space, values)
        except ValueError as error:
            raise SpecError([Problem("", str(error))]) from error
        chain, problems = self._tried(template, chosen, number)
        if chain is None:
            listed = ", ".join(f"{path}={_short(choice)}" for path, choice in chosen.items())
            found = [Problem(problem.where, f"{problem.message} (with {listed})", problem.line) for problem in problems]
            raise SpecError(found or [Problem("", f"no trial can be made with {listed}.")])
        place = {"search": template.name, "number": number, "order": self._sweep.opened.search_order(template)}
        return chain.trial.model_copy(update=place)

    def _tried(
        self, template: SearchTemplate, chosen: Mapping[str, Any], number: int
    ) -> tuple[Chain | None, list[Problem]]:
        item, problems = suggested(self._sweep.opened.document, template, chosen, template.name_of(number))
        return (None, problems) if item is None else self._sweep.tried(item)

    def _probe(self, template: SearchTemplate, path: str, choice: Any) -> _Probe:
        first: list[Problem] = []
        for chosen in probes(template.spec.space, path, choice):
            chain, problems = self._tried(template, chosen, 0)
            if chain is not None:
                self.chains.append(chain)
            if not problems:  # what is wrong with a teacher alone is told at the teacher
                return _Probe(path, choice, ())
            first = first or problems
        excluded = Problem("", "no trial searches it, for its conditions exclude one another.")
        return _Probe(path, choice, tuple(first) or (excluded,))

    def _note(self, template: SearchTemplate, tried: list[_Probe]) -> None:
        """Adds what is wrong: once where every choice has it, else at the field whose choice has it."""
        opened = self._sweep.opened
        everywhere = set.intersection(*(set(probe.problems) for probe in tried))
        opened.problems += sorted(everywhere, key=str)
        for probe in tried:
            for problem in probe.problems:
                if problem not in everywhere:
                    inside = f"trials.{template.index}.search.space.{probe.path}"
                    where = f"{problem.where}: " if problem.where not in ("", inside) else ""
                    self._problem(
                        template, f"with {_short(probe.choice)}: {where}{problem.message}", "space", probe.path
                    )

    def _check_sampler(self, template: SearchTemplate) -> None:
        try:
            sampler_of(template.spec)
        except PruneGPTError as error:
            self._problem(template, str(error), "sampler_options" if template.spec.sampler_options else "sampler")

    def _check_metrics(self, template: SearchTemplate) -> None:
        """Adds what asks for a measurement where nothing is measured."""
        if not (template.merged.get("evaluate") or {}).get("skip"):
            return
        spec = template.spec
        asked = [(("objectives", index), item.metric) for index, item in enumerate(spec.objectives)]
        asked += [(("constraints", index), constraint_of(text).metric) for index, text in enumerate(spec.constraints)]
        for place, metric in asked:
            if metric in MEASURED:
                self._problem(template, f"{metric} must be measured, but evaluate.skip is true. Remove one.", *place)

    def _problem(self, template: SearchTemplate, message: str, *place: str | int) -> None:
        opened = self._sweep.opened
        opened.problems.append(opened.document.problem(("trials", template.index, "search", *place), message))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
