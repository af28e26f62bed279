"""Published stages: a folder a key, whole or not there. Whoever needs a stage asks here first."""

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from prunegpt.errors import ModelError
from prunegpt.lm.models import load_model, load_tokenizer, save_model
from prunegpt.pruning.masks import load_masks, save_masks
from prunegpt.records import Evaluation, StageRecord
from prunegpt.root import Root, damage, publishing, seal, write_text
from prunegpt.spec.plan import StagePlan
from prunegpt.stages.base import Pruned, State
from prunegpt.training.job import JOB

MASKS = "masks.safetensors"
TOKENIZER_CACHE = "tokenizers"
_MANY = 50_000_000  # weights of a model that memory is looked through for: 200 MB


@contextmanager
def computing(root: Root, key: str) -> Iterator[None]:
    """Holds the right to compute a key; a second process waits here and then finds it published.

    The folder of the stage's checkpoints is removed once the stage is published.
    """
    work = root.work(key)
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        yield
        if root.is_published(key):
            shutil.rmtree(work, ignore_errors=True)


def record(root: Root, key: str) -> StageRecord:
    """What a published stage came to; `cached` is set, the evaluation is not."""
    found: StageRecord = StageRecord.read(root.stage(key) / "stage.json")
    return found.model_copy(update={"cached": True})


def evaluation(root: Root, key: str, evaluation_key: str) -> Evaluation | None:
    """A stage's measured perplexity, where it was measured that way."""
    if not root.is_measured(key, evaluation_key):
        return None
    found: Evaluation = Evaluation.read(root.evaluation(key, evaluation_key) / "evaluation.json")
    return found


def publish(root: Root, plan: StagePlan, state: State, stage: StageRecord) -> None:
    """Writes a stage whole. A `load` stage keeps no copy of the weights: its source is named in plan.json."""
    with publishing(root.stage(plan.key)) as folder:
        if plan.kind != "load":
            save_model(state.model, state.tokenizer, folder / "model")
        if state.pruned.masks:
            save_masks(
                state.pruned.masks,
                folder / MASKS,
                method=state.pruned.method,
                pattern=state.pruned.pattern,
                target=state.pruned.target,
            )
        job = root.work(plan.key) / JOB
        if job.exists():
            shutil.copy2(job, folder / JOB)
        if plan.training and plan.training.keep_checkpoints:
            for checkpoint in root.work(plan.key).glob("checkpoint-*"):
                shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name, copy_function=_link)
        write_text(folder / "plan.json", plan.model_dump_json(indent=2) + "\n")
        (folder / "evaluations").mkdir()
        stage.model_copy(update={"evaluation": None, "cached": False}).write(folder / "stage.json")
        seal(folder)


def _link(source: str, target: str) -> None:
    """A second name of a file, which costs no space; a copy where the file system has no such thing.

    The first name stays until the stage is published: a disk that is full by then loses no checkpoint.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish_evaluation(root: Root, key: str, measured: Evaluation, windows: np.ndarray[Any, Any]) -> None:
    """Writes one evaluation of a stage: evaluation.json, and windows.npy: float64 [windows, 2], nats and tokens."""
    with publishing(root.evaluation(key, measured.key)) as folder:
        np.save(folder / "windows.npy", windows, allow_pickle=False)
        measured.write(folder / "evaluation.json")
        seal(folder)


def load(root: Root, key: str, *, device: torch.device) -> State:
    """The model of a published stage, in float32, with its masks.

    Raises:
        ModelError: the stage is not published, or its files were changed since.
    """
    if not root.is_published(key):
        raise ModelError(
            f"a stage must be published before it is used, but {key} is not under {root.stages}. "
            f"Run the sweep, or the trial that makes it, first."
        )
    folder = root.stage(key)
    changed = damage(folder, deep=True)
    if changed:
        raise ModelError(
            f"a stage must be as it was published, but {changed[0].file} of {folder} is {changed[0].what}. "
            f"`prunegpt doctor --repair` sets it aside, and the next run computes it again."
        )
    plan = StagePlan.model_validate_json((folder / "plan.json").read_text(encoding="utf-8"))
    if plan.kind == "load":
        return source(root, plan, device=device)
    model = load_model(folder / "model", dtype=torch.float32, device=device)
    tokenizer = load_tokenizer(folder / "model")
    if not (folder / MASKS).exists():
        return State(model, tokenizer, Pruned())
    file = load_masks(folder / MASKS)
    return State(model, tokenizer, Pruned(file.masks, file.method, file.pattern, file.target))


def source(root: Root, plan: StagePlan, *, device: torch.device) -> State:
    """The model a `load` stage names."""
    wanted = plan.model
    model = load_model(
        wanted.source,
        revision=wanted.revision,
        dtype=torch.float32,
        device=device,
        trust_remote_code=wanted.trust_remote_code,
    )
    return State(model, tokenizer(root, plan), Pruned())


def tokenizer(root: Root, plan: StagePlan) -> PreTrainedTokenizerBase:
    """The tokeniser of the model a chain starts from."""
    wanted = plan.model
    return load_tokenizer(
        wanted.tokenizer or wanted.source,
        revision=None if wanted.tokenizer else wanted.revision,
        trust_remote_code=wanted.trust_remote_code,
        cache=root.path / TOKENIZER_CACHE,
    )


def release(weights: int) -> None:
    """Gives the memory of a model of so many weights back that is no longer referred to, where that is worth a look."""
    if weights > _MANY or torch.cuda.is_available():
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
