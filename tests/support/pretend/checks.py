"""What is checked on the pretend device. Each function is called in a process that has one, and gives JSON."""

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunegpt.distill.cache import build_cache
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.teachers import Teacher
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.views import block_matrices
from prunegpt.planning.resolve import plan_data
from prunegpt.pruning.evidence import evidence
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import enforcer_of, load_method, resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import masks_hash
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.statistics import evaluating
from prunegpt.registry import DISTILLATION_LOSSES, GATHERED
from prunegpt.root import Root
from prunegpt.spec.schedules import Clock
from prunegpt.training import TrainingJob, train
from tests.support.pretend.device import COUNTS, pretending
from tests.support.running import run_attempt, teachers_first

VOCABULARY = 1024


def gpt2(layers: int = 1, width: int = 16) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": 64}
    quiet = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **quiet)).eval()


def llama(layers: int = 2, width: int = 16) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


FAMILIES = {"gpt2": gpt2, "llama": llama}


def one_shot(family: str, method: str, **asked: Any) -> dict[str, Any]:
    """A model pruned on the host and on the device: how many bits of masks differ, how far the weights do."""
    windows = torch.randint(VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))
    here = FAMILIES[family]()
    there = copy.deepcopy(here)
    expected = prune_oneshot(here, block_matrices(here), method=method, calibration=windows, **asked)
    with pretending() as counts:
        there = there.to("cuda")
        counts.reset()
        found = prune_oneshot(there, block_matrices(there), method=method, calibration=windows, **asked)
        weights = {name: weight.cpu() for name, weight in there.named_parameters()}
    return {
        "differ": sum(int((mask != found.masks[name]).sum()) for name, mask in expected.masks.items()),
        "far": max(float((weight - weights[name]).abs().max()) for name, weight in here.named_parameters()),
        "waits": dict(counts.waits),
    }


STEPS = 5
UPDATES = (1, 3)  # the optimizer steps before which masks change


def trained(
    *,
    method: str = "",
    mode: str = "projected",
    fixed: bool = False,
    loss: str = "",
    cached: bool = False,
    gains: Mapping[str, float] | None = None,
    precision: str = "float32",
    arguments: Mapping[str, Any] | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """A training on the host and on the device.

    Args:
        method: that prunes on the way; empty: none.
        fixed: whether half of the weights are pruned from the beginning.
        loss: of a distillation; empty: the model's own.
        cached: whether the teacher's logits are.
        asked: further arguments of `resolve_gradual`.

    Returns:
        How far weights are from those on the host, how many zeros differ, and where the device was waited for: in a
        step as most are, and in one before which masks change.
    """
    here, _ = _train("cpu", method, mode, fixed, loss, cached, gains or {}, precision, arguments or {}, asked)
    with pretending():
        there, waits = _train("cuda", method, mode, fixed, loss, cached, gains or {}, precision, arguments or {}, asked)
    return {
        "far": max(float((weight - there[name]).abs().max()) for name, weight in here.items()),
        "differ": sum(int(((weight == 0) != (there[name] == 0)).sum()) for name, weight in here.items()),
        "steady": dict(waits[UPDATES[0] + 1]),
        "update": dict(waits[UPDATES[1]] - waits[UPDATES[0] + 1]),
    }


def _train(
    device: str,
    method: str,
    mode: str,
    fixed: bool,
    loss: str,
    cached: bool,
    gains: Mapping[str, float],
    precision: str,
    arguments: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], list[Counter[str]]]:
    """The weights that a training ends with, and where each of its steps waited for the device."""
    tokens = numpy.random.default_rng(0).integers(0, VOCABULARY, (8, 16))
    windows = torch.from_numpy(tokens[:2])
    model = gpt2().to(device)
    views = block_matrices(model)
    held = {name: Mask(view.matrix.abs() > view.matrix.abs().median()) for name, view in views.items()} if fixed else {}
    job = None
    if method:
        clock = Clock(UPDATES)
        job = resolve_gradual(views, method=method, clock=clock, final=0.5, initial=0.2, mode=mode, **asked)
    enforcer, pruner = enforcer_of(job, views, held), None
    if job:
        needs = load_method(method).needs - GATHERED

        def statistics(seed: int) -> Any:
            with evaluating(model):
                yield from evidence(model, views, windows, needs=needs, propagate=False, seed=seed)

        pruner = GradualPruner(job, enforcer, statistics=statistics if needs - {"generator"} else None)
    steps: list[Counter[str]] = []

    def stop() -> bool:
        steps.append(Counter(COUNTS.waits))
        COUNTS.waits.clear()
        return False

    with TemporaryDirectory() as folder:
        objective = None
        if loss or gains:
            teacher: Any = Teacher(gpt2().to(device))
            if gains.get("attention_gain"):
                for one in (model, teacher.model):
                    one.set_attn_implementation("eager")
            if cached:
                keys = {"teacher_key": "a", "data_key": "b", "k": 16, "temperatures": (2.0,), "device": device}
                teacher = build_cache(Path(folder) / "cache", teacher, tokens, **keys)
            objective = DistillationObjective(teacher, DISTILLATION_LOSSES.load(loss or "forward_kl"), **gains)
        COUNTS.waits.clear()
        train(
            model,
            Blocks(tokens),
            TrainingJob(
                key="a",
                steps=STEPS,
                per_epoch=2,
                held=masks_hash(held),
                prune=job,
                arguments={
                    "max_steps": STEPS,
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 2,
                    "learning_rate": 1e-3,
                    **arguments,
                },
            ),
            neutral={"logging_steps": 100},
            work=Path(folder),
            device=torch.device(device),
            dtype=getattr(torch, precision),
            emit=lambda *_: None,
            enforcer=enforcer,
            pruner=pruner,
            objective=objective,
            stop=stop,
        )
    return {name: weight.detach().cpu() for name, weight in model.named_parameters()}, steps


def trials(*, files: Mapping[str, str], model: str, trials: list[Any], **base: Any) -> dict[str, Any]:
    """Whole trials, teachers first, on the host and on the device: how the last one ends and what it measures."""
    found: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        with TemporaryDirectory() as folder:
            settings = {
                "model": model,
                "data": {"files": files, "block_size": 32, "max_train_blocks": 16},
                "evaluate": {"max_windows": 2},
                "device": device,
                "precision": "float32",
                "train": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.003},
                **base,
            }
            root = Root(Path(folder) / "runs")
            plan = plan_data({"name": "s", "base": settings, "trials": trials}, root=root)
            with pretending():
                record = [run_attempt(root, one) for one in teachers_first(plan)][-1]
            found[device] = {
                "state": record.state,
                "trace": record.trace,
                "devices": [stage.device for stage in record.stages],
                "losses": [stage.evaluation.loss for stage in record.stages if stage.evaluation],
                "sparsities": [stage.sparsity.pruned for stage in record.stages if stage.sparsity],
            }
    return found


def mixed() -> str:
    """What a product of a tensor on the device and one on the host says."""
    with pretending():
        try:
            torch.ones(2, 2, device="cuda") @ torch.ones(2, 2)
        except RuntimeError as error:
            return str(error)
    return ""
