"""Dotted paths into plain data: `stages.0.prune.sparsity`."""

from collections.abc import Sequence
from typing import Any

from prunegpt.errors import listed, nearest
from prunegpt.spec.yaml import MAX_DEPTH

EVERY = "*"


def set_path(data: Any, path: Sequence[str], value: Any) -> None:
    """Sets a dotted path in nested dicts and lists, making missing dicts on the way.

    A stage that is written as a plain word, `finetune`, is passed through as the mapping it means, `{finetune: {}}`.
    `*` means every element of a list, or every key of a mapping: `trials.*.model`.

    Raises:
        ValueError: a list on the way has no such element, there is a plain value on the path, or it is too long.
    """
    if len(path) > MAX_DEPTH:
        raise ValueError(f"a path may have {MAX_DEPTH} steps; it has {len(path)}. Check it.")
    if EVERY in path[:-1]:
        place = path.index(EVERY)
        for step in _steps(_reached(data, path[:place]), path[:place]):
            set_path(data, [*path[:place], step, *path[place + 1 :]], value)
        return
    node = data
    for position, step in enumerate(path):
        last = position == len(path) - 1
        key: Any = step
        if isinstance(node, list):
            key = _element(node, step)
        elif not isinstance(node, dict):
            raise ValueError(f"{'.'.join(path[:position])} is a plain value and has no {step!r} in it.")
        if last:
            node[key] = value
        else:
            below = node.get(key) if isinstance(node, dict) else node[key]
            if below is None or below == path[position + 1]:
                node[key] = {} if below is None else {below: {}}
            node = node[key]


def _reached(data: Any, path: Sequence[str]) -> Any:
    node = data
    for step in path:
        node = (
            node.get(step) if isinstance(node, dict) else node[_element(node, step)] if isinstance(node, list) else None
        )
    return node


def _steps(node: Any, path: Sequence[str]) -> list[str]:
    """The steps that `*` means below a node."""
    if isinstance(node, list) and node:
        return [str(index) for index in range(len(node))]
    if isinstance(node, dict) and node:
        return list(node)
    raise ValueError(f"{EVERY} means every element of a list or mapping; {'.'.join(path) or 'the spec'} has none.")


def _element(node: list[Any], step: str) -> int:
    if step.isascii() and step.isdigit():
        if int(step) < len(node):
            return int(step)
        raise ValueError(f"the list has {len(node)} elements, counted from 0; {step} was asked for.")
    names = [str(item["name"]) for item in node if isinstance(item, dict) and item.get("name")]
    for index, item in enumerate(node):
        if isinstance(item, dict) and item.get("name") == step:
            return index
    raise ValueError(f"the list has no element named {step!r}. There are: {listed(nearest(step, names))}.")
