"""Tasks of lm-evaluation-harness as a plan sees them: whether they are there, and what stands for them in keys."""

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from prunegpt.errors import DataError, unknown
from prunegpt.planning import hub
from prunegpt.planning.asked import answer
from prunegpt.spec.schema import EvaluateSpec
from prunegpt.spec.yaml import compose, text_of

HARNESS = "lm_eval"
_TASK_FILES = ("*.yaml", "*.yml", "*.py")
_LOCAL = frozenset({"json", "csv", "parquet", "text", "arrow"})  # readers of files, not names of datasets


def version() -> str:
    """The installed release of the harness.

    Raises:
        DataError: there is none, with the command that installs it.
    """
    try:
        return metadata.version(HARNESS)
    except metadata.PackageNotFoundError:
        raise DataError("tasks need lm-evaluation-harness. Install it: pip install 'prunegpt[tasks]'") from None


def planned(
    evaluate: EvaluateSpec, base: Path | None
) -> tuple[EvaluateSpec, dict[str, Any], tuple[Path, ...], list[str]]:
    """Tasks with their folder named absolutely, what decides their scores, the files they read, and what is unchecked.

    Args:
        evaluate: with tasks.
        base: the spec's folder; None where the spec is no file.

    Raises:
        DataError: the harness is not installed, has no such task, or a task's data is not at hand.
    """
    release = version()
    folder = None if evaluate.include_path is None else (base or Path()).joinpath(evaluate.include_path).absolute()
    if folder is not None and not folder.is_dir():
        raise DataError(f"include_path: {folder} is no folder. Give the folder of the task files.")
    question = {"tasks": list(evaluate.tasks or ()), "include_path": str(folder) if folder else None}
    found = answer(json.dumps(question)) or {}
    if problem := found.get("error"):
        raise DataError(f"the tasks cannot be read: {problem}")
    for name, near in found.get("unknown", {}).items():
        broken = "".join(f" The harness cannot read {error}" for error in _broken(folder))
        raise DataError(unknown("task", name, near) + " `lm_eval ls tasks` lists those there are." + broken)
    files = [path for pattern in _TASK_FILES for path in sorted(folder.rglob(pattern))] if folder else []
    files += sorted(
        {Path(name).absolute() for one in found.get("data", ()) for name in one["files"] if "://" not in name}
    )
    unchecked = list(_absent(found.get("data", ())))
    filled = evaluate.model_copy(update={"include_path": question["include_path"]})
    key = {"harness": release, **filled.model_dump(include={"tasks", "num_fewshot", "limit", "precision"})}
    return filled, key, tuple(files), unchecked


def _broken(folder: Path | None) -> Iterator[str]:
    """Task files that are no YAML, with the place: the harness leaves them out without a word."""
    for path in sorted(folder.rglob("*.y*ml")) if folder else []:
        try:
            compose(text_of(path, "a task file"), "a task file")
        except ValueError as error:
            place = f", line {line}" if (line := getattr(error, "line", None)) else ""
            yield f"{path}: {str(error).rstrip('.')}{place}."


def _absent(data: Any) -> Iterator[str]:
    """Data of tasks that is not on this machine, in words, where the hub cannot be asked for it.

    Raises:
        DataError: a file is missing, or the hub has no such dataset.
    """
    for one in data:
        for name in one["files"]:
            if "://" not in name and not Path(name).exists():
                raise DataError(f"task {one['task']} reads {name}, which is not there, seen from {Path.cwd()}.")
        path = one["path"]
        if not path or path in _LOCAL or one["files"] or Path(path).exists():
            continue
        try:
            hub.commit(path, None, "dataset")
        except hub.Unreachable as error:
            if not _prepared(path):
                yield f"data of task {one['task']}: {error}"


def _prepared(path: str) -> bool:
    """Whether `datasets` has made a copy of a dataset on this machine."""
    from datasets import config

    return (Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")).is_dir()
