"""The training loss of a distillation stage.

    loss = (1 - hardness) CE + hardness KD + hidden_gain · SquareHead + attention_gain · attention

Of text that the student has written itself (`on_policy.py`) it is KD and the inner terms alone.

It decides who computes the loss. With hardness 0 and no gains, and whenever the model is in evaluation mode, that is
the model itself, as without distillation, bit for bit: no teacher has a part in what an evaluation reports.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING

from prunegpt.distill.cache import TopKCache
from prunegpt.distill.chunked import chunked_losses
from prunegpt.distill.head import OWN_LOGITS, Head, head_of, own_logits_note, usable_head
from prunegpt.distill.inner import attention_loss, hidden_loss
from prunegpt.distill.losses.base import DistillationLoss
from prunegpt.distill.on_policy import OWN, OnPolicy
from prunegpt.distill.states import States, check_eager, run, unwrap
from prunegpt.distill.targets import IGNORE, HiddenTargets, Targets, shift_labels
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import DistillationError
from prunegpt.spec.distilling import match_layers

NOT_FOR_THE_MODEL = ("labels", "block", "seen", "responses", OWN)
LOGITS = 2**27  # of a micro-batch, from which on they are computed a part at a time: 1.6 GB with their gradients


class DistillationObjective:
    """Computes the loss of a micro-batch.

    Args:
        teacher: a model that is run, or its cached top-k logits; None with hardness 0 and no gains.
        loss: the divergence of the outputs, its options bound.
        hardness: the weight of KD, 0 to 1; that of CE is the rest.
        temperature: divides the logits in KD.
        hidden_gain: the weight of the hidden-state term.
        attention_gain: the weight of the attention term.
        layer_map: student layer -> teacher layer, counted from 0; None: see `spec.distilling.match_layers`.
        attention_map: the same of the attention term, where it is another.
        chunk_tokens: positions whose logits exist at a time; None: see `chunked.chunked_losses`.
        on_policy: writes the text of some optimizer steps; None: the student writes none.

    Raises:
        DistillationError: the parts do not fit each other.
    """

    def __init__(
        self,
        teacher: Teacher | TopKCache | None,
        loss: DistillationLoss,
        *,
        hardness: float = 0.5,
        temperature: float = 2.0,
        hidden_gain: float = 0.0,
        attention_gain: float = 0.0,
        layer_map: Mapping[int, int] | None = None,
        attention_map: Mapping[int, int] | None = None,
        chunk_tokens: int | None = None,
        on_policy: OnPolicy | None = None,
    ) -> None:
        self.teacher = teacher
        self.loss = loss
        self.hardness = hardness
        self.temperature = temperature
        self.hidden_gain = hidden_gain
        self.attention_gain = attention_gain
        self.layer_map = layer_map
        self.attention_map = attention_map
        self.chunk_tokens = chunk_tokens
        self.on_policy = on_policy
        self._known: PreTrainedModel | None = None  # the student whose fit was checked
        self._own_logits = False  # whether its output layer does not give its logits
        self._layers: dict[int, int] = {}
        self._check()

    @property
    def plain(self) -> bool:
        """Whether the model's own loss is all there is."""
        return self.hardness == 0 and self.hidden_gain == 0 and self.attention_gain == 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record of a run should say of it."""
        notes = []
        if isinstance(self.teacher, TopKCache):
            notes.append(self.teacher.describe())
        own = [self._known] if self._own_logits else []
        if isinstance(self.teacher, Teacher) and self.teacher.head.weight is None:
            own.append(self.teacher.model)
        notes += dict.fromkeys(own_logits_note(model) for model in own if model is not None)
        if self._layers:
            notes.append(
                "layers compared: " + ", ".join(f"{mine} with {other}" for mine, other in self._layers.items())
            )
        return tuple(notes)

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, and its terms for the curves.

        Args:
            model: the student, as the trainer wraps it.
            inputs: input_ids and labels [batch, length], attention_mask [batch, length] where there is padding, and
                `block` [batch], the blocks' numbers, for a cache. With `responses` the inner terms too compare only the
                positions that predict a label. With `own` the text is the student's.
            num_items_in_batch: how many labels the optimizer step has over all its micro-batches; losses and terms then
                add up over them. None: this micro-batch alone.

        Returns:
            The loss, and detached ce and kd in nats per token, or of its own text kd_own, and where they have a gain,
            hidden and attention.

        Raises:
            DistillationError: teacher and student do not fit.
        """
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.flatten()[0].to(inputs["labels"].device)
        if self.plain or not model.training:
            return _plain(model, inputs, num_items_in_batch)
        student = unwrap(model)
        given = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        wanted = {"hidden": self.hidden_gain > 0, "attentions": self.attention_gain > 0}
        self._look_at(student)
        theirs = self.teacher.run(given, **wanted) if isinstance(self.teacher, Teacher) else None
        if self._known is None:
            self._own_logits = usable_head(student, given).weight is None
            self._known = student
        ours = run(model, given, **wanted, whole=self._own_logits)
        head = OWN_LOGITS if self._own_logits else head_of(student)  # which FSDP2 has whole after the model's call
        labels, own = shift_labels(inputs["labels"]), OWN in inputs  # [batch · length]
        device = ours.last.device.type
        with torch.autocast(device, ours.autocast, enabled=ours.autocast is not None):
            blend = chunked_losses(
                ours.last.flatten(0, 1),
                head,
                labels,
                self._targets(theirs, inputs),
                loss=self.loss,
                hardness=1.0 if own else self.hardness,
                temperature=self.temperature,
                chunk_tokens=self.chunk_tokens,
                denominator=num_items_in_batch,
                vocabulary=self._vocabulary,
                compact=True if "responses" in inputs or own else None,
            )
        total, terms = blend.total, {"kd_own": blend.kd} if own else {"ce": blend.ce, "kd": blend.kd}
        if theirs is not None and (self.hidden_gain or self.attention_gain):
            here = (labels != IGNORE).sum()
            share = here / num_items_in_batch if num_items_in_batch is not None else torch.ones_like(blend.ce)
            mask = (labels != IGNORE).view_as(inputs["labels"]) if "responses" in inputs else None  # [batch, length]
            for name, gain, value in self._inner_terms(
                ours, theirs, given.get("attention_mask") if mask is None else mask
            ):
                total = total + gain * share * value
                terms[name] = (share * value).detach()
        return total, terms

    def _inner_terms(self, ours: States, theirs: States, mask: Tensor | None) -> list[tuple[str, float, Tensor]]:
        terms = []
        if self.hidden_gain:
            terms.append(("hidden", self.hidden_gain, hidden_loss(ours.hidden, theirs.hidden, self._layers, mask)))
        if self.attention_gain:
            value = attention_loss(ours.attentions, theirs.attentions, self.attention_map or self._layers, mask)
            terms.append(("attention", self.attention_gain, value))
        return terms

    def _targets(self, theirs: States | None, inputs: Mapping[str, Any]) -> Targets | None:
        if self.hardness == 0:
            return None
        if isinstance(self.teacher, TopKCache):
            if "block" not in inputs:
                raise DistillationError(
                    "cached teacher logits are found by the number of a block; the batch has no `block`. Train on "
                    "numbered blocks, or run the teacher."
                )
            return self.teacher.lookup(inputs["block"], self.temperature, inputs["input_ids"], inputs.get("seen"))
        assert isinstance(self.teacher, Teacher)
        assert theirs is not None
        return HiddenTargets(theirs.last.flatten(0, 1), self.teacher.common_head)

    @property
    def _vocabulary(self) -> int | None:
        if isinstance(self.teacher, TopKCache):
            return self.teacher.meta.vocabulary
        return self.teacher.vocabulary if self.teacher else None

    def _look_at(self, student: PreTrainedModel) -> None:
        """What can be checked of a student before it runs."""
        if student is self._known:
            return
        self._known = None
        vocabulary, rows = self._vocabulary, student.get_output_embeddings().weight.shape[0]
        counted = isinstance(self.teacher, TopKCache) or (self.teacher is not None and self.teacher.counted)
        if vocabulary is not None and (vocabulary > rows or (vocabulary < rows and not counted)):
            raise DistillationError(
                f"student and teacher must have one vocabulary; the teacher has {vocabulary} tokens and the student's "
                f"head {rows} rows. Where heads are padded, give the teacher the number of tokens that "
                "check_tokenizers counts."
            )
        if isinstance(self.teacher, Teacher) and (self.hidden_gain or self.attention_gain):
            depth = int(student.config.get_text_config().num_hidden_layers)
            self._layers = match_layers(depth, self.teacher.blocks, self.layer_map)

    def _check(self) -> None:
        if self.hidden_gain < 0 or self.attention_gain < 0:
            raise DistillationError(
                f"gains must not be negative; hidden_gain is {self.hidden_gain} and attention_gain "
                f"{self.attention_gain}."
            )
        if self.teacher is None and not self.plain:
            raise DistillationError(
                f"a teacher is needed; there is none for hardness {self.hardness}, hidden_gain {self.hidden_gain} and "
                f"attention_gain {self.attention_gain}. Give one, or set all three to 0."
            )
        if isinstance(self.teacher, TopKCache):
            if self.hidden_gain or self.attention_gain:
                raise DistillationError(
                    "a cache holds the teacher's logits only; hidden_gain or attention_gain asks for its states. Set "
                    "them to 0, or run the teacher (no cache)."
                )
            self.teacher.check_temperature(self.temperature)
        if isinstance(self.teacher, Teacher) and self.attention_gain:
            check_eager(self.teacher.model)


