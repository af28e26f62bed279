"""Published stages: a folder a key, whole or not there. Whoever needs a stage asks here first."""

import gc
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from prunegpt.errors import ModelError
from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.multimodal import processor_files
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.memory import give_back
from prunegpt.planning.checks import vocabulary_problem
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.sources import MASKS, model_files, origin, weights_on_disk
from prunegpt.pruning.masks import load_masks, save_masks
from prunegpt.records import Evaluation, StageRecord
from prunegpt.root import REMOVED, Root, damage, publishing, read_json, seal, sealed, write_text
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.schema import ModelSpec
from prunegpt.stages.base import ModelState, Pruned, RemainingLayers
from prunegpt.stages.measure import check_ledger
from prunegpt.training.job import JOB

LAYERS = "layers.json"
TOKENIZER_CACHE = "tokenizers"
_FILES = Files(None)  # hashes of the models that this process has read: each is verified once while nobody writes to it


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


def publish(root: Root, plan: StagePlan, state: ModelState, stage: StageRecord) -> None:
    """Writes a stage whole. A `load` stage keeps no copy of the weights: its source is named in plan.json."""
    again = root.lacks_model(plan.key)
    with publishing(root.stage(plan.key), replace=again) as folder:
        if plan.kind != "load":
            # A shrink is computed in float32, and changes no weight.
            kept = plan.storage if plan.kind == "shrink" and plan.storage != "float32" else None
            save_model(state.model, state.tokenizer, folder / "model", processor=state.processor, dtype=kept)
        if state.pruned.masks:
            save_masks(
                state.pruned.masks,
                folder / MASKS,
                method=state.pruned.method,
                pattern=state.pruned.pattern,
                target=state.pruned.target,
            )
        if state.layers:
            write_text(folder / LAYERS, json.dumps(asdict(state.layers)) + "\n")
        job = root.work(plan.key) / JOB
        if job.exists():
            shutil.copy2(job, folder / JOB)
        if plan.training and plan.training.keep_checkpoints:
            for checkpoint in root.work(plan.key).glob("checkpoint-*"):
                shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name, copy_function=_link)
        write_text(folder / "plan.json", plan.model_dump_json(indent=2) + "\n")
        (folder / "evaluations").mkdir()
        written = plan.model if plan.kind == "load" else ModelSpec(source=str(folder / "model"))
        size, stored = weights_on_disk(written)
        alone = stage.model_copy(update={"evaluation": None, "also": {}, "cached": False})
        alone.model_copy(update={"bytes": size, "stored": stored}).write(folder / "stage.json")
        seal(folder)
        if again and _same_model(root.stage(plan.key), folder):
            shutil.copytree(root.stage(plan.key) / "evaluations", folder / "evaluations", dirs_exist_ok=True)


def _same_model(before: Path, now: Path) -> bool:
    """Whether a model that was removed and computed again has the same bits; its evaluations are of it then."""
    removed, files = read_json(before / REMOVED), sealed(now) or {}
    return all(list(files.get(name, ())) == content for name, content in removed.items() if name.startswith("model/"))


