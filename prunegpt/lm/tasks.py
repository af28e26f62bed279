"""Scores of tasks by lm-evaluation-harness (Gao et al. 2024, https://doi.org/10.5281/zenodo.12608602), of the model in
memory: prompts, scoring and standard errors are the harness's own.
"""

import contextlib
import copy
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.errors import ModelError, listed
from prunegpt.lm.modes import evaluation_mode
from prunegpt.planning.harness import HARNESS
from prunegpt.records import Evaluation, TaskScore, finite
from prunegpt.spec.schema import EvaluateSpec

_CPU_BATCH = 8  # requests at a time where the batch size is `auto`; on a GPU the harness finds its own


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: EvaluateSpec,
    *,
    key: str,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, dict[str, NDArray[np.float64]]]:
    """The scores of a model, and what each document counts in them: TASK/METRIC/FILTER -> float64 [documents].

    Args:
        model: with its masks applied; its modes and the random generators are left as they were.
        spec: with tasks.
        key: evaluation key of the record.
        device: where the model is.
        progress: gets the requests done, and their total so far.

    Raises:
        ModelError: the harness cannot score this model, or a task's data is not at hand; with its reason.
    """
    from lm_eval import simple_evaluate

    size: int | str = spec.batch_size if spec.batch_size != "auto" or device.type == "cuda" else _CPU_BATCH
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what it says of a model that was passed is not for users
    with evaluation_mode(model), _kept_generators(device):
        try:
            found = simple_evaluate(
                _counting(model, tokenizer, size, progress),
                tasks=list(spec.tasks or ()),
                task_manager=_manager(spec.tasks or (), spec.include_path),
                num_fewshot=spec.num_fewshot,
                limit=spec.limit,
            )
        except Exception as error:  # of whatever kind: tasks hold code and read data of their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"tasks {listed(spec.tasks or ())} could not be scored: {reason}") from error
    assert found is not None  # of one process
    scores = tuple(_scores(found, spec.tasks or ()))
    limited = f", first {spec.limit} documents" if spec.limit else ""
    documents = {one.task: one.documents for one in scores}
    evaluation = Evaluation(
        key=key,
        protocol=f"{HARNESS} {metadata.version(HARNESS)}{limited}",
        perplexity=None,
        loss=None,
        bits_per_byte=None,
        word_perplexity=None,
        tokens=0,
        windows=sum(documents.values()),
        scores=scores,
    )
    return evaluation, dict(_documents(found["samples"]))


def leaves(tasks: Sequence[str], include_path: str | None) -> dict[str, Any]:
    """What the harness knows of tasks, without reading their data.

    Returns:
        `unknown`, the names it does not have with the nearest of those it has; and `data`, for each single task below
        them what it reads: `task`, `path`, `name` and local `files`.
    """
    index = _manager(tasks, include_path).task_index
    found: dict[str, Any] = {"unknown": {}, "data": []}
    open_: list[Any] = list(dict.fromkeys(tasks))
    seen = set()
    while open_:
        one = open_.pop(0)
        config = dict(one) if isinstance(one, Mapping) else {}
        name = str(config.get("task") or config.get("group")) if config else str(one)
        entry = index.get(name)
        if name in seen:
            continue
        seen.add(name)
        if entry is None and not config:
            found["unknown"][name] = get_close_matches(name, index, 3)
            continue
        config = {**((entry.cfg or {}) if entry else {}), **config} if isinstance(one, Mapping) else (entry.cfg or {})
        if entry is not None and entry.kind.name == "TAG":
            open_ += [other for other, given in index.items() if name in given.tags and other != name]
        elif isinstance(below := config.get("task"), list):
            open_ += below
        else:
            files = (config.get("dataset_kwargs") or {}).get("data_files")
            path = config.get("dataset_path")
            found["data"].append(
                {"task": name, "path": path, "name": config.get("dataset_name"), "files": _flat(files)}
            )
    return found


def _flat(files: Any) -> list[str]:
    if isinstance(files, Mapping):
        return [name for below in files.values() for name in _flat(below)]
    return [name for below in files for name in _flat(below)] if isinstance(files, list) else [files] if files else []


def _manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """The harness's index of tasks; its own thousands are read only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(name in own.task_index for name in tasks):
            return own
    return TaskManager(include_path=include_path)


def _counting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int | str,
    progress: Callable[[int, int], None] | None,
) -> Any:
    """The model as the harness takes it; `progress` hears of every answered request."""
    from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):  # type: ignore[misc]
        total = done = 0

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.total += len(requests)
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.total += len(requests)
            return super().generate_until(requests, disable_tqdm=True)

        def add_partial(self, *_: Any) -> None:
            """As a cache of answers it is given each one, and counts them."""
            self.done += 1
            if progress:
                progress(min(self.done, self.total), self.total)

    # The harness gives the tokeniser a padding token.
    made = Counting(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    made.set_cache_hook(made)
    return made


@contextlib.contextmanager
def _kept_generators(device: torch.device) -> Iterator[None]:
    """The harness seeds the global random generators: what comes after it must not depend on that."""
    plain, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(arrays)


def _scores(found: Mapping[str, Any], asked: tuple[str, ...]) -> Iterator[TaskScore]:
    results = {**found["results"], **found.get("groups", {})}
    members = {name for group in found.get("group_subtasks", {}).values() for name in group}
    counts = {name: int(count["effective"]) for name, count in found["n-samples"].items()}
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, kind = name.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, str):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            yield TaskScore(
                task=task,
                metric=metric,
                filter=kind,
                value=finite(float(value)),
                stderr=finite(float(stderr)) if isinstance(stderr, (int, float)) else None,
                documents=counts.get(task) or sum(counts.get(one, 0) for one in found["group_subtasks"].get(task, ())),
                shots=found["n-shot"].get(task),
                version=str(found["versions"].get(task, "")),
                higher_is_better=bool(found["higher_is_better"].get(task, {}).get(metric, True)),
                asked=task in asked or task not in members,
            )


def _documents(samples: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for task, given in samples.items():
        for kind in dict.fromkeys(one["filter"] for one in given):
            ordered = sorted((one for one in given if one["filter"] == kind), key=lambda one: int(one["doc_id"]))
            for metric in dict.fromkeys(name for one in ordered for name in one["metrics"]):
                values = [_number(one.get(metric)) for one in ordered]
                if not all(map(math.isnan, values)):
                    yield f"{task}/{metric}/{kind}", np.asarray(values, dtype=np.float64)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else math.nan
