"""Small models, and a training of one without plan, root or text: with masks that move or stay, distilled or not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunegpt.distill.cache import build_cache
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.teachers import Teacher
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.views import block_matrices
from prunegpt.points import Emit
from prunegpt.pruning.evidence import evidence
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import enforcer_of, load_method, resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import masks_hash
from prunegpt.pruning.statistics import evaluating
from prunegpt.registry import DISTILLATION_LOSSES, GATHERED
from prunegpt.spec.schedules import Clock
from prunegpt.training import TrainingJob, train
from prunegpt.training.run import TrainingOutcome

VOCABULARY = 1024
_NONE: Mapping[str, Any] = {}


def gpt2(
    layers: int = 1,
    width: int = 16,
    *,
    heads: int = 2,
    vocabulary: int = VOCABULARY,
    positions: int = 64,
    seed: int = 0,
) -> PreTrainedModel:
    torch.manual_seed(seed)
    shape = {"vocab_size": vocabulary, "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": positions}
    quiet = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **quiet)).eval()


def llama(
    layers: int = 2,
    width: int = 16,
    *,
    inner: int = 0,
    heads: int = 4,
    groups: int = 2,
    vocabulary: int = VOCABULARY,
    positions: int = 64,
    tied: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """A model of the family of Llama; where it is made, and of what dtype, is up to the context."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or 2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def fit(
    model: PreTrainedModel,
    device: str,
    tokens: Any,
    *,
    steps: int,
    batch: int = 2,
    accumulate: int = 2,
    method: str = "",
    updates: tuple[int, ...] = (),
    mode: str = "projected",
    fixed: bool = False,
    teacher: PreTrainedModel | None = None,
    loss: str = "forward_kl",
    cached: int = 0,
    gains: Mapping[str, float] = _NONE,
    precision: str = "float32",
    arguments: Mapping[str, Any] = _NONE,
    emit: Emit = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
    work: Path | None = None,
    logged: int = 100,
    **asked: Any,
) -> TrainingOutcome:
    """Trains a model in place.

    Args:
        tokens: int64 [blocks, length].
        method: that prunes on the way to a half, before the steps `updates`; empty: none.
        fixed: whether half of the weights are pruned from the beginning.
        teacher: that it is distilled from, by `loss` and the gains of inner terms.
        cached: how many of the teacher's logits are, of each token; 0: the teacher runs.
        work: folder of the checkpoints, resumed from where it has one; None: one for this training.
        logged: steps between points of curves.
        asked: further arguments of `resolve_gradual`.
    """
    views = block_matrices(model)
    held = {name: Mask(view.matrix.abs() > view.matrix.abs().median()) for name, view in views.items()} if fixed else {}
    job = None
    if method:
        clock = Clock(updates)
        job = resolve_gradual(views, method=method, clock=clock, final=0.5, initial=0.2, mode=mode, **asked)
    enforcer, pruner = enforcer_of(job, views, held), None
    if job:
        needs = load_method(method).needs - GATHERED

        def statistics(seed: int) -> Any:
            with evaluating(model):
                windows = torch.from_numpy(tokens[:2])
                yield from evidence(model, views, windows, needs=needs, propagate=False, seed=seed)

        pruner = GradualPruner(job, enforcer, statistics=statistics if needs - {"generator"} else None)
    with TemporaryDirectory() as folder:
        objective = None
        if teacher is not None:
            if gains.get("attention_gain"):
                for one in (model, teacher):
                    one.set_attn_implementation("eager")
            target: Any = Teacher(teacher, dtype=getattr(torch, precision) if precision == "bfloat16" else None)
            if cached:
                keys = {"teacher_key": "a", "data_key": "b", "temperatures": (2.0,), "device": device}
                target = build_cache(Path(folder) / "cache", target, tokens, k=cached, **keys)
            objective = DistillationObjective(target, DISTILLATION_LOSSES.load(loss), **gains)
        return train(
            model,
            Blocks(tokens),
            TrainingJob(
                key="a",
                steps=steps,
                per_epoch=max(len(tokens) // (batch * accumulate), 1),
                held=masks_hash(held),
                prune=job,
                arguments={
                    "max_steps": steps,
                    "per_device_train_batch_size": batch,
                    "gradient_accumulation_steps": accumulate,
                    "learning_rate": 1e-3,
                    **arguments,
                },
            ),
            neutral={"logging_steps": logged},
            work=work or Path(folder),
            device=torch.device(device),
            dtype=getattr(torch, precision),
            emit=emit,
            enforcer=enforcer,
            pruner=pruner,
            objective=objective,
            stop=stop,
        )
