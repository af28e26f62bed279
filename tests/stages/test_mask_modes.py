"""Every mode of masks in the trainer: the same model however a batch is split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from prunegpt.lm.blocks import Blocks
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import enforcer_of, resolve_gradual
from prunegpt.pruning.masks import masks_hash
from prunegpt.registry import MASK_MODES
from prunegpt.spec.schedules import Clock
from prunegpt.training import TrainingJob, train

STEPS = 7


def trained(mode: str, batch: int, folder: Path) -> dict[str, Tensor]:
    """The weights that seven steps of four rows come to, in micro-batches of `batch` rows."""
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 32, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**size, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0))
    views = block_matrices(model)
    arguments = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch, "max_steps": STEPS}
    prune = resolve_gradual(
        views, method="magnitude", clock=Clock.regular(1, 5, 2), final=0.5, schedule="linear", mode=mode
    )
    job = TrainingJob(
        key="k",
        steps=STEPS,
        per_epoch=8,
        arguments={**arguments, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 3},
        held=masks_hash({}),
        prune=prune,
    )
    enforcer = enforcer_of(prune, views, {})
    tokens = torch.randint(32, (32, 8), generator=torch.Generator().manual_seed(1)).numpy()
    train(
        model,
        Blocks(tokens.astype(np.int64)),
        job,
        work=folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
        emit=lambda *_: None,
        enforcer=enforcer,
        pruner=GradualPruner(prune, enforcer),
        evaluate=lambda _: {"loss": 1.0},
    )
    assert {name: int((view.matrix == 0).sum()) for name, view in views.items()} == {
        name: view.matrix.numel() // 2 for name, view in views.items()
    }
    return dict(model.state_dict())


@pytest.mark.parametrize("mode", MASK_MODES.names())
def test_the_split_of_a_batch_changes_nothing(mode: str, tmp_path: Path) -> None:
    whole, split = (trained(mode, batch, tmp_path / str(batch)) for batch in (4, 1))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, split[name], rtol=1e-3, atol=1e-5)
        assert torch.equal(tensor != 0, split[name] != 0), name
