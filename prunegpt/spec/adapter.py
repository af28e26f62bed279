"""What a spec may say of a low-rank adapter that keeps masks, and what does not go together with it."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from prunegpt.spec.data import Names, many
from prunegpt.spec.names import Matrix, select_names
from prunegpt.spec.part import Message, Part

Also = Literal["biases", "norms", "embeddings", "head"]


class AdapterSpec(Part):
    """LoRA that keeps masks: W + M ⊙ (BA · alpha / rank) is trained, and all but A, B and `also` stays as it is."""

    rank: int = Field(16, ge=0, description="of BA; 0: no low-rank update, `also` alone is trained")
    alpha: float = Field(32.0, gt=0, le=1e6, description="BA is multiplied by alpha / rank")
    targets: Names = Field((), description="tensors that get one; default: all weight matrices of the decoder layers")
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(many)] = Field(
        (), description="indices of decoder layers (default: all)"
    )
    exclude: Names = Field((), description="patterns of tensors to leave alone")
    also: Annotated[tuple[Also, ...], BeforeValidator(many)] = Field(
        ("biases", "norms"), description="what is trained whole: biases, norms, embeddings, head"
    )


def adapter_problems(
    adapter: AdapterSpec, matrices: Sequence[Matrix] | None = None, *, prunes: bool = False
) -> Iterator[Message]:
    """What is wrong with an adapter, each with its field.

    Args:
        matrices: of the model; None where they are not known.
        prunes: whether the same stage chooses masks.
    """
    if prunes:
        yield (
            "",
            "an adapter keeps the masks that the stage begins with; prune of the same stage changes them. Prune in a "
            "stage before it, or remove adapter.",
        )
    if not adapter.rank and not adapter.also:
        yield "rank", "an adapter must train something, got rank 0 and an empty also. Set a rank, or also: [norms]."
    if matrices is None or not adapter.rank:
        return
    names, wrong = select_names(
        matrices,
        targets=adapter.targets,
        layers=adapter.layers,
        exclude=adapter.exclude,
        purpose="adapt",
        hint=", or set rank: 0 to train `also` alone",
    )
    yield from (("", message) for message in wrong)
    chosen = [] if wrong else [matrix for matrix in matrices if matrix.name in set(names)]
    if embedding := next((matrix.name for matrix in chosen if matrix.embedding), None):
        yield (
            "targets",
            f"an adapter is of linear layers and experts, got the embedding {embedding}. Leave it out of targets; "
            "also: [embeddings] trains it whole.",
        )
    smallest = min(chosen, key=lambda matrix: min(matrix.shape), default=None)
    if smallest is not None and adapter.rank > min(smallest.shape):
        yield (
            "rank",
            f"rank must be at most the smaller side of every target, got {adapter.rank} for {smallest.name} "
            f"{list(smallest.shape)}. Choose a lower rank, or leave that tensor out.",
        )
