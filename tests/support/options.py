"""Options of registered parts at the ends of their ranges."""

import math
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt

from prunegpt.registry import Registry


def ends(kind: Any) -> list[int | float]:
    """The least and the greatest value that an option takes; none of text."""
    plain, *limits = get_args(kind) or (kind,)
    if plain is str:
        return []
    found: list[int | float] = []
    for limit in limits:
        match limit:
            case Ge(bound) | Le(bound):
                found.append(plain(bound))
            case Gt(bound):
                found.append(math.nextafter(bound, math.inf))
            case Lt(bound):
                found.append(math.nextafter(bound, -math.inf))
    assert len(found) == 2, f"a number needs a range with two ends, got {kind}"
    return found


def at_ends(registry: Registry) -> list[tuple[str, str, int | float]]:
    """Name of a part, one of its options, and a value at an end of its range."""
    return [
        (name, option, value)
        for name in registry.names()
        for option, kind in registry.entry(name).valid_options.items()
        for value in ends(kind)
    ]
