"""A model as pieces that are cut by themselves: each weight matrix [out, in], each expert's vector, and all else."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from prunegpt.lm.views import all_matrices


@dataclass(frozen=True, eq=False)
class Piece:
    """A tensor of a model, or the part of one that belongs to an expert. It shares storage with the model.

    Attributes:
        name: as masks are named: that of the parameter or buffer, of an expert with [its index].
        tensor: a weight matrix as [out, in], however its module stores it; anything else as it is.
        place: the module that holds it.
        expert: whose it is, of a parameter that holds several.
        matrix: whether it is multiplied by; embeddings are not.
    """

    name: str
    tensor: Tensor
    place: str
    expert: int | None = None
    matrix: bool = False

    @property
    def owner(self) -> str:
        """What holds the matrices that work together: the module around a layer, or an expert."""
        return self.place.rpartition(".")[0] if self.expert is None else f"{self.place}[{self.expert}]"


def pieces(model: PreTrainedModel) -> dict[str, Piece]:
    """All parameters and stored buffers of a model, by the name of the piece; what is tied appears once."""
    found: dict[str, Piece] = {}
    seen: set[int] = set()
    experts: dict[str, int] = {}  # modules that hold several experts in one parameter
    for name, view in all_matrices(model).items():
        place = name.removesuffix(f"[{view.expert}]").rpartition(".")[0]
        found[name] = Piece(name, view.matrix, place, view.expert, not isinstance(view.module, nn.Embedding))
        seen.add(id(view.parameter))
        if view.expert is not None:
            experts[place] = view.matrices
    stored = model.state_dict().keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in seen or name not in stored:
            continue
        place = name.rpartition(".")[0]
        if place in experts and tensor.dim() > 1 and tensor.shape[0] == experts[place]:
            for index in range(tensor.shape[0]):
                own = f"{name}[{index}]"
                found[own] = Piece(own, tensor.data[index], place, index)
        else:
            found[name] = Piece(name, tensor.data, place)
    return found