class ChunkedOwnLoss:
    """A model's own cross-entropy with its logits some tokens at a time, for micro-batches that have many.

    The model itself makes all of them at once, which takes 12 bytes a logit: 10 GB of GPT-2 small at 16 × 1,024 tokens.
    Loss and gradients are those of the model but for the order of sums.
    """

    def __init__(self) -> None:
        self._head: Head | None = None  # of the model, once it was tried

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any) -> Tensor | None:
        """The loss of a micro-batch, as :class:`DistillationObjective` is given one; None where the model computes it.

        That is where it has few logits, or a loss or logits of its own, or is compiled as a whole.
        """
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        if not isinstance(inner, PreTrainedModel) or not model.training:
            return None
        vocabulary = inner.config.get_text_config().vocab_size
        if inputs["input_ids"].numel() * vocabulary <= LOGITS or not _has_usual_loss(inner):
            return None
        given = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        if self._head is None:
            self._head = usable_head(inner, given)
        if self._head.weight is None:
            return None
        states = run(model, given)
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.flatten()[0].to(states.last.device)
        with torch.autocast(states.last.device.type, states.autocast, enabled=states.autocast is not None):
            found = chunked_losses(
                states.last.flatten(0, 1),
                head_of(inner),
                shift_labels(inputs["labels"]),
                denominator=num_items_in_batch,
            )
        total: Tensor = found.total
        return total


def _has_usual_loss(model: PreTrainedModel) -> bool:
    """Whether a model's loss is the shifted cross-entropy of its logits and nothing else."""
    balanced = getattr(model.config.get_text_config(), "output_router_logits", False)
    return model.loss_function is LOSS_MAPPING["ForCausalLM"] and not balanced


def _plain(
    model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's own loss, called as transformers.Trainer calls it."""
    given = {name: value for name, value in inputs.items() if name not in ("block", "seen", "responses")}
    if num_items_in_batch is not None:
        given["num_items_in_batch"] = num_items_in_batch
    loss: Tensor = model(**given).loss
    return loss, {"ce": loss.detach()}
