"""Text that the student writes while it is distilled: continuations of the prompts of a batch, in place of their text.

Agarwal et al. 2024, "On-policy distillation of language models: learning from self-generated mistakes" (GKD, arXiv
2306.13649): in a share λ of the optimizer steps the divergence is of the student's own text, and there is no
cross-entropy. GKD draws which; here such steps are spread evenly, so that their share is exact.

Each row is sampled from numbers of its own, found from seed, step and the row's number: what is written does not depend
on how a batch is cut, nor on what happened before.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from prunegpt.distill.targets import IGNORE
from prunegpt.errors import DistillationError
from prunegpt.lm.modes import evaluation_mode
from prunegpt.spec.distilling import own_steps

OWN = "own"  # in a batch: its text is the student's


class OnPolicy:
    """Writes the text of some optimizer steps.

    Args:
        share: of the optimizer steps, λ of GKD.
        new_tokens: written at most, for each row. Of a text they take the place of the last tokens of a sequence; of
            responses they begin where the last one begins that leaves room for them, or else the first.
        temperature: that tokens are sampled with.
        seed: of what is drawn.
        ends: tokens that end a text.
        vocabulary: tokens below this id are written, those that the teacher knows.
    """

    def __init__(
        self, *, share: float, new_tokens: int, temperature: float, seed: int, ends: Sequence[int], vocabulary: int
    ) -> None:
        self.share = share
        self.new_tokens = new_tokens
        self.temperature = temperature
        self.seed = seed
        self.ends = tuple(ends)
        self.vocabulary = vocabulary

    def is_due(self, step: int) -> bool:
        """Whether the student writes the text of an optimizer step, counted from 0."""
        return own_steps(self.share, step + 1) > own_steps(self.share, step)

    def write(self, model: PreTrainedModel, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The batch with the student's text; what it has written are its labels, the end included.

        Args:
            model: the student, without wrappers.
            batch: input_ids and labels [batch, length], `block` [batch], and with `responses` the labels of these.
            step: the optimizer step, counted from 0.

        Raises:
            DistillationError: the model cannot generate, or sequences are too short.
        """
        tokens, labels = batch["input_ids"].clone(), torch.full_like(batch["labels"], IGNORE)
        numbers, begins = batch["block"].tolist(), self._begins(batch)
        for begin in sorted(set(begins) - {0}):
            rows = [row for row, place in enumerate(begins) if place == begin]
            count = min(self.new_tokens, tokens.shape[1] - begin)
            drawn = torch.stack([draws(self.seed, step, numbers[row], count) for row in rows])  # [rows, count]
            written = self._continued(model, tokens[rows, :begin], drawn)  # [rows, up to count]
            end = begin + written.shape[1]
            ended = torch.zeros_like(written, dtype=torch.bool)  # [rows, written]
            for token in self.ends:
                ended |= written == token
            earlier = ended.cumsum(dim=1) - ended.long()  # ends before each token
            tokens[rows, begin:end] = written.to(tokens.device)
            labels[rows, begin:end] = written.masked_fill(earlier > 0, IGNORE).to(labels.device)
        flag = torch.tensor(True)
        return {**batch, "input_ids": tokens, "labels": labels, "responses": flag, OWN: flag}

    def _begins(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Where the student continues in each row; 0 where it does not, as in rows that are not trained on."""
        counted, length = batch["labels"] != IGNORE, batch["labels"].shape[1]  # [batch, length]
        if "responses" not in batch:
            if self.new_tokens >= length:
                raise DistillationError(
                    f"new_tokens must leave a prompt of a sequence, got {self.new_tokens} of {length} tokens. Set "
                    "fewer."
                )
            return [(length - self.new_tokens) * row for row in counted.any(dim=1).long().tolist()]
        starts = counted[:, 1:] & ~counted[:, :-1]  # [batch, length - 1]
        found = []
        for row in starts.cpu():
            places = (row.nonzero().flatten() + 1).tolist()
            room = [place for place in places if place + self.new_tokens <= length]
            found.append(room[-1] if room else places[0] if places else 0)
        return found

    def _continued(self, model: PreTrainedModel, prompts: Tensor, drawn: Tensor) -> Tensor:
        """What follows prompts [rows, length] of one length, by numbers [rows, count]: [rows, up to count]."""
        if not model.can_generate():
            raise DistillationError(
                f"on_policy needs a student that generates text; {type(model).__name__} does not. Remove on_policy."
            )
        prompts = prompts.to(model.device)
        pick = Pick(drawn.to(model.device), self.temperature, self.vocabulary, prompts.shape[1])
        with _config(model, drawn.shape[1], self.ends), evaluation_mode(model), parametrize.cached():
            written = model.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), logits_processor=LogitsProcessorList([pick])
            )
        return written[:, prompts.shape[1] :]  # type: ignore[no-any-return]


class Pick(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token of each row: that in whose part of the distribution the row's number falls.

    Args:
        drawn: from 0 to 1, [rows, tokens].
        temperature: divides the logits.
        vocabulary: how many tokens can be picked.
        begin: length of the prompts.
    """

    def __init__(self, drawn: Tensor, temperature: float, vocabulary: int, begin: int) -> None:
        self.drawn = drawn
        self.temperature = temperature
        self.vocabulary = vocabulary
        self.begin = begin

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        exact = torch.float32 if scores.device.type == "mps" else torch.float64
        weights = (scores[:, : self.vocabulary].to(exact) / self.temperature).softmax(dim=-1)
        parts = weights.cumsum(dim=-1)  # [rows, vocabulary]
        number = self.drawn[:, input_ids.shape[1] - self.begin].to(exact)  # [rows]
        place = (number * parts[:, -1]).unsqueeze(-1)  # [rows, 1]
        token = torch.searchsorted(parts, place, right=True).clamp(max=parts.shape[1] - 1)  # [rows, 1]
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def draws(seed: int, step: int, row: int, count: int) -> Tensor:
    """The numbers, [count] from 0 to 1, that a row's tokens are sampled by."""
    digest = hashlib.sha256(f"{seed} {step} {row}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64)


@contextmanager
def _config(model: PreTrainedModel, count: int, ends: Sequence[int]) -> Iterator[None]:
    """Generation without what the model's own config prefers, such as top_p, which would change what is sampled."""
    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,  # what is sampled is all that `Pick` leaves
        max_new_tokens=count,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    try:
        yield
    finally:
        model.generation_config = before
