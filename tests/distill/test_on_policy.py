"""Text that the student writes, against a plain loop over whole prefixes; and what is trained on it."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.on_policy import OnPolicy, Pick, draws
from prunegpt.distill.targets import IGNORE
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import DistillationError
from prunegpt.registry import DISTILLATION_LOSSES
from tests.support.families import tiny
from tests.support.running import RunTrials
from tests.support.specs import only, problems_of

VOCABULARY = 60  # of heads with 64 rows
Batch = dict[str, Tensor]


def sharp(family: str) -> Any:
    """A model in float64 and training mode, without dropout, that does not give all tokens alike."""
    model = tiny(family).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5)
    return model


def writer(**fields: Any) -> OnPolicy:
    usual = {"share": 1.0, "new_tokens": 7, "temperature": 0.8, "seed": 3, "ends": (5,), "vocabulary": VOCABULARY}
    return OnPolicy(**{**usual, **fields})


def batch(rows: int = 4, length: int = 12) -> Batch:
    tokens = torch.randint(6, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "labels": tokens.clone(), "block": torch.arange(rows) * 10}


def chats() -> Batch:
    """Responses at 3 to 5 and 8 to 11; from 2 to the end; none (a row that fills up a batch); at 1 and at 10."""
    inputs = batch(4, 12)
    counted = torch.zeros(4, 12, dtype=torch.bool)
    counted[0, 3:6] = counted[0, 8:] = counted[1, 2:] = counted[3, 1] = counted[3, 10] = True
    return {**inputs, "labels": inputs["labels"].where(counted, IGNORE), "responses": torch.tensor(True)}


def by_hand(model: Any, prompt: Tensor, numbers: Tensor, temperature: float, ends: tuple[int, ...]) -> list[int]:
    """A row's continuation, without a cache of keys and values, the distribution added up token by token."""
    row, written = prompt.tolist(), []
    for number in numbers.tolist():
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row])).logits[0, -1, :VOCABULARY]
        token, place = -1, 0.0
        for part in (logits / temperature).softmax(-1).tolist():
            token, place = token + 1, place + part
            if place > number:
                break
        written.append(token)
        row.append(token)
        if token in ends:
            break
    return written


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "mamba"])
@pytest.mark.parametrize("inputs", [batch(), chats()], ids=["text", "responses"])
def test_what_is_written_is_sampled_from_the_student(family: str, inputs: Batch) -> None:
    model, place = sharp(family), {"text": [5, 5, 5, 5], "responses": [3, 2, 0, 1]}
    begins = place["responses" if "responses" in inputs else "text"]
    found = writer().write(model, inputs, step=2)
    assert model.training
    assert {"responses", "own", *inputs} == set(found)
    ended = 0
    for row, begin in enumerate(begins):
        tokens, labels = found["input_ids"][row], found["labels"][row]
        assert torch.equal(tokens[: begin or 12], inputs["input_ids"][row, : begin or 12])
        if not begin:
            assert (labels == IGNORE).all()
            continue
        numbers = draws(3, 2, row * 10, 7)
        written = by_hand(model, tokens[:begin], numbers, 0.8, (5,))
        end = begin + len(written)
        assert tokens[begin:end].tolist() == written
        assert labels.tolist() == [IGNORE] * begin + written + [IGNORE] * (12 - end)
        ended += len(written) < 7
    assert ended < len(begins)


def test_a_text_ends_with_the_token_that_ends_it() -> None:
    """Of a model that gives it often."""
    model = sharp("gpt2")
    found = writer(ends=tuple(range(0, 60, 3)), new_tokens=11).write(model, batch(16), step=0)
    lengths = (found["labels"] != IGNORE).sum(dim=1).tolist()
    assert len(set(lengths)) > 2
    assert min(lengths) < 4
    for row, length in enumerate(lengths):
        last = found["labels"][row, length].item()
        assert last % 3 == 0 or length == 11
        assert all(token % 3 for token in found["labels"][row, 1:length].tolist())


def test_neither_other_rows_nor_the_random_state_nor_the_models_own_preferences_decide() -> None:
    model = sharp("gpt2")
    inputs = batch()
    before = torch.get_rng_state()
    whole = writer().write(model, inputs, step=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    preferred = copy.deepcopy(model.generation_config)
    preferred.update(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0)
    model.generation_config = preferred
    part = writer().write(model, {name: value[2:] for name, value in inputs.items()}, step=1)
    assert model.generation_config is preferred
    assert torch.equal(part["input_ids"], whole["input_ids"][2:])
    assert not torch.equal(writer().write(model, inputs, step=2)["input_ids"], whole["input_ids"])
    assert not torch.equal(writer(seed=4).write(model, inputs, step=1)["input_ids"], whole["input_ids"])


def test_tokens_are_drawn_as_often_as_the_student_gives_them() -> None:
    """Of 20,000 draws within four standard deviations, and none beyond the vocabulary."""
    scores = torch.tensor([[0.5, 2.0, -1.0, 1.0, 9.0]]).repeat(20_000, 1)
    pick = Pick(draws(0, 0, 0, 20_000).unsqueeze(-1), temperature=2.0, vocabulary=4, begin=1)
    left = pick(torch.zeros(20_000, 1, dtype=torch.long), scores)
    assert (left.isfinite().sum(dim=1) == 1).all()
    counts = Counter(left.argmax(dim=1).tolist())
    for token, expected in enumerate((scores[0, :4] / 2.0).softmax(-1).tolist()):
        assert abs(counts[token] / 20_000 - expected) < 4 * (expected * (1 - expected) / 20_000) ** 0.5
    assert counts[4] == 0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0])
