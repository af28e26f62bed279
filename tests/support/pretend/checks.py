"""What is checked on the pretend device. Each function is called in a process that has one, and gives JSON."""

import copy
import gc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from prunegpt.distill import objective
from prunegpt.lm.device import SINGLE
from prunegpt.lm.models import narrow_products
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.views import block_matrices
from prunegpt.lm.windows import Windows
from prunegpt.planning.resolve import plan_data
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.refining.base import Refinement
from prunegpt.root import Root, sealed
from prunegpt.spec.repair import RepairSpec
from prunegpt.stages import prune as prune_stage
from tests.support.pretend import device
from tests.support.pretend.device import COUNTS, pretending
from tests.support.running import run_attempt, teachers_first
from tests.support.ties import differing
from tests.support.trained import VOCABULARY, fit, gpt2, llama

FAMILIES = {"gpt2": gpt2, "llama": llama}


def one_shot(family: str, method: str, refine: str = "", **asked: Any) -> dict[str, Any]:
    """A model pruned on the host and on the device: how many bits of masks differ, how far the weights do."""
    asked |= {"refine": Refinement(refine)} if refine else {}
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


def ties(method: str) -> list[str]:
    """What the device prunes in another order than a stable sort."""
    with pretending():
        return differing(method, "cuda")


def streamed(family: str, method: str, storage: str = "float32", **asked: Any) -> dict[str, Any]:
    """A model pruned on the device, and one that stays on the host, of which one layer at a time is on the device.

    Returns:
        Whether masks and weights are the same to the bit, and the most bytes on the device beside what was there.
    """
    windows = torch.randint(VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))
    found, weights, peaks = [], [], []
    for streams in (False, True):
        with pretending() as counts:
            before = counts.now
            model = FAMILIES[family](layers=2).to(getattr(torch, storage))
            model = model if streams else model.to("cuda")
            counts.reset()
            place = torch.device("cuda") if streams else None
            found.append(
                prune_oneshot(
                    model,
                    block_matrices(model),
                    method=method,
                    calibration=windows,
                    place=place,
                    micro_batch=2,
                    **asked,
                )
            )
            peaks.append(counts.peak - before)
            weights.append({name: weight.cpu() for name, weight in model.named_parameters()})
            assert {one.device.type for one in model.parameters()} == {"cpu" if streams else "cuda"}
            del model
    masks = [one.masks for one in found]
    return {
        "same": all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
        and all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items()),
        "peaks": peaks,
    }


STEPS = 5
UPDATES = (1, 3)  # the optimizer steps before which masks change


def trained(*, loss: str = "", cached: bool = False, **asked: Any) -> dict[str, Any]:
    """A training on the host and on the device.

    Args:
        loss: of a distillation; empty: the model's own.
        cached: whether the teacher's logits are.
        asked: further arguments of `fit`.

    Returns:
        How far weights are from those on the host, how many zeros differ, and where the device was waited for: in a
        step as most are, and in one before which masks change.
    """
    one, other = gpt2(), gpt2()
    _fit(one, "cpu", loss, cached, **asked)
    here = {name: weight.detach() for name, weight in one.named_parameters()}
    with pretending():
        waits = _fit(other.to("cuda"), "cuda", loss, cached, **asked)
        there = {name: weight.detach().cpu() for name, weight in other.named_parameters()}
    return {
        "far": max(float((weight - there[name]).abs().max()) for name, weight in here.items()),
        "differ": sum(int(((weight == 0) != (there[name] == 0)).sum()) for name, weight in here.items()),
        "steady": dict(waits[UPDATES[0] + 1]),
        "update": dict(waits[UPDATES[1]] - waits[UPDATES[0] + 1]),
    }


