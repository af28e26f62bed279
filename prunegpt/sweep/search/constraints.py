"""Constraints of a search as Optuna takes them: a value each, fulfilled where it is zero or less."""

import math
from collections.abc import Mapping, Sequence

from prunegpt.spec.search import constraint_of


def violations(constraints: Sequence[str], metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Constraint as written -> by how much it is broken; infinite where the metric is not known."""
    found = {}
    for text in constraints:
        wanted = constraint_of(text)
        value = metrics.get(wanted.metric)
        if value is None:
            found[text] = math.inf
        else:
            found[text] = value - wanted.bound if wanted.relation == "<=" else wanted.bound - value
    return found