def test_the_share_of_steps_is_exact_and_spread(share: float) -> None:
    due = [writer(share=share).is_due(step) for step in range(300)]
    for steps in range(301):
        assert abs(sum(due[:steps]) - share * steps) < 1 + 1e-6
    assert sum(due) == round(300 * share)


@pytest.mark.parametrize("loss", DISTILLATION_LOSSES.builtin_names())
def test_the_loss_of_own_text_is_the_divergence_alone(loss: str) -> None:
    """Of the positions before what was written, by the logits of whole models."""
    student = sharp("gpt2")
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.2)
    bound = DISTILLATION_LOSSES.load(loss).bind(**({"k": 8} if loss == "top_k" else {}))
    objective = DistillationObjective(
        Teacher(teacher, vocabulary=VOCABULARY), bound, hardness=0.3, temperature=2.0, hidden_gain=0.5
    )
    own = writer().write(student, batch(), step=0)
    total, terms = objective(student, own)
    with torch.no_grad():
        ours, theirs = (model(own["input_ids"], output_hidden_states=True) for model in (student, teacher))
    kept = own["labels"][:, 1:] != IGNORE
    mine, other = (found.logits[:, :-1][kept][:, :VOCABULARY] for found in (ours, theirs))
    expected = bound.divergence(mine, other, temperature=2.0).mean()
    if bound is FORWARD_KL:
        whole = [Categorical(logits=logits / 2.0) for logits in (other, mine)]
        torch.testing.assert_close(expected, 4.0 * kl_divergence(*whole).mean())
    assert set(terms) == {"kd_own", "hidden"}
    torch.testing.assert_close(terms["kd_own"], expected)
    torch.testing.assert_close(total.detach(), expected + 0.5 * terms["hidden"])
    for kind, found in (("ours", ours), ("theirs", theirs)):
        assert len(found.hidden_states) == 3, kind


def test_what_a_student_must_be_able_to_do() -> None:
    with pytest.raises(DistillationError, match="new_tokens must leave a prompt of a sequence, got 12 of 12 tokens"):
        writer(new_tokens=12).write(sharp("gpt2"), batch(), step=0)


# -- as a stage ------------------------------------------------------------------------------------------------------


def stage(model: Path, **fields: Any) -> dict[str, Any]:
    return {"distill": {"teacher": {"model": str(model)}, **fields}}


def points(folder: Path, name: str) -> dict[int, float]:
    found = (json.loads(line) for line in (folder / "points.jsonl").read_text(encoding="utf-8").splitlines())
    return {point["step"]: point["value"] for point in found if point["name"] == name and point["stage"] > 0}


def test_own_steps_are_curves_of_their_own(run_trials: RunTrials, tmp_path: Path, model_folder: Path) -> None:
    own = {"share": 0.5, "new_tokens": 8}
    record = run_trials({"name": "t", "stages": [stage(model_folder, on_policy=own)]})["t"]
    assert record.state == "finished", record.trace
    (folder,) = (tmp_path / "runs" / "trials").rglob("t/attempt-1")
    assert list(points(folder, "ce")) == list(points(folder, "kd")) == [1, 3, 5]
    assert list(points(folder, "kd_own")) == [2, 4, 6]
    assert 3 * 2 * 32 < record.stages[-1].train_tokens <= 3 * 2 * 32 + 3 * 2 * 8


@pytest.mark.parametrize("adapter", [{}, {"adapter": {"rank": 4}}], ids=["whole", "adapter"])
def test_the_split_of_a_batch_changes_nothing(
    run_trials: RunTrials, tmp_path: Path, still_model: Path, model_folder: Path, adapter: dict[str, Any]
) -> None:
    """Weights differ by rounding; a token that was sampled otherwise would show."""
    curves = []
    for size, times in ((4, 1), (2, 2)):
        train = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times, "learning_rate": 1e-4}
        distil = stage(model_folder, on_policy={"share": 0.7, "new_tokens": 12}, train=train, **adapter)
        stages = [{"prune": {"sparsity": 0.5}}, distil]
        record = run_trials({"name": "t", "stages": stages}, attempt=times, model=str(still_model))["t"]
        assert record.state == "finished", record.trace
        (folder,) = (tmp_path / "runs" / "trials").rglob(f"t/attempt-{times}")
        curves.append({name: points(folder, name) for name in ("ce", "kd", "kd_own", "grad_norm")})
    for name, curve in curves[0].items():
        assert curve == pytest.approx(curves[1][name], rel=1e-3), name
    assert len(curves[0]["kd_own"]) == 4


@pytest.mark.parametrize(
    ("fields", "path", "told"),
    [
        ({"on_policy": 0.5, "cache": {}}, "on_policy", "a cache holds the teacher's logits of the dataset; on_policy"),
        ({"on_policy": 0.5, "hardness": 0}, "on_policy", "hardness must be above 0, got 0"),
        ({"on_policy": {"new_tokens": 128}}, "new_tokens", "must leave a prompt of a sequence, got 128 of 128 tokens"),
        ({"on_policy": 1.5}, "share", "less than or equal to 1"),
        ({"on_policy": {"temperature": 0}}, "temperature", "greater than or equal to 0.001"),
    ],
)
def test_what_does_not_go_together_is_reported_by_the_plan(fields: dict[str, Any], path: str, told: str) -> None:
    problem = only(problems_of({"name": "t", "stages": [stage(Path("builtin:tiny-gpt2"), **fields)]}))
    assert path in str(problem)
    assert told in str(problem)