def _fit(model: PreTrainedModel, device: str, loss: str = "", cached: bool = False, **asked: Any) -> list[Counter[str]]:
    """Trains a model; where each step waited for the device."""
    tokens = numpy.random.default_rng(0).integers(0, VOCABULARY, (8, 16))
    steps: list[Counter[str]] = []

    def stop() -> bool:
        steps.append(Counter(COUNTS.waits))
        COUNTS.waits.clear()
        return False

    if loss:
        asked |= {"loss": loss, "teacher": gpt2().to(device), "cached": 16 if cached else 0}
    if "method" in asked:
        asked["updates"] = UPDATES
    COUNTS.waits.clear()
    fit(model, device, tokens, steps=STEPS, stop=stop, **asked)
    return steps


def memory_left(**asked: Any) -> dict[str, int]:
    """Bytes on the device beside the model when a training has returned, and when the model is gone too.

    No garbage is collected meanwhile.
    """
    gc.collect()
    gc.disable()
    try:
        with pretending() as counts:
            before = counts.now
            model = gpt2().to("cuda")
            weights = counts.now
            _fit(model, "cuda", **asked)
            left = counts.now - weights
            del model
            return {"training": left, "model": counts.now - before, "peak": counts.peak - before}
    finally:
        gc.enable()


def peak(
    job: str,
    family: str,
    shape: Mapping[str, Any],
    *,
    windows: int = 4,
    length: int,
    batch: int = 1,
    precision: str = "float32",
    attention: str = "sdpa",
    storage: str = "float32",
    repair: str = "",
    place: bool = False,
    steps: int = 2,
    **asked: Any,
) -> int:
    """The most bytes on the device at a time while a model is there and a job is done with it.

    Args:
        job: evaluation, maybe of a model that is there for it alone, a one-shot method, training or distillation.
        shape: of the model, as its family is made.
        windows: of calibration.
        length: tokens of a window and of a training sequence.
        batch: sequences that are trained or evaluated on at a time.
        attention: how it is computed.
        storage: dtype of the weights.
        repair: scope of the repair of decoder layers after a one-shot method; empty: none.
        place: whether one decoder layer at a time is on the device.
    """
    gc.collect()
    tokens = numpy.random.default_rng(0).integers(0, shape["vocabulary"], (max(windows, 2 * batch), length))
    with pretending() as counts:
        before = counts.now
        model = FAMILIES[family](**shape, positions=length).to(getattr(torch, storage))
        model.set_attn_implementation(attention)
        if job == "evaluation, alone":
            narrow_products(model, getattr(torch, precision))
        model = model if place else model.to("cuda")
        counts.reset()
        if job.startswith("evaluation"):
            text = _side_by_side(tokens[:batch])
            with torch.autocast("cuda", getattr(torch, precision), enabled=precision != "float32"):
                evaluate(model, text, batch_size=batch)
        elif job in ("training", "distillation"):
            teacher = FAMILIES[family](**shape, positions=length).to("cuda") if job == "distillation" else None
            fit(
                model,
                "cuda",
                tokens,
                steps=steps,
                batch=batch,
                accumulate=1,
                precision=precision,
                teacher=teacher,
                **asked,
            )
            del teacher
        else:
            calibration = torch.from_numpy(tokens[:windows])
            asked |= {"repair": RepairSpec(scope=repair, batch_size=batch)} if repair else {}
            asked |= {"place": torch.device("cuda")} if place else {}
            prune_oneshot(model, block_matrices(model), method=job, sparsity=0.5, calibration=calibration, **asked)
        found = counts.peak - before
        del model
    gc.collect()
    return found


def _side_by_side(tokens: Any) -> Windows:
    """Windows of which every token but the first counts; tokens [windows, length]."""
    count, length = tokens.shape
    ones = numpy.ones(count, dtype=numpy.int64)
    return Windows(tokens.ravel(), numpy.arange(count) * length, ones * length, ones, ones, ones, "check")


