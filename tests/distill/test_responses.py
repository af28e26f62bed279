"""`loss_on: responses`: rows and tokens of a prompt contribute nothing, to no term of no loss."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.teachers import Teacher
from prunegpt.registry import DISTILLATION_LOSSES

OPTIONS: dict[str, dict[str, Any]] = {"jensen_shannon": {"weight": 0.3}, "top_k": {"k": 8}}
LOSSES = DISTILLATION_LOSSES.builtin_names()
GAINS = {"ce and kd": {}, "with inner terms": {"hidden_gain": 0.7, "attention_gain": 0.4}}
Batch = dict[str, Tensor]


@pytest.fixture
def student(tiny_gpt2: Any) -> Any:
    for module in tiny_gpt2.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tiny_gpt2.set_attn_implementation("eager")
    return tiny_gpt2.double().train()


def teacher_of(student: Any) -> Teacher:
    model = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return Teacher(model)


def batch(rows: int, counted: int) -> Batch:
    """Rows of prompts; of the first `counted` the tokens 3 to 5 and 9 are responses."""
    tokens = torch.randint(2, 128, (rows, 12), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(tokens, -100)
    for place in (3, 4, 5, 9):
        labels[:counted, place] = tokens[:counted, place]
    return {"input_ids": tokens, "labels": labels, "responses": torch.tensor(True)}


def gradients(
    objective: DistillationObjective, student: Any, inputs: Batch, tokens: int
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    student.zero_grad()
    loss, terms = objective(student, inputs, torch.tensor(tokens))
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in student.named_parameters() if weight.grad is not None}
    return loss.detach(), terms, found


def objective_of(student: Any, loss: str, gains: dict[str, float]) -> DistillationObjective:
    bound = DISTILLATION_LOSSES.load(loss).bind(**OPTIONS.get(loss, {}))
    return DistillationObjective(teacher_of(student), bound, hardness=0.6, temperature=2.0, **gains)


def test_every_loss_is_tried() -> None:
    assert all(OPTIONS[loss] for loss in LOSSES if DISTILLATION_LOSSES.entry(loss).options)


@pytest.mark.parametrize("gains", GAINS.values(), ids=GAINS.keys())
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_prompts_alone_give_zero(loss: str, gains: dict[str, float], student: Any) -> None:
    objective = objective_of(student, loss, gains)
    total, terms, found = gradients(objective, student, batch(3, 0), tokens=8)
    assert total == 0
    assert {*terms} >= {"ce", "kd"}
    assert all(value == 0 for value in terms.values())
    assert all((grad == 0).all() for grad in found.values())


@pytest.mark.parametrize("gains", GAINS.values(), ids=GAINS.keys())
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_prompts_change_nothing_for_others(loss: str, gains: dict[str, float], student: Any) -> None:
    objective = objective_of(student, loss, gains)
    alone = {name: value[:2] if value.ndim else value for name, value in batch(5, 2).items()}
    one = gradients(objective, student, alone, tokens=8)
    two = gradients(objective, student, batch(5, 2), tokens=8)
    exact = {"rtol": 1e-12, "atol": 1e-15}  # products over more rows sum in another order
    torch.testing.assert_close(two[0], one[0], **exact)
    for name, value in one[1].items():
        assert value > 0
        torch.testing.assert_close(two[1][name], value, **exact)
    for name, grad in one[2].items():
        torch.testing.assert_close(two[2][name], grad, **exact)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_terms_are_those_of_the_positions_before_a_response(loss: str, student: Any) -> None:
    """Each position alone, by its logits and states: what a prompt's own positions hold is in no term."""
    objective = objective_of(student, loss, {"hidden_gain": 1.0})
    inputs = batch(1, 1)
    _, terms, _ = gradients(objective, student, inputs, tokens=4)
    before = torch.tensor([2, 3, 4, 8])
    with torch.no_grad():
        ours, theirs = (
            model(inputs["input_ids"], output_hidden_states=True)
            for model in (student, objective.teacher.model)  # type: ignore[union-attr]
        )
    divergence = DISTILLATION_LOSSES.load(loss).bind(**OPTIONS.get(loss, {})).divergence
    kd = divergence(ours.logits[0, before], theirs.logits[0, before], temperature=2.0)
    nats = -ours.logits[0, before].log_softmax(-1)[torch.arange(4), inputs["input_ids"][0, before + 1]]
    torch.testing.assert_close(terms["ce"], nats.mean())
    torch.testing.assert_close(terms["kd"], kd.mean())
    pairs = list(zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True))
    square = [(a[0, before] - b[0, before]).square().sum() / b[0, before].square().sum() for a, b in pairs]
    torch.testing.assert_close(terms["hidden"], torch.stack(square).mean())


def test_fine_tuning_counts_responses_alone(student: Any) -> None:
    inputs = {name: value for name, value in batch(4, 2).items() if name != "responses"}
    loss = student(**inputs, num_items_in_batch=torch.tensor(8)).loss
    logits = student(inputs["input_ids"]).logits.log_softmax(-1)
    places = (inputs["labels"] != -100).nonzero()
    nats = [-logits[row, place - 1, inputs["labels"][row, place]] for row, place in places.tolist()]
    torch.testing.assert_close(loss.double(), torch.stack(nats).sum() / 8)
