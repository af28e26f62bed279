"""The space of a search: which of its fields are searched under which choices, and assignments that try its corners.

A *choice* stands for a value: its name where it has one, itself where it is plain, else its JSON. A range's choices are
its numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.errors import listed, nearest
from prunegpt.spec.search import Dimension

Space = Mapping[str, Dimension]
Chosen = Mapping[str, Any]  # path -> choice


def ordered(space: Space) -> tuple[str, ...]:
    """The paths as written, but each after those that its conditions refer to."""
    found: dict[str, None] = {}

    def add(path: str) -> None:
        for condition in space[path].when:
            if condition not in found:
                add(condition)
        found[path] = None

    for path in space:
        if path not in found:
            add(path)
    return tuple(found)


def is_active(space: Space, path: str, chosen: Chosen) -> bool:
    """Whether a path is searched, given the choices of all that its conditions refer to."""
    return all(
        condition in chosen and chosen[condition] in space[condition].meant(given)
        for condition, given in space[path].when.items()
    )


def fits(space: Space, chosen: Mapping[str, Any]) -> bool:
    """Whether choices are ones that this space could have given."""
    active = [path for path in ordered(space) if is_active(space, path, chosen)]
    return set(active) == set(chosen) and all(space[path].holds(chosen[path]) for path in active)


def chosen_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> choice, of values or choices.

    Raises:
        ValueError: a path is not searched, or its value is no choice.
    """
    chosen = {}
    for path, value in values.items():
        if path not in space:
            raise ValueError(f"{path} is not searched. Searched: {listed(nearest(path, space), 8)}.")
        found = space[path].meant((value,))
        if not found:
            raise ValueError(f"{path} must be one of what is searched, got {value!r}.")
        chosen[path] = found[0]
    return chosen


def assigned(space: Space, chosen: Chosen) -> dict[str, Any]:
    """Path -> value, the shorter paths first: fields inside another searched field are set after it."""
    paths = sorted(chosen, key=lambda path: path.count("."))
    return {path: space[path].value_of(chosen[path]) for path in paths}


def probes(space: Space, path: str, choice: Any) -> Iterator[dict[str, Any]]:
    """Assignments with this choice at this path and the others at their first, last and middle choice.

    None where the conditions of the path exclude one another.
    """
    forced = {path: choice}
    open_ = [path]
    while open_:
        for condition, given in space[open_.pop()].when.items():
            if condition not in forced:
                forced[condition] = space[condition].meant(given)[0]
                open_.append(condition)
    for place in (0, -1, None):
        chosen: dict[str, Any] = {}
        for other in ordered(space):
            if is_active(space, other, chosen):
                corners = space[other].corners
                chosen[other] = forced.get(other, corners[len(corners) // 2 if place is None else place])
        if path in chosen:
            yield chosen