def _link(source: str, target: str) -> None:
    """A second name of a file, which costs no space; a copy where the file system has no such thing.

    The first name stays until the stage is published: a disk that is full by then loses no checkpoint.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish_evaluation(
    root: Root, key: str, measured: Evaluation, arrays: np.ndarray[Any, Any] | Mapping[str, Any]
) -> None:
    """Writes one evaluation of a stage: evaluation.json, and beside it what it was computed from.

    Of a perplexity windows.npy: float64 [windows, 2], nats and tokens; of tasks documents.npz: TASK/METRIC/FILTER ->
    float64 [documents]; of speed times.npz: `model` and `reference` -> float64 [repeats, 3], seconds.
    """
    with publishing(root.evaluation(key, measured.key)) as folder:
        if isinstance(arrays, Mapping):
            np.savez_compressed(folder / ("times.npz" if measured.speed else "documents.npz"), **arrays)
        else:
            np.save(folder / "windows.npy", arrays, allow_pickle=False)
        measured.model_copy(update={"stage": key}).write(folder / "evaluation.json")
        seal(folder)


def load(
    root: Root,
    key: str,
    model: ModelSpec,
    inputs: Inputs,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    products: torch.dtype | None = None,
) -> ModelState:
    """The model of a published stage, with its masks.

    Args:
        model: where its chain started, as the trial that asks says. A `load` stage keeps no weights: they are read
            there. Code that a model brings is run from there too, never from the root.
        inputs: what that trial may read.
        dtype: of its weights.
        products: see `lm.models.narrow_products`: for a model that is run in it and not changed.

    Raises:
        ModelError: the stage is not published, or its files were changed since.
    """
    if not root.is_published(key):
        raise ModelError(
            f"a stage must be published before it is used; {key} is not under {root.stages}. Run the sweep, or the "
            "trial that makes it, first."
        )
    folder = root.stage(key)
    changed = damage(folder, deep=True, content=_FILES.hash)
    if changed:
        raise ModelError(
            f"a stage must be as it was published; {changed[0].file} of {folder} is {changed[0].what}. `prunegpt "
            "doctor --repair` sets it aside, and the next run computes it again."
        )
    if root.lacks_model(key):
        raise ModelError(
            f"the model of stage {key} was removed to save space; its results are kept. "
            "Have a trial that ends with it computed again with `prunegpt sweep retry SWEEP TRIAL`."
        )
    stored = folder / "model"
    if not stored.is_dir():
        return source(root, model, inputs, device=device, dtype=dtype, products=products)
    given: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "products": products,
        "attn_implementation": model.attention,
    }
    if model.trust_remote_code:
        with inputs.reading(model_files(model)):
            loaded = load_model(stored, **given, **_options(model), code=model.source, causal=True)
        reader = tokenizer(root, model, inputs)
    else:
        loaded = load_model(stored, **given, causal=True)
        reader = load_tokenizer(stored)
    return ModelState(
        loaded, reader, _pruned(folder), processor=processor_files(stored), layers=_layers(folder / LAYERS)
    )


def _layers(file: Path) -> RemainingLayers | None:
    """Which layers are left; None where none went."""
    if not file.exists():
        return None
    found = read_json(file)
    return RemainingLayers(tuple(found["kept"]), found["of"])


def _pruned(folder: Path) -> Pruned:
    """The masks in a folder; none where it has none."""
    if not (folder / MASKS).exists():
        return Pruned()
    file = load_masks(folder / MASKS)
    return Pruned(file.masks, file.method, file.pattern, file.target)


def source(
    root: Root,
    model: ModelSpec,
    inputs: Inputs,
    *,
    device: torch.device,
    dtype: torch.dtype | None = torch.float32,
    products: torch.dtype | None = None,
) -> ModelState:
    """A model as it is stored, with the masks of the file beside its weights, where there is one.

    Args:
        dtype: of its weights; None = that of the files.
        products: as of :func:`load`.

    Raises:
        ModelError: it cannot be loaded, or is not the one that was planned.
        MaskDriftError: its weights are not zero under its masks.
    """
    stored, notes = origin(model)
    with inputs.reading(model_files(model)):
        loaded = load_model(
            model.source,
            dtype=dtype or getattr(torch, stored),
            device=device,
            products=products,
            attn_implementation=model.attention,
            **_options(model),
        )
        pruned, processor = _pruned(Path(model.source)), processor_files(model.source, model.revision)
    state = ModelState(loaded, tokenizer(root, model, inputs), pruned, stored, notes, processor)
    rows = getattr(loaded.get_input_embeddings(), "num_embeddings", None)
    if problem := vocabulary_problem(model.source, state.tokenizer.get_vocab(), rows):
        raise ModelError(problem)
    check_ledger(state)
    return state


def _options(model: ModelSpec) -> dict[str, Any]:
    return {
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "code_revision": model.code_revision,
    }


def tokenizer(root: Root, model: ModelSpec, inputs: Inputs) -> PreTrainedTokenizerBase:
    """The tokeniser of the model a chain starts from."""
    with inputs.reading(model_files(model)):
        return load_tokenizer(
            model.tokenizer or model.source,
            revision=model.tokenizer_revision if model.tokenizer else model.revision,
            trust_remote_code=model.trust_remote_code,
            code_revision=None if model.tokenizer else model.code_revision,
            cache=root.path / TOKENIZER_CACHE,
        )


def release(model: "weakref.ref[Any]") -> None:
    """Frees the memory of a model that nobody names any more, also where something of it refers to itself."""
    if model() is not None:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back()
