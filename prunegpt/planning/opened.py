"""A spec that was read, checked field by field and expanded: its configurations, and the position of each."""

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import Problem
from prunegpt.spec.expand import Configuration, SearchTemplate, expand, with_varied, written_at
from prunegpt.spec.problems import messages_of, problems_of
from prunegpt.spec.read import Document
from prunegpt.spec.schema import Settings, Spec
from prunegpt.spec.wandb import FieldPath

_ROUNDS = 20  # of leaving out what is malformed: that may show more of it
_NAMING = ("name", "vary", "search")  # what decides which configurations a trial has
_STAND_IN = "left-out"
_WHOLE = (("model",), ("stages",), ("seeds",))  # where a trial has its own, nothing of base is left


class OpenedSpec:
    """The well-formed part of a spec, and the problems found so far. What is malformed hides nothing else.

    Attributes:
        spec: without its malformed fields; None where nothing is left.
        configurations: of the trials that are well formed, in spec order.
        searches: the trials that are searched, likewise.
        complete: whether those are all trials.
        malformed: what is wrong with single fields.
        problems: all others, to be added to while the configurations are resolved.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.malformed: list[Problem] = []
        self.problems: list[Problem] = []
        self.spec: Spec | None = None
        self.configurations: list[Configuration] = []
        self.searches: list[SearchTemplate] = []
        self._wrong: set[int] = set()  # trials with something malformed
        self._had: dict[tuple[int, str, str], set[str]] = {}  # trial, field, message -> configurations
        self._whole: dict[Problem, tuple[tuple[int, str, str], Problem]] = {}  # of a varied value -> of all of them
        self._left_out: list[tuple[int | None, FieldPath]] = []  # of a trial, or of base: what cannot be judged
        skip: set[int] = set()
        rest = copy.deepcopy(document.data)
        for _ in range(_ROUNDS):
            try:
                self.spec = Spec.model_validate(with_varied(rest))
                break
            except ValidationError as error:
                found = problems_of(error, Spec, replace(document, data=rest))
                self.malformed += self.told(found)
                places = [(place, _held(rest, place)) for place, _ in messages_of(error, Spec, rest)]
                for place, held in places:
                    self._leave_out(rest, place, held, skip)
                if not all(held for _, held in places):
                    break  # nothing is left
        if self.spec is not None:
            expansion = expand(replace(document, data=rest), skip)
            self.configurations = expansion.configurations
            self.searches = expansion.searches
            self.malformed += expansion.problems
            self._wrong |= expansion.broken
        self.complete = self.spec is not None and not self._wrong
        self._broken = [self._template(index) for index in self._wrong]
        order = [index + self._searches_before(index) for index in range(len(self.configurations))]
        self.order = {item.name: place for place, item in reversed([*zip(order, self.configurations, strict=True)])}
        self._seeds: dict[str, list[Configuration]] = {}
        for item in self.configurations:
            for name in dict.fromkeys((item.name, item.group)):
                self._seeds.setdefault(name, []).append(item)

    def _searches_before(self, configurations: int) -> int:
        return sum(1 for search in self.searches if search.before <= configurations)

    def search_order(self, template: SearchTemplate) -> int:
        """The position of a search's trials among the others: all at one place."""
        return template.before + self.searches.index(template)

    @property
    def places(self) -> int:
        """How many places there are in the order of trials."""
        return len(self.configurations) + len(self.searches)

    def _leave_out(self, rest: dict[str, Any], place: FieldPath, held: FieldPath, skip: set[int]) -> None:
        """Takes what is malformed out of a spec, so that the rest of it is checked.

        Args:
            rest: what is left of the spec; elements of lists stay, since others are named by their number.
            place: of the problem.
            held: the deepest key of a mapping there.
            skip: to it trials are added of which too little is left.
        """
        index = int(place[1]) if place[0] == "trials" and len(place) > 1 else None
        if index is not None:
            self._wrong.add(index)
            if len(held) < 3 or held[2] in _NAMING:
                rest["trials"][index] = {"name": f"{_STAND_IN}-{index}"}
                skip.add(index)
                return
        elif place[:1] == ("name",):
            rest["name"] = _STAND_IN
            return
        if not held or _held(rest, held) != held:  # it was left out with another one
            return
        node: Any = rest
        for step in held[:-1]:
            node = node[step]
        del node[held[-1]]
        own = held[2 if index is not None else 1 :]
        if len(own) == 1 and own[0] not in Settings.model_fields:  # what it may have been meant to be
            own = tuple(get_close_matches(str(own[0]), Settings.model_fields, 1))
        elif len(own) > 1:
            own = own[:-1]
        if held[0] in ("base", "trials") and (own or held == ("base",)):
            self._left_out.append((index, own))

    def told(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems without those that may only follow from another, which was left out beside them."""
        return [problem for problem in problems if not self._follows(problem.where.split("."))]

    def _follows(self, path: list[str]) -> bool:
        if path[0] not in ("base", "trials"):
            return False
        trial = int(path[1]) if path[0] == "trials" and len(path) > 1 else None
        own = self.document.data["trials"][trial] if trial is not None else None
        for index, beside in self._left_out:
            steps = [str(step) for step in beside]
            if index not in (None, trial) or (
                index is None and beside in _WHOLE and isinstance(own, dict) and steps[0] in own
            ):
                continue
            if any(path[start : start + len(steps)] == steps for start in range(len(path))):
                return True
        return False

    def _template(self, index: int) -> str:
        trial = self.document.data["trials"][index]
        return str(trial.get("name")) if isinstance(trial, dict) else ""

    @property
    def groups(self) -> list[str]:
        """Names of the trials without seeds, in spec order."""
        return list(dict.fromkeys(item.group for item in self.configurations))

    def named(self, name: str, seed: int) -> Configuration | None:
        """The configuration of that name; where it has several seeds, the one of this seed, else its first."""
        found = self._seeds.get(name, ())
        return next((item for item in found if item.seed == seed), found[0] if found else None)

    def is_well_formed(self, item: Configuration) -> bool:
        """Whether nothing was left out of a configuration."""
        return item.index not in self._wrong and not any(index is None for index, _ in self._left_out)

    def may_be_broken(self, name: str) -> bool:
        """Whether a trial of that name may be one that has problems of its own."""
        return any(re.fullmatch(_pattern(template), name) for template in self._broken)

    def note(self, item: Configuration, path: str, message: str) -> None:
        """Adds a problem with one field of a configuration."""
        self.problems.append(self.located(item, path, message))

    def located(self, item: Configuration, path: str, message: str) -> Problem:
        """A problem with one field of a configuration, at the line where that field was written."""
        steps = [int(step) if step.isdigit() else step for step in path.split(".") if step]
        within = [varied for varied in item.swept if varied.startswith(f"{path}.")]
        others = [varied for varied in item.swept if varied not in within]
        own, varied = (written_at(self.document, item.index, swept, steps) for swept in (others, item.swept))
        trial = item.group if varied[0] == "trials" else ""
        found = replace(self.document.problem(varied, message), trial=trial)
        if within:
            self._had.setdefault((item.index, path, message), set()).add(item.name)
            self._whole[found] = (item.index, path, message), replace(self.document.problem(own, message), trial=trial)
        return found

    def settled(self, problem: Problem) -> Problem:
        """The problem where it is: what all varied values have does not come from them."""
        if problem not in self._whole:
            return problem
        key, own = self._whole[problem]
        return own if self._had[key] == {item.name for item in self.configurations if item.index == key[0]} else problem


def _held(data: Any, place: FieldPath) -> FieldPath:
    """The deepest part of a place that is the key of a mapping there."""
    held: FieldPath = ()
    for depth, step in enumerate(place, 1):
        if isinstance(data, dict) and step in data:
            held = place[:depth]
        elif not (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            break
        data = data[step]
    return held


def _pattern(template: str) -> str:
    """What the names of a trial look like: a key filled in, varied values appended, a seed."""
    literal = "".join(".*" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^{}]*\})", template))
    return f"{literal}(-.*)?(@\\d+)?"
