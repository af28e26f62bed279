"""Opening a model and measuring it from the shell: what `eval` and `prune` share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from pydantic import BaseModel, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.builtin import BUILTIN_TEXTS, is_builtin
from prunegpt.cli.progress import bar
from prunegpt.errors import ModelError, PruneGPTError, listed, untrusted
from prunegpt.lm.device import pick_device, pick_dtype
from prunegpt.planning import harness, hub
from prunegpt.planning.facts import split_files
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.resolve import plan_data
from prunegpt.planning.sources import model_place, weights_on_disk
from prunegpt.planning.texts import check_stride, window_of
from prunegpt.records import Evaluation, TrialResult
from prunegpt.registry import PROTOCOLS
from prunegpt.report.statistics import Interval, perplexity_interval
from prunegpt.report.stored_model import commands_to_run, removed
from prunegpt.root import Root
from prunegpt.spec.plan import PlannedEvaluation
from prunegpt.spec.problems import messages_of
from prunegpt.spec.schema import CalibrationSpec, DataSpec, EvaluateSpec, ModelSpec, PruneSpec
from prunegpt.spec.shrink import ShrinkSpec
from prunegpt.stages import cache
from prunegpt.stages.base import ModelState
from prunegpt.stages.measure import Ruler
from prunegpt.sweep.states import SETTLED

T = TypeVar("T", bound=BaseModel)
TextOf = Callable[[int], EvaluateSpec]  # tokens of a window -> what to measure
_SPLIT: str = EvaluateSpec.model_fields["split"].default
DEFAULT_WINDOW = 1024  # tokens, or the model's positions where it has fewer


def text_of(
    data: str | None, name: str | None, column: str | None, block_size: int | None, split: str | None, **given: Any
) -> TextOf:
    """What to measure on, as the command line says it: the evaluation for a window, where no block size is given.

    `given` are further fields of an evaluation; what is None is as in a spec that does not set it.

    Raises:
        PruneGPTError: a value is out of its range, or the dataset is missing; raised before a model is loaded.
    """
    if data is None:
        raise PruneGPTError(
            "eval needs a dataset or tasks: pass --data with a file, folder, hub id or builtin:text, or --tasks."
        )
    source = DataSpec(path=data, name=name, text_column=column)
    split = split or _usual_split(source)
    given |= {"data": located(source, split), "split": split}

    def of(window: int) -> EvaluateSpec:
        found = checked(EvaluateSpec, {**given, "block_size": block_size})
        if found.stride and found.protocol != "sliding" and found.protocol in PROTOCOLS.builtin_names():
            raise PruneGPTError(
                f"stride must go with protocol sliding; protocol {found.protocol} has none. Set the one, or remove the "
                "other."
            )
        check_stride(found, size := window_of(found, window))
        return found.model_copy(update={"block_size": size})

    of(DEFAULT_WINDOW)
    return of


def tasks_of(tasks: list[str] | None, **given: Any) -> PlannedEvaluation | None:
    """The tasks to score, as the command line says it; None where it names none.

    Raises:
        PruneGPTError: an option is of tasks and there are none, or the harness does not have such a task.
    """
    names = [name.strip() for text in tasks or () for name in text.split(",") if name.strip()]
    fields = {name: value for name, value in given.items() if value is not None}
    if not names:
        if alone := [name for name in fields if name != "batch_size"]:
            option = alone[0].replace("_", "-")
            raise PruneGPTError(f"--{option} is of tasks, and none is named. Name them with --tasks.")
        return None
    spec = checked(EvaluateSpec, {**fields, "tasks": names})
    filled, _, files, _ = harness.planned(spec, None)
    return PlannedEvaluation(evaluate=filled, key="command-line", files=tuple(map(str, files)))


def score_of(state: ModelState, plan: PlannedEvaluation, precision: str) -> Evaluation:
    """The scores of an open model."""
    device = state.model.device
    with bar("scoring") as progress:
        found, _ = Ruler(plan, device, pick_dtype(precision, device), Inputs(None)).measure(
            state.model, state.tokenizer, progress
        )
    return found


def _usual_split(data: DataSpec) -> str:
    """The split that is measured on where nobody says: that of specs, or what there is instead."""
    local = split_files(data)
    if local is not None:
        names = list(local) if len(set(local.values())) > 1 else [_SPLIT]  # a single file serves any
    else:
        text = BUILTIN_TEXTS.get(data.path or "")
        names = list(text.splits) if text else [_SPLIT]
    return next((name for name in (_SPLIT, "test") if name in names), names[0])


def checked(kind: type[T], given: Mapping[str, Any]) -> T:
    """A part of a spec of command-line values; None: as in a spec without it. Problems are as by its reader."""
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        lines = []
        for path, message in messages_of(error, kind, given):
            option = _option(path, given)
            lines.append(f"{option} {message.removeprefix(f'{path[-1]} ')}" if option else message)
        raise PruneGPTError("\n".join(lines)) from error


def _option(path: Sequence[str | int], given: Any) -> str:
    """The option that gave a field: the last name of its path; of a part with fields of its own there is none."""
    for step in path:
        given = given[step] if isinstance(given, Mapping) and step in given else None
    names = [str(step) for step in path if isinstance(step, str)]
    return f"--{names[-1].replace('_', '-')}" if names and not isinstance(given, Mapping) else ""


def located(data: DataSpec, split: str) -> DataSpec:
    """A single local file serves whatever split is asked for; here it is the only one."""
    local = split_files(data.model_copy(update={"train_split": split}))
    if local is None:
        return data
    return data.model_copy(
        update={"path": None, "files": {name: tuple(str(file) for file in files) for name, files in local.items()}}
    )


@dataclass(frozen=True)
class SizedModel:
    """An open model, and what it takes on disk."""

    name: str
    model: PreTrainedModel
    sizes: Mapping[str, int | None]  # parameters, nonzero, bytes


def open_sized(source: str, root: Root, device: str, *, trust_remote_code: bool) -> SizedModel:
    """A model as `open_model` opens it, with its weights counted and the size of their files.

    Raises:
        PruneGPTError: as `open_model`.
    """
    model = open_model(source, root, device, trust_remote_code=trust_remote_code).model
    trial = None if is_builtin(source) else stored_result(source, root)
    stored = root.stage(trial.plan.key) / "model" if trial else Path(source)
    place = stored if stored.exists() else None if is_builtin(source) else trial.plan.model.source if trial else source
    weights = [one.detach() for one in model.parameters()]  # shared ones once
    sizes = {
        "parameters": sum(one.numel() for one in weights),
        "nonzero": sum(int(one.count_nonzero()) for one in weights),
        "bytes": weights_on_disk(ModelSpec(source=str(place)))[0] if place else None,
    }
    return SizedModel(source, model, sizes)


def start_of(source: str, root: Root) -> str | None:
    """The model that the chain of a trial starts from; None of what is no trial."""
    trial = None if is_builtin(source) else stored_result(source, root)
    return trial.plan.model.source if trial else None


def open_model(
    source: str,
    root: Root,
    device: str,
    *,
    trust_remote_code: bool = False,
    as_stored: bool = False,
    precision: str = "float32",
) -> ModelState:
    """A model by hub id, folder, file, built-in name, or SWEEP/TRIAL of the root; with its masks where it has some.

    Args:
        as_stored: whether the weights of a hub's or folder's model keep their dtype; else they are float32.
        precision: that the model is run in, and not changed: the weights of products are held in it.

    Raises:
        PruneGPTError: there is none, or it runs its own code, which is not trusted here.
    """
    where = pick_device(device)
    dtype = pick_dtype(precision, where)
    products = None if dtype == torch.float32 else dtype
    if is_builtin(source):
        return _builtin(source, root, where)
    result = stored_result(source, root)
    if result is None or result.final is None:
        _check_hub(source, root)
        given = ModelSpec(source=source, trust_remote_code=trust_remote_code)
        weights = None if as_stored else torch.float32
        return cache.source(root, given, Inputs(None), device=where, dtype=weights, products=products)
    plan = result.plan
    if plan.model.trust_remote_code and not trust_remote_code:
        raise untrusted(source, [plan.model.source])
    return cache.load(root, result.final.key, plan.model, Inputs.of(plan, root), device=where, products=products)


def stored_result(source: str, root: Root) -> TrialResult | None:
    """The trial of the store whose model is meant; None where the name is of another model.

    Raises:
        PruneGPTError: its last stage is not done, a sweep of the store has no such trial, or it is the name of a sweep
            alone, and of no model of the hub that is here.
    """
    if source.count("/") > 1 or Path(source).exists() or not root.database.exists():
        return None
    from prunegpt.errors import StoreError
    from prunegpt.store import Store

    with Store.open(root, create=False) as store:
        if "/" not in source:
            if source in store.names() and not isinstance(try_to_load_from_cache(source, "config.json"), str):
                trials = listed(f"{source}/{name}" for name in store.names(source))
                raise PruneGPTError(f"a model of a sweep is named SWEEP/TRIAL, got {source}. Its trials: {trials}.")
            return None
        try:
            found = store.result(source)
        except StoreError:
            name, _, trial = source.partition("/")
            sweeps = [sweep.name for sweep in store.sweeps()]
            if name in sweeps:
                raise
            for near in get_close_matches(name, sweeps):
                if trial in (result.name for result in store.results(near)):
                    raise StoreError(f"unknown sweep {name!r}. Did you mean {near + '/' + trial!r}?") from None
            return None  # a model of the hub has such a name too
    if found.final is None or found.plan.foreign:
        why = _unfinished(found, root)
        raise PruneGPTError(f"a trial must have finished before its model is there; {source} {why}")
    if root.lacks_model(found.final.key):
        raise ModelError(removed(found, root))
    return found


def _unfinished(trial: TrialResult, root: Root) -> str:
    """Why a trial has no model, and how it comes to one."""
    if trial.plan.foreign:
        return "is a W&B run, which has no model here."
    if trial.state == "running":
        return f"is running. Watch it with `prunegpt sweep watch {trial.sweep}`."
    return f"is {trial.state}. To run it: {commands_to_run(trial, root, retry=trial.state in SETTLED)}"


def _check_hub(source: str, root: Root) -> None:
    """Raises ModelError where a name may be of a trial that has not run, and the hub has no such model either."""
    if "/" not in source or model_place(source) is not None:
        return
    try:
        hub.commit(source, None)
    except PruneGPTError as error:
        if isinstance(error, hub.Unreachable) and not constants.HF_HUB_OFFLINE:
            return  # loading waits for it longer
        raise ModelError(
            f"{str(error).rstrip('.')}. It is no trial either: {root.path} has no sweep {source.partition('/')[0]!r}. "
            "Run its spec with `prunegpt sweep run`, or name its --root."
        ) from error


def _builtin(source: str, root: Root, device: Any) -> ModelState:
    """The built-in model, trained first where it is not published yet."""
    from prunegpt.cli.options import say
    from prunegpt.stages.graph import Chain

    spec = {
        "name": "builtin",
        "base": {"model": source, "data": {"path": "builtin:text", "block_size": 128}, "evaluate": {"skip": True}},
        "trials": [{"name": "as-it-is"}],
    }
    trial = plan_data(spec, root=root).trials[0]
    if not root.is_published(trial.key):
        say(f"{source} is trained on first use; this takes about a minute and is kept under {root.stages}.")
        Chain(trial, root, lambda *_: None, say=say).run(lambda _: None)
    return cache.load(root, trial.key, trial.model, Inputs.of(trial, root), device=device)


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: TextOf, precision: str
) -> tuple[Evaluation, Interval | None]:
    """The perplexity of an open model, with its 95% bootstrap interval."""
    positions = positions_of(model)
    ruler = Ruler(
        PlannedEvaluation(evaluate=text(min(DEFAULT_WINDOW, positions)), key="command-line"),
        model.device,
        pick_dtype(precision, model.device),
        Inputs(None),
    )
    with bar("measuring") as progress:
        found, windows = ruler.measure(model, tokenizer, progress)
    assert isinstance(windows, np.ndarray)  # no tasks are asked for
    return found, perplexity_interval(windows) if found.finite and found.windows > 1 else None


def positions_of(model: PreTrainedModel) -> int:
    """The tokens that a model takes at most; the usual window where its config has no number."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_WINDOW


