"""Which dimensions of a model's weights follow a size of its config: found by comparing it with the smaller model.

No list of families: transformers builds the smaller shape, and what is smaller there has to be cut. A matrix whose
inputs became fewer reads neurons, heads or channels; what else became smaller writes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunegpt.errors import ShrinkError
from prunegpt.lm.views import decoder_lists
from prunegpt.shrinking.pieces import Piece

_INSTEAD = "Cut heads and hidden by the same share in one stage, or its depth or its feed-forward size."
CHANNELS = ""  # the group of channels, which all layers share


@dataclass(frozen=True)
class Axis:
    """How the members of a group (neurons, groups of heads, channels, experts) are placed along a dimension.

    Attributes:
        piece, dimension: where.
        group: whose members they are.
        members: how many there are.
        sections: entries of each member in each of the parts that the dimension consists of, one after the other. (3,)
            has three entries a member side by side; (1, 1) has a first entry of all members, and then a second.
        reads: whether a matrix reads its inputs there.
    """

    piece: str
    dimension: int
    group: str
    members: int
    sections: tuple[int, ...]
    reads: bool

    def positions(self, kept: Tensor) -> Tensor:
        """The entries of some members, in the order of the sections: int64 [members kept · entries]."""
        parts, start = [], 0
        for width in self.sections:
            entries = start + kept[:, None] * width + torch.arange(width)  # [kept, width]
            parts.append(entries.flatten())
            start += self.members * width
        return torch.cat(parts)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the entries of each member, of values along the dimension: [members]."""
        parts = torch.split(values, [self.members * width for width in self.sections])
        return torch.stack([part.view(self.members, -1).sum(dim=1) for part in parts]).sum(dim=0)  # [members]

    def layouts(self, queries: int) -> list["Axis"]:
        """The same with each of the sections that are in use, the likely ones first.

        Gates and neurons are two halves, or pairs; heads follow one another, or all queries come before all keys and
        values, or they are halves.

        Args:
            queries: query heads of a group; 0: members are neurons.
        """
        width = sum(self.sections)
        found = [(width,)] + [(width // parts,) * parts for parts in (2, 3) if width % parts == 0]
        if queries > 1 and width % (queries + 2) == 0:
            head = width // (queries + 2)
            found.append((queries * head, head, head))
        if not queries:
            found = found[1:] + found[:1]
        return [replace(self, sections=sections) for sections in found]


def followers(
    old: Mapping[str, Piece], new: Mapping[str, Piece], family: str, what: str, *, sides: int = 1
) -> dict[str, list[int]]:
    """The dimensions that are smaller in the smaller model, by the name of the piece.

    Args:
        sides: of a matrix that may be smaller.

    Raises:
        ShrinkError: there are none, or a matrix follows on both sides: such a size stands for more than one thing.
    """
    if old.keys() != new.keys():
        raise ShrinkError(
            f"a model of another {what} must have the same weights in other sizes; in {family} "
            f"{min(old.keys() ^ new.keys())} is in one of the two only. Its {what} cannot be cut."
        )
    found = {
        name: [place for place, size in enumerate(piece.tensor.shape) if size != new[name].tensor.shape[place]]
        for name, piece in old.items()
    }
    found = {name: places for name, places in found.items() if places}
    if not found:
        raise ShrinkError(
            f"weights must follow the {what} that the config says; none of {family} does: the family takes sizes from "
            f"another field, or divides the hidden size by the heads. {_INSTEAD}"
        )
    if double := next((name for name, places in found.items() if len(places) > sides), None):
        raise ShrinkError(
            f"a weight must follow the {what} on one side; {double} of {family} does on both: the family takes other "
            f"sizes from it. Its {what} cannot be cut by itself. {_INSTEAD}"
        )
    return found


def split(
    old: Mapping[str, Piece], found: Mapping[str, list[int]], hidden: int
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The dimensions of channels and those of heads, where both have become fewer.

    A matrix that is smaller on both sides works on heads. Of those of a module the last one as wide as the hidden
    states, or the only such one, reads heads and writes channels; the others read channels and write heads, as their
    biases do. All else are channels.
    """
    both = [old[name] for name, places in found.items() if len(places) > 1]
    reader = {piece.owner: piece.name for piece in both if piece.tensor.shape[0] == hidden}
    writers = {piece.place for piece in both if piece.name != reader.get(piece.owner)}
    channels, heads = dict[str, list[int]](), dict[str, list[int]]()
    for name, places in found.items():
        if len(places) > 1:
            channels[name], heads[name] = ([1], [0]) if old[name].place in writers else ([0], [1])
        else:
            (heads if old[name].place in writers else channels)[name] = places
    return channels, heads


def channel_axes(old: Mapping[str, Piece], found: Mapping[str, list[int]], hidden: int, family: str) -> list[Axis]:
    """Where the channels of the hidden state are.

    Raises:
        ShrinkError: a weight follows the hidden size without being as wide.
    """
    axes = []
    for name, (dimension,) in found.items():
        width = old[name].tensor.shape[dimension]
        if width != hidden:
            raise ShrinkError(
                f"weights that follow the hidden size must be as wide; {name} of {family} has {width} where the hidden "
                f"size is {hidden}. Its hidden size cannot be cut by itself; cut its depth or its feed-forward size."
            )
        axes.append(Axis(name, dimension, CHANNELS, hidden, (1,), reads=old[name].matrix and dimension == 1))
    return axes


def grouped_axes(
    model: PreTrainedModel,
    old: Mapping[str, Piece],
    found: Mapping[str, list[int]],
    what: str,
    members: int | None,
) -> list[Axis]:
    """Where neurons or heads are: those that are read by one module, or an expert, are a group.

    Args:
        model: whose pieces they are.
        old: its pieces.
        found: as :func:`followers` gives them.
        what: the size, for messages.
        members: of a group; None: as many as its readers have inputs.

    Raises:
        ShrinkError: a weight belongs to no group, or is not a multiple of its members.
    """
    family = type(model).__name__
    readers = [name for name, (dimension,) in found.items() if old[name].matrix and dimension == 1]
    groups = {old[name].owner: members or old[name].tensor.shape[1] for name in readers}
    axes = []
    for name, (dimension,) in found.items():
        piece = old[name]
        group = piece.owner if name in readers else _group_of(piece, groups, _layer_of(model))
        width = piece.tensor.shape[dimension]
        if group is None or width % groups[group]:
            reason = f"{width} entries for {groups[group]} members" if group else "nothing that reads what it writes"
            raise ShrinkError(
                f"weights that follow the {what} must belong to a layer of that many; {name} of {family} has {reason}. "
                f"Its {what} cannot be cut."
            )
        count = groups[group]
        axes.append(Axis(name, dimension, group, count, (width // count,), reads=name in readers))
    return axes


def _group_of(piece: Piece, groups: Mapping[str, int], layer_of: Mapping[str, str]) -> str | None:
    """The group that a piece writes to: that of its expert, the innermost around it, or the only one of its layer."""
    own = f"{piece.place}[{piece.expert}]"
    if own in groups:
        return own
    around = [group for group in groups if piece.place == group or piece.place.startswith(f"{group}.")]
    if around:
        return max(around, key=len)
    same = [group for group in groups if _within(group, layer_of) == _within(piece.place, layer_of)]
    return same[0] if len(same) == 1 else None


def _layer_of(model: PreTrainedModel) -> dict[str, str]:
    """Prefixes of the decoder layers."""
    return {f"{place}.": place for place in decoder_lists(model)}


def _within(place: str, lists: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in lists if place.startswith(prefix)), "")
    return prefix + place.removeprefix(prefix).partition(".")[0] if prefix else place


def by_group(axes: Sequence[Axis]) -> dict[str, list[Axis]]:
    """The axes of each group, in the order of the model."""
    found: dict[str, list[Axis]] = {}
    for axis in axes:
        found.setdefault(axis.group, []).append(axis)
    return found
