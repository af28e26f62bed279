"""Which tensors a pattern means: exact name, glob, or `re:` expression, on parameter or module names. No torch."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import regex

from prunegpt.errors import PruningError, nearest

_SHOWN = 6
_SHOWN_SIGNS = 120  # of a pattern in a message
_PATIENCE = 0.2  # seconds that a pattern may take over one name
_LAST = re.compile(r"\[([^\[\]]*)\]$")  # what brackets at the end of a glob hold: a set of characters, or an expert
# Ends a pattern of `exclude` that names what is not pruned by default, and what not every model has.
_APART = re.compile(r"(lm_head|embed_out|embed_tokens|wte|wpe|gate|router)(\\?\.weight)?[$)]*(\.\*)?$")


class Matrix(NamedTuple):
    """A weight matrix of a model, as far as its name shows.

    Attributes:
        name: of the parameter.
        block: index of its decoder layer; None outside the blocks.
        shape: [out, in], however it is stored.
        others: further parameter names of the same tensor, such as that of a tied head.
        embedding: whether its inputs are numbers of tokens or positions.
        default: whether it is pruned where no targets are named; routers are not.
    """

    name: str
    block: int | None
    shape: tuple[int, int]
    others: tuple[str, ...] = ()
    embedding: bool = False
    default: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.others)


def parameter_of(name: str) -> str:
    """The parameter that holds a matrix: of experts, such as `…experts.down_proj[3]`, it holds those of all."""
    return name.rpartition("[")[0] if name.endswith("]") else name


def by_parameter(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares of matrices as those of the parameters that hold them: of experts, which are equally large, the mean.

    A model may have tens of thousands of experts: curves and pictures are of their parameters.
    """
    return {name: sum(found) / len(found) for name, found in of_parameters(shares).items()}


def of_parameters(shares: Mapping[str, float]) -> dict[str, list[float]]:
    """Shares of matrices, together where one parameter holds the matrices."""
    together: dict[str, list[float]] = {}
    for name, share in shares.items():
        together.setdefault(parameter_of(name), []).append(share)
    return together


def block_index(name: str) -> int | None:
    """The decoder layer of a tensor: the first number in its dotted name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means this matrix, by its own name, its module's or, of experts, that of all together.

    At the end of a glob, `[3]` and `[*]` are an expert and all of them, as names and `prunegpt doctor` have it.

    Raises:
        PruningError: `re:` with something that is no regular expression, or takes forever.
    """
    candidates = {name, name.removesuffix(".weight"), parameter_of(name)}
    if pattern.startswith("re:"):
        try:
            compiled = regex.compile(pattern[3:])
            return any(compiled.fullmatch(each, timeout=_PATIENCE) for each in candidates)
        except TimeoutError as error:
            raise PruningError(
                f"a regular expression must match a name within {_PATIENCE:g} seconds; {pattern[:_SHOWN_SIGNS]!r} does "
                "not. Repeat no group that is itself repeated, or write a glob without re:."
            ) from error
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise PruningError(
                f"what follows re: must be a regular expression; {pattern[:_SHOWN_SIGNS]!r} is not: {error}. Escape "
                "its special characters, or write a glob without re:."
            ) from error
    globs = {pattern, _LAST.sub(r"[[]\1]", pattern)} if name.endswith("]") else {pattern}
    return any(each == pattern or any(fnmatchcase(each, glob) for glob in globs) for each in candidates)


def select_names(
    matrices: Sequence[Matrix],
    *,
    targets: Sequence[str] = (),
    layers: Sequence[int] = (),
    exclude: Sequence[str] = (),
    purpose: str = "prune",
    hint: str = "",
) -> tuple[list[str], list[str]]:
    """The weight matrices that a request names: of a loaded model, or of one that only its files are known of.

    Args:
        matrices: of the model, in order.
        targets: exact module or parameter names, globs, or `re:` patterns that must match a whole name. Empty means
            all matrices of the decoder layers but routers. A glob or `re:` pattern means those first, and
            routers, embeddings, the head and projections only where it matches none of them: `*` never means the
            embeddings, `*wte*` does, and so does an exact name.
        layers: indices of the decoder layers to keep; empty means all.
        exclude: names and patterns of the same kinds to leave out; of a head, embedding or router there may be none.
        purpose: of the matrices, in messages.
        hint: what to do where none is left, beside naming others.

    Returns:
        The names, and what is wrong: each pattern or layer index that matches nothing, or that nothing is left.
    """
    inside = {matrix.name for matrix in matrices if matrix.block is not None and matrix.default}
    exact = {name: matrix.name for matrix in matrices for name in matrix.names}  # of which there may be thousands
    problems: list[str] = []

    def hits(pattern: str, *, optional: bool = False) -> set[str]:
        if pattern in exact:
            return {exact[pattern]}
        try:
            found = {matrix.name for matrix in matrices if any(matches(name, pattern) for name in matrix.names)}
        except PruningError as error:
            problems.append(str(error))
            return set()
        if not found and not optional:
            names = [matrix.name for matrix in matrices]
            close = ", ".join(nearest(pattern.removeprefix("re:"), names)[:_SHOWN])
            problems.append(f"every pattern must match a tensor; {pattern!r} matches none. Nearest: {close}.")
        return found

    chosen = inside if not targets else set()
    for pattern in targets:
        found = hits(pattern)
        chosen = chosen | ((found & inside or found) if is_pattern(pattern) else found)
    known = sorted({matrix.block for matrix in matrices if matrix.block is not None})
    for layer in layers:
        if layer not in known:
            valid = f"{known[0]} to {known[-1]}" if known else "none"
            problems.append(f"layers must be indices of decoder layers ({valid}), got {layer}.")
    if layers:
        chosen = chosen & {matrix.name for matrix in matrices if matrix.block in set(layers)}
    for pattern in exclude:
        chosen = chosen - hits(pattern, optional=_APART.search(pattern) is not None)
    if not chosen and not problems:
        problems.append(
            f"targets, layers and exclude must leave a tensor to {purpose}; targets {list(targets)}, layers "
            f"{list(layers)} and exclude {list(exclude)} together leave none. Widen targets or shorten exclude{hint}."
        )
    return [matrix.name for matrix in matrices if matrix.name in chosen], problems


def first_matches(names: Sequence[str], patterns: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The first pattern that matches each name, so that exceptions are written before rules.

    Returns:
        Name -> pattern, of the names that one matches; and what is wrong: each pattern that is none, matches nothing,
        or only names that match earlier ones.
    """
    decided: dict[str, str] = {}
    problems: list[str] = []
    for pattern in patterns:
        try:
            hits = [name for name in names if matches(name, pattern)]
        except PruningError as error:
            problems.append(str(error))
            continue
        fresh = [name for name in hits if name not in decided]
        decided.update(dict.fromkeys(fresh, pattern))
        if not hits:
            modules = [name.removesuffix(".weight") for name in names]
            close = ", ".join(nearest(pattern.removeprefix("re:"), modules)[:_SHOWN])
            problems.append(
                f"every name in the sparsities must match a pruned tensor; {pattern!r} matches none. Nearest names: "
                f"{close}."
            )
        elif not fresh:
            problems.append(
                f"the first name that matches a tensor decides its sparsity, so {pattern!r} decides nothing: all its "
                f"{len(hits)} tensors match an earlier one. Move it before the wider ones, or take it out."
            )
    return decided, problems


def is_pattern(text: str) -> bool:
    """Whether a text may mean several names."""
    return text.startswith("re:") or any(sign in text for sign in "*?[")
