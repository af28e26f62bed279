"""Which tensors a pattern means: exact name, glob, or `re:` expression, on parameter or module names. No torch."""

import re
from collections.abc import Sequence
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
                f"what follows re: must be a regular expression, but {pattern!r} is not: {error}. "
                f"Escape its special signs, or write a glob without re:."
            ) from error
        return bool(compiled.fullmatch(name) or compiled.fullmatch(module))
    return any(candidate == pattern or fnmatchcase(candidate, pattern) for candidate in (name, module))


def select_names(
    blocks: Sequence[str],
    others: Sequence[str] = (),
    *,
    targets: Sequence[str] = (),
    layers: Sequence[int] = (),
    exclude: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """The names that targets, layers and exclusions leave, read as `prunegpt.lm.views.select` reads them.

    Args:
        blocks: weight matrices inside the decoder blocks.
        others: embeddings, the head, projections: meant only where a target names one or matches no block matrix.

    Returns:
        The names, and what is wrong: each pattern or layer index that matches nothing, or that nothing is left.
    """
    names, inside = [*blocks, *others], set(blocks)
    problems: list[str] = []

    def hits(pattern: str) -> set[str]:
        try:
            found = {name for name in names if matches(name, pattern)}
        except PruningError as error:
            problems.append(str(error))
            return set()
        if not found:
            close = ", ".join(nearest(pattern.removeprefix("re:"), names)[:_SHOWN])
            problems.append(f"every pattern must match a tensor, but {pattern!r} matches none. Nearest: {close}.")
        return found

    chosen = inside if not targets else set()
    for pattern in targets:
        found = hits(pattern)
        chosen = chosen | ((found & inside or found) if is_pattern(pattern) else found)
    known = sorted({index for name in blocks if (index := block_index(name)) is not None})
    for layer in layers:
        if layer not in known:
            valid = f"{known[0]} to {known[-1]}" if known else "none"
            problems.append(f"layers must be indices of decoder blocks ({valid}), but got {layer}.")
    if layers:
        chosen = {name for name in chosen & inside if block_index(name) in layers}
    for pattern in exclude:
        chosen = chosen - hits(pattern)
    if not chosen and not problems:
        problems.append(
            f"targets, layers and exclude must leave a tensor to prune, but targets {list(targets)}, layers "
            f"{list(layers)} and exclude {list(exclude)} together leave none. Widen targets or shorten exclude."
        )
    return [name for name in names if name in chosen], problems


def is_pattern(text: str) -> bool:
    """Whether a text may mean several names."""
    return text.startswith("re:") or any(sign in text for sign in "*?[")
