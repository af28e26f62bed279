"""A spec that was read, checked field by field and expanded: its configurations, and where each of them stands."""

import re

from pydantic import ValidationError

from prunegpt.errors import Problem
from prunegpt.spec.expand import Configuration, SearchTemplate, expand, with_varied, written_at
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import Document
from prunegpt.spec.schema import Spec


class OpenedSpec:
    """The well-formed part of a spec, and the problems found so far.

    Attributes:
        spec: None where some field is malformed.
        configurations: of the trials that are well formed, in spec order.
        searches: the trials that are searched, likewise.
        complete: whether those are all trials.
        problems: to be added to while the configurations are resolved.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.spec: Spec | None = None
        self.configurations: list[Configuration] = []
        self.searches: list[SearchTemplate] = []
        malformed: set[int] | None = set()
        try:
            self.spec = Spec.model_validate(with_varied(document.data))
        except ValidationError as error:
            self.problems += problems_of(error, Spec, document)
            malformed = self._malformed(error)
        if malformed is not None:
            expansion = expand(document, malformed)
            self.configurations = expansion.configurations
            self.searches = expansion.searches
            self.problems += expansion.problems
            malformed |= expansion.broken
        self.complete = malformed == set()
        self._broken = [self._template(index) for index in malformed or ()]
        places = [index + self._searches_before(index) for index in range(len(self.configurations))]
        self.order = {item.name: place for place, item in reversed([*zip(places, self.configurations, strict=True)])}
        self._seeds: dict[str, list[Configuration]] = {}
        for item in self.configurations:
            for name in dict.fromkeys((item.name, item.group)):
                self._seeds.setdefault(name, []).append(item)

    def _searches_before(self, configurations: int) -> int:
        return sum(1 for search in self.searches if search.before <= configurations)

    def search_order(self, template: SearchTemplate) -> int:
        """Where the trials of a search stand among the others: all at one place."""
        return template.before + self.searches.index(template)

    @property
    def places(self) -> int:
        """How many places there are in the order of trials."""
        return len(self.configurations) + len(self.searches)

    def _malformed(self, error: ValidationError) -> set[int] | None:
        """Indices of the trials that are malformed; None where what all trials share is."""
        trials = self.document.data.get("trials")
        places = [item["loc"] for item in error.errors(include_url=False)]
        if not isinstance(trials, list) or any(place[:1] == ("base",) or place == ("trials",) for place in places):
            return None
        return {int(place[1]) for place in places if place[:1] == ("trials",)}

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

    def may_be_broken(self, name: str) -> bool:
        """Whether a trial of that name may be one that has problems of its own."""
        return any(re.fullmatch(_pattern(template), name) for template in self._broken)

    def note(self, item: Configuration, path: str, message: str) -> None:
        """Adds a problem with one field of a configuration."""
        self.problems.append(self.located(item, path, message))

    def located(self, item: Configuration, path: str, message: str) -> Problem:
        """A problem with one field of a configuration, at the line where that field was written."""
        steps = [int(step) if step.isdigit() else step for step in path.split(".") if step]
        return self.document.problem(written_at(self.document, item.index, item.swept, steps), message)


def _pattern(template: str) -> str:
    """What the names of a trial look like: a key filled in, varied values appended, a seed."""
    literal = "".join(".*" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^{}]*\})", template))
    return f"{literal}(-.*)?(@\\d+)?"
