"""Teachers: does one fit its student, and how it is run."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.distill.head import Head, head_of, usable_head
from prunegpt.distill.states import States, run
from prunegpt.errors import DistillationError


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> int:
    """Makes sure that every token id means the same to both.

    Returns:
        The number of tokens they share. Heads may have more rows, for padding; those are not compared.

    Raises:
        DistillationError: an id stands for different tokens, or one has more tokens.
    """
    common = min(len(student), len(teacher))
    ours, theirs = (tokenizer.convert_ids_to_tokens(range(common)) for tokenizer in (student, teacher))
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            raise DistillationError(
                f"student and teacher must have one vocabulary; id {index} is {mine!r} to the student and {other!r} to "
                "the teacher. Choose a teacher that was trained with the student's tokeniser."
            )
    if len(student) != len(teacher):
        who, longer = ("student", student) if len(student) > len(teacher) else ("teacher", teacher)
        raise DistillationError(
            f"student and teacher must have one vocabulary; they have {len(student)} and {len(teacher)} tokens: id "
            f"{common} is {longer.convert_ids_to_tokens(common)!r} to the {who} and nothing to the other. Add the "
            "missing tokens, or choose another teacher."
        )
    return common


def freeze(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The same model in evaluation mode, without gradients, in another dtype if given."""
    if dtype is not None:
        model = model.to(dtype)
    return model.eval().requires_grad_(False)


class Teacher:
    """A frozen model that is run beside the student.

    Args:
        model: is frozen here; moves to the device of the first batch.
        dtype: the precision it runs in; None leaves its own.
        vocabulary: how many tokens count, from :func:`check_tokenizers`; None: all rows of its head.
    """

    def __init__(
        self, model: PreTrainedModel, *, dtype: torch.dtype | None = None, vocabulary: int | None = None
    ) -> None:
        self.model = freeze(model, dtype)
        self.head: Head = head_of(self.model)
        rows = self.model.get_output_embeddings().weight.shape[0]
        if vocabulary is not None and vocabulary > rows:
            raise DistillationError(
                f"a teacher's head must have a row for every token; the tokeniser has {vocabulary} tokens and the head "
                f"{rows} rows. Load the tokeniser that belongs to the teacher."
            )
        self.vocabulary = vocabulary or rows
        self.counted = vocabulary is not None
        self._tried = False  # whether its head gives its logits

    @property
    def blocks(self) -> int:
        """How many decoder layers it has."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def run(self, inputs: Mapping[str, Any], *, hidden: bool = False, attentions: bool = False) -> States:
        """Its states on `inputs` (input_ids [batch, length], attention_mask), without gradients.

        Raises:
            DistillationError: attention maps are asked for and its attention is not eager.
        """
        device = inputs["input_ids"].device
        if self.model.device != device:
            self.model.to(device)
            self._tried = False
        if not self._tried:
            self.head, self._tried = usable_head(self.model, inputs), True
        with torch.no_grad():
            return run(self.model, inputs, hidden=hidden, attentions=attentions, whole=self.head.weight is None)

    @property
    def common_head(self) -> Head:
        """Its head cut to the tokens that count."""
        return self.head.cut(self.vocabulary)
