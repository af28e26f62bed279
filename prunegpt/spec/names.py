"""Which tensors a pattern means: exact name, glob, or `re:` expression, on parameter or module names. No torch."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from prunegpt.errors import PruningError, nearest

_SHOWN = 6


def block_index(name: str) -> int | None:
    """The decoder block a tensor lies in: the first number standing alone in its dotted name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means this parameter, by its own name or its module's.

    Raises:
        PruningError: `re:` with something that is no regular expression.
    """
    module = name.removesuffix(".weight")
    if pattern.startswith("re:"):
        try:
            compiled = re.compile(pattern[3:])
        except re.error as error:
            raise PruningError(
                f"re: must be followed by a regular expression, but got {pattern!r}: {error}."
            ) from error
        return bool(compiled.fullmatch(name) or compiled.fullmatch(module))
    return any(candidate == pattern or fnmatchcase(candidate, pattern) for candidate in (name, module))


def select_names(
    names: Sequence[str],
    *,
    targets: Sequence[str] = (),
    layers: Sequence[int] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """The names that targets, layers and exclusions leave, in the order given.

    Raises:
        PruningError: a pattern or a layer index matches nothing, or nothing is left.
    """
    for pattern in (*targets, *exclude):
        if not any(matches(name, pattern) for name in names):
            raise PruningError(_nothing(pattern, names))
    blocks = sorted({index for name in names if (index := block_index(name)) is not None})
    for layer in layers:
        if layer not in blocks:
            valid = f"0 to {blocks[-1]}" if blocks else "none"
            raise PruningError(f"layers must be indices of decoder blocks ({valid}), but got {layer}.")
    chosen = [
        name
        for name in names
        if (not targets or any(matches(name, pattern) for pattern in targets))
        and (not layers or block_index(name) in layers)
        and not any(matches(name, pattern) for pattern in exclude)
    ]
    if not chosen:
        raise PruningError("targets, layers and exclude together must leave a tensor to prune, but leave none.")
    return chosen


def _nothing(pattern: str, names: Iterable[str]) -> str:
    close = nearest(pattern, list(names))[:_SHOWN]
    return f"every pattern must match a tensor, but {pattern!r} matches none. Nearest: {', '.join(close)}."
