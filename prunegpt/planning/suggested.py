"""A spec that stays open: its plan, and the trials that its searches suggest, each resolved as if the spec said it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from prunegpt.planning.curves import CurvesOf
from prunegpt.planning.resolve import Resolver
from prunegpt.root import Root
from prunegpt.spec.expand import SearchTemplate
from prunegpt.spec.plan import SearchPlan, SweepPlan, TrialPlan


class Planner:
    """Plans a spec file, or plain data, and then what its searches suggest.

    Args:
        source: the file, or the data.
        overrides: PATH=VALUE, as for plan_file.
        root: where hashes of files are remembered.
        strict: what cannot be checked for want of a network is a problem, not a remark.
        curves: gives the sensitivity curves that a sweep measured.
        path: of data, the file that it was read from.

    Raises:
        SpecError: the spec cannot be read. Its other problems are told when the plan is asked for.
    """

    def __init__(
        self,
        source: Path | Mapping[str, Any],
        overrides: Sequence[str] = (),
        root: Root | None = None,
        curves: CurvesOf | None = None,
        *,
        strict: bool = False,
        path: Path | None = None,
    ) -> None:
        if isinstance(source, Path):
            self._resolver = Resolver.of_file(source, overrides, root=root, strict=strict, curves=curves)
        else:
            self._resolver = Resolver.of_data(source, overrides, path=path, root=root, strict=strict, curves=curves)

    @cached_property
    def plan(self) -> SweepPlan:
        """The plan of the spec.

        Raises:
            SpecError: with every problem of the spec.
        """
        return self._resolver.plan()

    def suggested(self, search: SearchPlan, values: Mapping[str, Any], number: int) -> TrialPlan:
        """The trial that a suggestion means.

        Args:
            search: one of `plan.searches`.
            values: path -> choice: a value, or the name of one that has a name.
            number: counted within its search from 1.

        Raises:
            SpecError: these values make no trial; they are told.
        """
        return self._resolver.searches.suggested(self._template(search), values, number)

    def _template(self, search: SearchPlan) -> SearchTemplate:
        return next(template for template in self._resolver.opened.searches if template.index == search.index)
