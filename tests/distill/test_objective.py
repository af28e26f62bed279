"""What training gets from the objective, against the same formula on the logits of whole models."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F
from transformers import GPT2LMHeadModel, PreTrainedModel

from prunegpt.distill.cache import build_cache
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.losses.top_k import TOP_K
from prunegpt.distill.objective import ChunkedOwnLoss, DistillationObjective
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import DistillationError

FAMILIES = ["tiny_gpt2", "tiny_llama", "tiny_opt"]
Batch = dict[str, Tensor]


class Bent(GPT2LMHeadModel):
    """A model that does more to its logits than a linear output layer does."""

    def forward(self, *, labels: Tensor | None = None, **inputs: Any) -> Any:
        found = super().forward(**inputs)
        found.logits = found.logits + found.logits.sin()
        if labels is not None:
            found.loss = self.loss_function(found.logits, labels, vocab_size=self.config.vocab_size)
        return found


@pytest.fixture
def bent(tiny_gpt2: PreTrainedModel) -> PreTrainedModel:
    model = Bent(tiny_gpt2.config)
    model.load_state_dict(tiny_gpt2.state_dict())
    return model.eval()


@pytest.fixture(params=[*FAMILIES, "bent"])
def student(request: pytest.FixtureRequest) -> PreTrainedModel:
    return steady(request.getfixturevalue(request.param))


def steady(model: PreTrainedModel) -> PreTrainedModel:
    """In training mode, in float64, without dropout, and sharp enough for its text to matter."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model.double().train()


def perturbed(model: PreTrainedModel, size: float = 0.3) -> PreTrainedModel:
    """A copy with other weights: a teacher."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * parameter.std().nan_to_num() * noise)
    return other


def batch(rows: int = 3, length: int = 10, *, padded: bool = True) -> Batch:
    tokens = torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(2))
    inputs = {"input_ids": tokens, "labels": tokens.clone()}
    if padded:
        inputs["attention_mask"] = torch.ones_like(tokens)
        inputs["attention_mask"][1, 6:] = 0
        inputs["labels"][1, 6:] = -100
    return inputs


def model_inputs(inputs: Batch) -> Batch:
    return {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}


def whole(
    student: PreTrainedModel, teacher: PreTrainedModel, inputs: Batch, *, hardness: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula on whole logits, the divergence by torch.distributions."""
    ours = student(**model_inputs(inputs)).logits[:, :-1]  # [batch, length - 1, vocab]
    with torch.no_grad():
        theirs = teacher.eval()(**model_inputs(inputs)).logits[:, :-1]  # [batch, length - 1, vocab]
    labels = inputs["labels"][:, 1:]  # [batch, length - 1]
    kept = labels != -100
    ce = F.cross_entropy(ours[kept], labels[kept])
    p, q = Categorical(logits=theirs[kept] / temperature), Categorical(logits=ours[kept] / temperature)
    kd = temperature**2 * kl_divergence(p, q).mean()
    return (1 - hardness) * ce + hardness * kd, ce.detach(), kd.detach()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By every parameter, tied ones once."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_loss_terms_and_all_gradients_are_those_of_whole_logits(
    student: PreTrainedModel, chunk_tokens: int | None
) -> None:
    teacher = perturbed(student)
    inputs = batch()
    expected, ce, kd = whole(student, teacher, inputs, hardness=0.4, temperature=2.0)
    reference = gradients(student, expected)
    assert len(reference) == len(list(student.parameters()))
    objective = DistillationObjective(
        Teacher(teacher), FORWARD_KL, hardness=0.4, temperature=2.0, chunk_tokens=chunk_tokens
    )
    loss, terms = objective(student, inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms, {"ce": ce, "kd": kd})
    assert kd > 5e-4
    torch.testing.assert_close(gradients(student, loss), reference)


