"""What a shrink means for a model, as far as its config and the sizes of its tensors show. No torch.

One function for each question, asked by the plan of a spec before anything runs, and by the stage that runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prunegpt.errors import ShrinkError
from prunegpt.spec.part import Message
from prunegpt.spec.shapes import depth_of, share_of, shrunk_config, text_part
from prunegpt.spec.shrink import DEPTHS, BudgetSpec, ShrinkSpec

_KINDS = "layers_block_type"  # what each layer is, of families that stack attention and MLP as layers of their own
_BYTES = 2  # of a weight in bfloat16


class Drops(NamedTuple):
    """Which decoder layers go.

    Attributes:
        named: as the spec names them.
        chosen: layers, and how many of them go, by what the calibration data show.
    """

    named: tuple[int, ...] = ()
    chosen: tuple[tuple[tuple[int, ...], int], ...] = ()


def drops_of(spec: ShrinkSpec, config: Mapping[str, Any], sizes: Sequence[int] | None = None, rest: int = 0) -> Drops:
    """Which layers of a model go, or how many of which.

    Args:
        config: of the model, what config.json holds.
        sizes: the parameters of each layer, which a budget needs; see `parameters_of`.
        rest: the parameters outside the layers.

    Raises:
        ShrinkError: the request does not fit the model.
    """
    depth = depth_of(config)
    if depth is None:
        if spec.drop or any(getattr(spec, name) is not None for name in DEPTHS):
            shrunk_config(config, layers=())  # which refuses it
        return Drops()
    if spec.drop:
        if absent := [layer for layer in spec.drop if layer >= depth]:
            raise ShrinkError(f"the layers are numbered 0 to {depth - 1}, got {absent[0]} in drop.")
        if len(set(spec.drop)) == depth:
            raise ShrinkError(f"at least one layer must stay; drop names all {depth}. Leave one out.")
        return Drops(named=tuple(sorted(set(spec.drop))))
    every = tuple(range(depth))
    if spec.layers is not None:
        return Drops(chosen=_fewer("layers", spec.layers, every))
    kinds = [name for name in ("attention", "mlp") if getattr(spec, name) is not None]
    if kinds:
        return Drops(
            chosen=tuple(part for kind in kinds for part in _fewer(kind, getattr(spec, kind), _of_kind(config, kind)))
        )
    if spec.budget and spec.budget.by == "layers" and not spec.budget.measured and sizes is not None:
        count = _within(spec.budget, sizes, rest)
        return Drops(chosen=((every, count),) if count else ())
    return Drops()


def _fewer(what: str, size: int | float, of: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], int], ...]:
    left = share_of(size, len(of))
    if left > len(of):
        raise ShrinkError(f"{what} counts what stays of {len(of)}, got {size}. Ask for fewer.")
    return ((of, len(of) - left),) if left < len(of) else ()


def _of_kind(config: Mapping[str, Any], kind: str) -> tuple[int, ...]:
    """The layers that are attention or MLP alone."""
    text = text_part(config)
    found = tuple(layer for layer, one in enumerate(text.get(_KINDS) or ()) if one == kind)
    if not found:
        raise ShrinkError(
            f"{kind} counts layers that are {kind} alone, as those of Nemotron-H are; every layer of "
            f"{text.get('model_type')} is one shape in its config, and a layer without its {kind} has none. Use "
            "layers, ffn or heads."
        )
    return found


def _within(budget: BudgetSpec, sizes: Sequence[int], rest: int) -> int:
    """How many layers must go, whichever they are, until a budget holds."""
    name, limit = budget.limit
    whole = rest + sum(sizes)
    most = allowed(budget, whole)
    smallest = sorted(sizes)[: len(sizes) - 1]
    gone = 0
    for count in range(len(smallest) + 1):
        if whole - gone <= most:
            return count
        gone += smallest[count] if count < len(smallest) else 0
    raise ShrinkError(
        f"a budget must leave room for one layer; {name} is limited to {limit:g}, and the model has "
        f"{rest + max(sizes):,} parameters with one. Allow more, or make its layers narrower too."
    )


def allowed(budget: BudgetSpec, whole: int) -> float:
    """How many parameters a budget leaves of those before the cut."""
    name, limit = budget.limit
    return limit * whole if isinstance(limit, float) else limit / (_BYTES if name == "memory" else 1)


def shrink_problems(
    spec: ShrinkSpec, config: Mapping[str, Any] | None, sizes: Sequence[int] | None = None, rest: int = 0
) -> Iterator[Message]:
    """What is wrong with a shrink, each with its field; see `drops_of`."""
    if config is None:
        return
    try:
        planned_config(spec, config, sizes, rest)
    except ShrinkError as error:
        yield "", str(error)


def planned_config(
    spec: ShrinkSpec, config: Mapping[str, Any], sizes: Sequence[int] | None = None, rest: int = 0
) -> dict[str, Any]:
    """The config after a shrink, as far as a plan knows it: where layers are chosen while it runs, the first ones stay.

    Raises:
        ShrinkError: the request does not fit the model.
    """
    drops = drops_of(spec, config, sizes, rest)
    gone = set(drops.named)
    for among, number in drops.chosen:
        gone |= set(among[len(among) - number :])
    depth = depth_of(config) or 0
    return shrunk_config(config, layers=[layer for layer in range(depth) if layer not in gone] if gone else None)
