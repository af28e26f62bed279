"""What does not go together with a model that processes hold in parts while they train it (FSDP2). No torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from prunegpt.errors import alternatives
from prunegpt.registry import CRITERIA, MASK_MODES
from prunegpt.spec.methods import method_entry
from prunegpt.spec.part import Message
from prunegpt.spec.schema import DistillSpec, FinetuneSpec, GradualSpec

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # element by element
_ARGUMENTS: Mapping[str, str] = {
    "torch_compile": "a compiled model is not sharded here",
    "use_liger_kernel": "its kernels read whole weights",
    "neftune_noise_alpha": "each process would draw the same noise for other rows",
}


def sharding_problems(config: FinetuneSpec, train: Mapping[str, Any], precision: str) -> Iterator[Message]:
    """What is wrong with a training stage that is to be sharded, each with its field; nothing where it is not.

    Args:
        train: the training arguments, those of the trial included.
        precision: as a trial names it.
    """
    if not train.get("fsdp"):
        return
    if precision == "float16":
        yield "train.fsdp", "fsdp trains in bfloat16 or float32, got precision float16. Use bfloat16."
    optimizer = str(train.get("optim", OPTIMIZERS[0]))
    if optimizer not in OPTIMIZERS:
        yield (
            "train.optim",
            f"fsdp needs an optimizer that treats each weight by itself, got {optimizer}. Use "
            f"{alternatives(OPTIMIZERS)}.",
        )
    if str(train.get("eval_strategy", "no")) != "no":
        yield (
            "train.eval_strategy",
            "a sharded model is measured when its stage has ended, got eval_strategy "
            f"{train['eval_strategy']} with fsdp. Remove one; keep_checkpoints keeps models on the way.",
        )
    for name, reason in _ARGUMENTS.items():
        if train.get(name):
            yield f"train.{name}", f"{name} does not go with fsdp: {reason}. Remove one."
    if config.adapter:
        yield "adapter", "an adapter trains few weights of a whole model, which fsdp would shard. Remove one."
    if isinstance(config, DistillSpec) and config.on_policy:
        yield "on_policy", "a student that writes text must be whole, and fsdp shards it. Remove one."
    if config.prune:
        yield from _pruning_problems(config.prune)


def _pruning_problems(prune: GradualSpec) -> Iterator[Message]:
    if method_entry(prune.method).reads_text(training=True):
        known = [name for name in CRITERIA.names() if not method_entry(name).reads_text(training=True)]
        yield (
            "prune.method",
            f"{prune.method} runs whole layers on calibration data when masks change, and fsdp shards them. Use "
            f"{alternatives(known)}, or train without fsdp.",
        )
    if not MASK_MODES.entry(prune.mode).shards:
        known = [name for name in MASK_MODES.names() if MASK_MODES.entry(name).shards]
        yield (
            "prune.mode",
            f"mode {prune.mode} does not say that it works on parts of matrices (shards = True). Use "
            f"{alternatives(known)}, or train without fsdp.",
        )