def test_a_student_that_is_its_teacher_has_no_divergence(student: PreTrainedModel) -> None:
    objective = DistillationObjective(Teacher(copy.deepcopy(student)), FORWARD_KL, hardness=1.0, hidden_gain=1.0)
    loss, terms = objective(student, batch())
    assert loss.abs() < 1e-12
    assert terms["kd"].abs() < 1e-12
    assert terms["hidden"] == 0
    assert terms["ce"] > 1
    assert all(slope.abs().max() < 1e-9 for slope in gradients(student, loss).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_hardness_zero_is_training_without_distillation_bit_for_bit(
    family: str, request: pytest.FixtureRequest
) -> None:
    """With dropout, gradient clipping and AdamW, in float32."""
    plain: PreTrainedModel = request.getfixturevalue(family).train()
    distilled = copy.deepcopy(plain)
    objective = DistillationObjective(Teacher(copy.deepcopy(plain)), FORWARD_KL, hardness=0.0)
    assert objective.plain

    def train(model: PreTrainedModel, loss_of: Callable[[Batch], Tensor]) -> None:
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            for _ in range(2):
                loss_of(batch()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    train(plain, lambda inputs: plain(**inputs, num_items_in_batch=46).loss)
    train(distilled, lambda inputs: objective(distilled, {**inputs, "block": torch.arange(3)}, 46)[0])
    for (name, mine), theirs in zip(plain.named_parameters(), distilled.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("num_items", [None, 46])
def test_a_models_own_loss_a_part_at_a_time_is_its_own(
    student: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, num_items: int | None
) -> None:
    inputs, lean = batch(), ChunkedOwnLoss()
    known = {**inputs, "block": torch.arange(len(inputs["labels"]))}
    assert lean(student.train(), known, num_items) is None  # few logits: the model computes them at once
    monkeypatch.setattr("prunegpt.distill.objective.LOGITS", 0)
    assert lean(student.eval(), known, num_items) is None
    found = lean(student.train(), known, num_items)
    if isinstance(student, Bent):  # its logits are more than a product
        assert found is None
        return
    assert found is not None
    torch.manual_seed(0)
    slopes = gradients(student, lean(student, known, num_items))
    torch.manual_seed(0)
    expected = student(**inputs, num_items_in_batch=num_items).loss
    rounded = {"rtol": 1e-4, "atol": 1e-6, "check_dtype": False}  # the model's own is in float32
    torch.testing.assert_close(found, expected, **rounded)
    torch.testing.assert_close(slopes, gradients(student, expected), **rounded)


def test_evaluation_asks_no_teacher(student: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = DistillationObjective(Teacher(perturbed(student)), FORWARD_KL, hardness=0.9, hidden_gain=1.0)
    assert not objective.plain
    monkeypatch.setattr(Teacher, "run", lambda *_, **__: pytest.fail("the teacher ran"))
    loss, terms = objective(student.eval(), batch())
    assert torch.equal(loss, student(**batch()).loss)
    assert list(terms) == ["ce"]
    assert torch.equal(terms["ce"], loss)


def test_micro_batches_add_up_to_the_batch(student: PreTrainedModel) -> None:
    """Rows of 9, 5 and 9 labels, one at a time; the plain mean of their means would be another number."""
    objective = DistillationObjective(Teacher(perturbed(student)), FORWARD_KL, hardness=0.5)
    inputs = batch()
    loss, terms = objective(student, inputs)
    reference = gradients(student, loss)
    rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(3)]
    parts = [objective(student, row, torch.tensor(23)) for row in rows]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    for name, value in terms.items():
        torch.testing.assert_close(sum(part[1][name] for part in parts), value)
    torch.testing.assert_close(gradients(student, sum(part[0] for part in parts)), reference)  # type: ignore[arg-type]
    alone = sum(objective(student, row)[0] for row in rows) / 3
    assert not torch.isclose(alone, loss, rtol=1e-4)  # type: ignore[arg-type]


def test_padding_and_batch_size_change_nothing(student: PreTrainedModel) -> None:
    objective = DistillationObjective(Teacher(perturbed(student)), FORWARD_KL, hardness=0.5, hidden_gain=1.0)
    inputs = batch(padded=False)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    loss, terms = objective(student, inputs)
    more = {
        "input_ids": F.pad(inputs["input_ids"], (0, 4), value=7),
        "labels": F.pad(inputs["labels"], (0, 4), value=-100),
        "attention_mask": F.pad(inputs["attention_mask"], (0, 4)),
    }
    padded = objective(student, more)
    torch.testing.assert_close(padded, (loss, terms))
    twice = objective(student, {name: value.repeat(2, 1) for name, value in inputs.items()})
    torch.testing.assert_close(twice, (loss, terms))


def test_a_cache_gives_what_the_running_teacher_gives(student: PreTrainedModel, tmp_path: Path) -> None:
    teacher = perturbed(student)
    blocks = batch(4, padded=False)["input_ids"].numpy()
    cache = build_cache(tmp_path / "c", Teacher(teacher), blocks, teacher_key="t", data_key="d", k=16)
    inputs: Batch = {"input_ids": torch.from_numpy(blocks[[2, 0]]), "labels": torch.from_numpy(blocks[[2, 0]])}
    expected, terms = DistillationObjective(Teacher(teacher), TOP_K.bind(k=16))(student, inputs)
    reference = gradients(student, expected)
    objective = DistillationObjective(cache, FORWARD_KL)
    with pytest.raises(DistillationError, match="found by the number of a block; the batch has no `block`"):
        objective(student, inputs)
    loss, cached = objective(student, inputs | {"block": torch.tensor([2, 0])})
    # The cache keeps float16.
    torch.testing.assert_close(cached["kd"], terms["kd"], rtol=5e-3, atol=1e-4, check_dtype=False)
    assert torch.equal(cached["ce"], terms["ce"])
    for name, slope in gradients(student, loss).items():
        if reference[name].norm() > 1e-9:  # the derivative by a key's bias is zero but for rounding
            assert F.cosine_similarity(slope.flatten(), reference[name].flatten(), dim=0) > 0.9999, name
    assert objective.notes[0] == cache.describe()
    assert any("its own logits" in note for note in objective.notes) is isinstance(student, Bent)


def test_a_cached_run_has_no_teacher_to_run(student: PreTrainedModel, tmp_path: Path, monkeypatch: Any) -> None:
    blocks = batch(4, padded=False)["input_ids"].numpy()
    cache = build_cache(tmp_path / "c", Teacher(copy.deepcopy(student)), blocks, teacher_key="t", data_key="d", k=4)
    forwards: list[int] = []
    handle = student.get_decoder().register_forward_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr(Teacher, "run", lambda *_, **__: pytest.fail("the teacher ran"))
    tokens = torch.from_numpy(blocks)
    objective = DistillationObjective(cache, FORWARD_KL)
    for passes in (2, 3):  # one more before the first batch, to see what the output layer gives
        objective(student, {"input_ids": tokens, "labels": tokens, "block": torch.arange(4)})
        assert len(forwards) == passes
    handle.remove()


def test_hidden_term_against_whole_states(student: PreTrainedModel) -> None:
    teacher = perturbed(student)
    inputs = batch()
    kept = inputs["attention_mask"].bool()
    ours = student(**model_inputs(inputs), output_hidden_states=True).hidden_states
    with torch.no_grad():
        theirs = teacher.eval()(**model_inputs(inputs), output_hidden_states=True).hidden_states
    pairs = [(1, 2)] if student.config.model_type == "opt" else [(1, 1), (2, 2)]
    layer_map = {mine - 1: other - 1 for mine, other in pairs} if student.config.model_type == "opt" else None
    if student.config.model_type == "opt":  # its last states are projected to another width
        with pytest.raises(DistillationError, match=r"block 0 of the student has 32 and block 1 of the teacher 16"):
            DistillationObjective(Teacher(teacher), FORWARD_KL, hidden_gain=0.5, layer_map=layer_map)(student, inputs)
        pairs, layer_map = [(1, 1)], {0: 0}
    ratios = [
        ((ours[mine] - theirs[other])[kept] ** 2).sum() / (theirs[other][kept] ** 2).sum() for mine, other in pairs
    ]
    hidden = sum(ratios) / len(ratios)
    blend = whole(student, teacher, inputs, hardness=0.5, temperature=2.0)[0]
    reference = gradients(student, blend + 0.5 * hidden)
    objective = DistillationObjective(Teacher(teacher), FORWARD_KL, hidden_gain=0.5, layer_map=layer_map)
    loss, terms = objective(student, inputs)
    torch.testing.assert_close(loss, blend + 0.5 * hidden)
    torch.testing.assert_close(terms["hidden"], hidden.detach())  # type: ignore[union-attr]
    torch.testing.assert_close(gradients(student, loss), reference)
    assert objective.notes[-1].startswith("layers compared: 0 with 0")


def test_inner_terms_of_micro_batches_are_weighted_by_their_labels(student: PreTrainedModel) -> None:
    objective = DistillationObjective(
        Teacher(perturbed(student)), FORWARD_KL, hardness=0.0, hidden_gain=1.0, layer_map={0: 0}
    )
    row = {name: value[1:2] for name, value in batch().items()}  # 5 labels
    whole_loss, whole_terms = objective(student, row)
    loss, terms = objective(student, row, 20)
    torch.testing.assert_close(loss, whole_loss / 4)
    torch.testing.assert_close(terms["hidden"], whole_terms["hidden"] / 4)


def test_attention_term(student: PreTrainedModel) -> None:
    teacher = perturbed(student)
    with pytest.raises(DistillationError, match="eager attention only"):
        DistillationObjective(Teacher(teacher), FORWARD_KL, attention_gain=1.0)
    teacher.set_attn_implementation("eager")
    objective = DistillationObjective(Teacher(teacher), FORWARD_KL, attention_gain=2.0)
    with pytest.raises(DistillationError, match="eager attention only"):
        objective(student, batch())
    student.set_attn_implementation("eager")
    inputs = batch(padded=False)
    ours = student(**model_inputs(inputs), output_attentions=True).attentions
    theirs = teacher(**model_inputs(inputs), output_attentions=True).attentions
    pairs = list(zip(ours, theirs, strict=True))
    expected = sum(((mine - other) ** 2).sum(-1).mean() for mine, other in pairs) / 2
    loss, terms = objective(student, inputs)
    torch.testing.assert_close(terms["attention"], expected.detach())  # type: ignore[union-attr]
    torch.testing.assert_close(loss.detach(), terms["ce"] / 2 + terms["kd"] / 2 + 2 * terms["attention"])
    assert all(slope.isfinite().all() for slope in gradients(student, loss).values())


def test_a_padded_head_is_compared_on_the_tokens_of_the_tokeniser(tiny_gpt2: PreTrainedModel) -> None:
    student = steady(tiny_gpt2)
    teacher = perturbed(student)
    inputs = batch()
    expected = whole(student, teacher, inputs, hardness=1.0, temperature=2.0)[2]
    student.resize_token_embeddings(136)
    with pytest.raises(DistillationError, match=r"teacher has 128 tokens and the student's head 136 rows"):
        DistillationObjective(Teacher(teacher), FORWARD_KL)(student, inputs)
    objective = DistillationObjective(Teacher(teacher, vocabulary=128), FORWARD_KL)
    loss, terms = objective(student, inputs)
    torch.testing.assert_close(terms["kd"], expected)
    torch.testing.assert_close(terms["ce"], student(**inputs).loss.detach(), check_dtype=False)
    assert gradients(student, loss)["transformer.wte.weight"].shape == (136, 32)


def test_autocast_inside_the_models_call_reaches_the_output_layer(tiny_llama: PreTrainedModel) -> None:
    """As accelerate sets it up: autocast wraps the model's forward only."""
    student = steady(tiny_llama).float()
    teacher = perturbed(student)
    exact, _ = DistillationObjective(Teacher(teacher), FORWARD_KL)(student, batch())
    reference = gradients(student, exact)
    AcceleratorState._reset_state(reset_partial_state=True)  # another test of this process may have trained
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(student)
    loss, _ = DistillationObjective(Teacher(teacher), FORWARD_KL)(prepared, batch())
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)  # bfloat16 keeps 8 bits
    for name, slope in gradients(student, loss).items():
        assert slope.dtype == torch.float32
        assert F.cosine_similarity(slope.flatten(), reference[name].flatten(), dim=0) > 0.98, name


def test_distillation_brings_the_student_to_its_teacher(tiny_gpt2: PreTrainedModel) -> None:
    student = steady(tiny_gpt2)
    objective = DistillationObjective(Teacher(perturbed(student, 1.0)), FORWARD_KL, hardness=1.0)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    curve = []
    for _ in range(30):
        loss, terms = objective(student, batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(terms["kd"]))
    assert curve[-1] < 0.2 * curve[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hardness": 0.5}, r"a teacher is needed; there is none for hardness 0.5"),
        ({"hardness": 0.0, "hidden_gain": 1.0}, r"a teacher is needed.*hidden_gain 1.0"),
        ({"hidden_gain": -1.0}, r"gains must not be negative; hidden_gain is -1.0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillationError, match=message):
        DistillationObjective(None, FORWARD_KL, **settings)


def test_a_cache_has_no_states_and_only_its_temperatures(tiny_gpt2: PreTrainedModel, tmp_path: Path) -> None:
    blocks = np.ones((1, 4), dtype=np.int64)
    cache = build_cache(
        tmp_path / "c", Teacher(tiny_gpt2), blocks, teacher_key="t", data_key="d", k=2, temperatures=[1.0]
    )
    with pytest.raises(DistillationError, match=r"a cache holds the teacher's logits only"):
        DistillationObjective(cache, FORWARD_KL, temperature=1.0, hidden_gain=1.0)
    with pytest.raises(DistillationError, match=r"temperatures 1; the loss asks for 2"):
        DistillationObjective(cache, FORWARD_KL, temperature=2.0)
