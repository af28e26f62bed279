import pytest
import torch

from prunegpt.builtin import BUILTIN_MODELS, BUILTIN_TEXTS
from prunegpt.builtin.model import build
from prunegpt.errors import ModelError
from prunegpt.lm.views import block_matrices
from prunegpt.spec.training_arguments import check_argument

NAME = "builtin:tiny-gpt2"


def test_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, other = build(42), build(43)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = build(42)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.transformer.wte.weight, other.transformer.wte.weight)
    assert not first.training


def test_model_is_what_its_entry_says() -> None:
    entry, model = BUILTIN_MODELS[NAME], build(0)
    shapes = {name: tuple(view.matrix.shape) for name, view in block_matrices(model).items()}
    assert list(shapes.items()) == list(entry.matrices.items())
    assert entry.layers == model.config.n_layer == 4
    assert entry.positions == model.config.n_positions
    assert entry.vocabulary == model.get_input_embeddings().weight.shape[0]
    assert model.lm_head.weight is model.transformer.wte.weight


def test_pretraining_is_told_in_names_of_training_arguments() -> None:
    entry = BUILTIN_MODELS[NAME]
    for name, value in entry.pretraining.arguments.items():
        check_argument(name, value)
    assert {"num_train_epochs", "learning_rate", "per_device_train_batch_size"} <= set(entry.pretraining.arguments)
    assert entry.pretraining.block_size <= entry.positions
    assert entry.pretraining.split in BUILTIN_TEXTS[entry.pretraining.text].splits


def test_unknown_model() -> None:
    with pytest.raises(ModelError, match=r"unknown built-in model 'builtin:gpt'\..*Valid: builtin:tiny-gpt2"):
        build(0, "builtin:gpt")