def check_prune(
    given: Mapping[str, Any], calibration: str | None, windows: int, mode: str | None, block_size: int | None
) -> PruneSpec:
    """The pruning the command line asks for.

    Raises:
        PruneGPTError: a value is out of its range, or the method needs calibration data.
    """
    from prunegpt.spec.methods import reads_text
    from prunegpt.spec.pruning import prune_problems, refuse

    spec = checked(PruneSpec, given)
    refuse(prune_problems(spec))
    if not reads_text(spec):
        return spec
    what = "repair" if spec.repair else "refine" if spec.refine else f"method {spec.method}"
    return spec.model_copy(update={"calibration": _calibration(what, calibration, windows, mode, block_size)})


def check_shrink(
    given: Mapping[str, Any], calibration: str | None, windows: int, mode: str | None, block_size: int | None
) -> ShrinkSpec:
    """The smaller shape the command line asks for; raises as `check_prune`."""
    spec = checked(ShrinkSpec, given)
    if not spec.reads_text:
        return spec
    return spec.model_copy(update={"calibration": _calibration("a choice", calibration, windows, mode, block_size)})


def _calibration(
    what: str, calibration: str | None, windows: int, mode: str | None, block_size: int | None
) -> CalibrationSpec:
    if calibration is None:
        raise PruneGPTError(f"{what} needs calibration data. Pass --calibration FILE.")
    filled = {
        "windows": windows,
        "mode": mode or None,
        "length": block_size or DEFAULT_WINDOW,
        "data": located(DataSpec(path=calibration), "train"),
        "split": "train",
    }
    return checked(CalibrationSpec, filled)