def without_doubles(check: str, **asked: Any) -> Any:
    """What another check finds where the device has no float64, as Metal has not."""
    device.doubles[0] = False
    SINGLE.add("cuda")
    try:
        found = globals()[check](**asked)
    finally:
        device.doubles[0] = True
        SINGLE.discard("cuda")
    return found


def chunked_loss(**asked: Any) -> Any:
    """What :func:`trained` finds where a model's own loss is computed some tokens at a time on the device."""
    before, objective.LOGITS = objective.LOGITS, 0
    try:
        return trained(**asked)
    finally:
        objective.LOGITS = before


def trials(*, files: Mapping[str, str], model: str, trials: list[Any], **base: Any) -> dict[str, Any]:
    """Whole trials, teachers first, on the host and on the device: how the last one ends and what it measures."""
    found: dict[str, Any] = {}
    for place in ("cpu", "cuda"):
        with TemporaryDirectory() as folder:
            settings = {
                "model": model,
                "data": {"files": files, "block_size": 32, "max_train_blocks": 16},
                "evaluate": {"max_windows": 2},
                "device": place,
                "precision": "float32",
                "train": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.003},
                **base,
            }
            root = Root(Path(folder) / "runs")
            plan = plan_data({"name": "s", "base": settings, "trials": trials}, root=root)
            with pretending():
                record = [run_attempt(root, one) for one in teachers_first(plan)][-1]
            found[place] = {
                "state": record.state,
                "trace": record.trace,
                "devices": [stage.device for stage in record.stages],
                "losses": [stage.evaluation.loss for stage in record.stages if stage.evaluation],
                "sparsities": [stage.sparsity.pruned for stage in record.stages if stage.sparsity],
            }
    return found


def published(
    *, files: Mapping[str, str], model: str, stages: list[Any], streams: list[Any], free: int | None = None
) -> list[dict[str, Any]]:
    """A chain whose prune stages are streamed or not, each time in a root of its own.

    Args:
        streams: values of the field `stream` of all its prune stages.
        free: bytes that the device has, where fewer than there are.

    Returns:
        Keys of the stages, hashes of what each published of its model and masks, whether layers were streamed, and the
        most bytes on the device in each.
    """
    found = []
    for stream in streams:
        seen: list[Any] = []

        def noted(*args: Any, seen: list[Any] = seen, **given: Any) -> Any:
            COUNTS.peak = before = COUNTS.now
            pruned = prune_oneshot(*args, **given)
            seen.append([given["place"] is not None, COUNTS.peak - (0 if given["place"] is None else before)])
            return pruned

        info = torch.cuda.mem_get_info
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(prune_stage, "prune_oneshot", noted)
            if free is not None:
                patch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, free))
            asked = [{"prune": {**one["prune"], "stream": stream}} if "prune" in one else one for one in stages]
            base = {"model": model, "data": {"files": files, "block_size": 32}, "evaluate": {"max_windows": 2}}
            base |= {"device": "cuda", "precision": "float32"}
            root = Root(Path(folder) / "runs")
            spec = {"name": "s", "base": base, "trials": [{"name": "one", "stages": asked}]}
            (plan,) = plan_data(spec, root=root).trials
            with pretending():
                record = run_attempt(root, plan)
            assert record.state == "finished", record.trace
            hashes = [
                [
                    (name, digest)
                    for name, (_, digest) in sorted((sealed(root.stage(one.key)) or {}).items())
                    if "safetensors" in name
                ]
                for one in plan.stages[1:]
            ]
            measured = [one.evaluation and one.evaluation.loss for one in record.stages]
            found.append(
                {"keys": [one.key for one in plan.stages], "hashes": hashes, "pruned": seen, "measured": measured}
            )
        assert torch.cuda.mem_get_info is info
    return found


def mixed() -> str:
    """What a product of a tensor on the device and one on the host says."""
    with pretending():
        try:
            torch.ones(2, 2, device="cuda") @ torch.ones(2, 2)
        except RuntimeError as error:
            return str(error)
    return ""
