"""Roots with every kind of trial, written through the store as a coordinator would; nothing is ever computed."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunegpt.points import Point
from prunegpt.records import EARLY_STOP, AttemptRecord, Evaluation, SparsityRecord, StageRecord
from prunegpt.root import Root
from prunegpt.spec.plan import StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.schema import (
    DataSpec,
    DistillSpec,
    EvaluateSpec,
    FinetuneSpec,
    ModelSpec,
    PruneSpec,
    TableSpec,
)
from prunegpt.store import Store

BLOCKS = 6
DENSE = 60.5  # perplexity
STEPS = 200
TOKENS = 2048  # a step
_MODEL = ModelSpec(source="builtin:tiny-gpt2")
_DATA = DataSpec(path="builtin:text", block_size=128)
_MEASURED = "4e5a1d"
_PROTOCOL = "blocks/validation/128/tiny-gpt2"
_TENSORS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_WINDOWS = 40
_VERSIONS = {"prunegpt": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"}


@dataclass(frozen=True)
class Wanted:
    """A trial as the tests want it."""

    name: str
    chain: tuple[StagePlan, ...]
    perplexity: float
    sparsity: float = 0.0
    layers: tuple[int, ...] = tuple(range(BLOCKS))
    state: str = "finished"
    swept: Mapping[str, Any] | None = None
    reason: str = ""
    error: str = ""
    group: str = ""  # default: the name
    seed: int = 42
    search: str = ""
    number: int = 0
    also: Mapping[str, Evaluation] | None = None  # what else its last stage was evaluated on
    parameters: int = 940_000


SEARCH: Mapping[str, Any] = {
    "name": "found-{learning_rate}",
    "stages": ["finetune", "prune"],
    "search": {
        "space": {
            "stages.1.prune.sparsity": {"low": 0.5, "high": 0.9},
            "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "stages.1.prune.method": ["magnitude", "wanda"],
        },
        "objectives": ["perplexity", "sparsity"],
        "n_trials": 16,
    },
}


def load() -> StagePlan:
    return StagePlan(key="10ad" + "0" * 20, kind="load", model=_MODEL)


def finetune(parent: StagePlan, key: str = "f17e") -> StagePlan:
    return StagePlan(
        key=key.ljust(24, "0"), kind="finetune", parent=parent.key, model=_MODEL, finetune=FinetuneSpec(), data=_DATA
    )


def prune(parent: StagePlan, key: str, **fields: Any) -> StagePlan:
    return StagePlan(key=key.ljust(24, "0"), kind="prune", parent=parent.key, model=_MODEL, prune=PruneSpec(**fields))


def distill(parent: StagePlan, teacher: StagePlan, key: str) -> StagePlan:
    spec = DistillSpec(teacher="finetuned", hardness=0.5, temperature=2.0)
    return StagePlan(
        key=key.ljust(24, "0"),
        kind="distill",
        parent=parent.key,
        teacher=teacher.key,
        model=_MODEL,
        distill=spec,
        data=_DATA,
    )


def study() -> list[Wanted]:
    """Pruning by two methods, distillation, one layer at a time; one trial each that failed, diverged, runs, waits."""
    base = load()
    tuned = finetune(base)
    found = [Wanted("zero-shot", (base,), 63.4), Wanted("finetuned", (base, tuned), DENSE)]
    for index, method in enumerate(("magnitude", "wanda")):
        for share in (0.5, 0.6, 0.7, 0.8, 0.9):
            stage = prune(tuned, f"a{index}{round(100 * share)}", method=method, sparsity=share)
            swept = {"stages.1.prune.method": method, "stages.1.prune.sparsity": share}
            worse = math.exp((4.2 - index) * share**6)
            found.append(Wanted(f"{method}-{share:g}", (base, tuned, stage), DENSE * worse, share, swept=swept))
    pruned = prune(tuned, "a090", method="magnitude", sparsity=0.9)
    found.append(Wanted("recovered", (base, tuned, pruned, distill(pruned, tuned, "d157")), 67.2, 0.9))
    for layer in range(BLOCKS):
        stage = prune(tuned, f"1a{layer}", method="magnitude", sparsity=0.8, layers=[layer])
        found.append(
            Wanted(
                f"layer-{layer}",
                (base, tuned, stage),
                DENSE * (1.02 + 0.06 * abs(layer - 2)),
                0.8,
                layers=(layer,),
                swept={"stages.1.prune.layers": [layer]},
            )
        )
    big = "CUDA out of memory: <script>console.error('it ran')</script> tried to allocate 2.00 GiB"
    fast = "the loss is not finite at step 40."
    found += [
        Wanted("too-big", (base, finetune(base, "b16")), 0, state="failed", reason="out-of-memory", error=big),
        Wanted("too-fast", (base, finetune(base, "fa57")), 0, state="diverged", reason="diverged", error=fast),
        Wanted("going", (base, distill(base, tuned, "901e")), 0, state="running"),
        Wanted("later", (base, tuned, prune(tuned, "1a7e", sparsity=0.95)), 0, state="waiting"),
    ]
    return found


def seeds(count: int = 3) -> list[Wanted]:
    """Two methods at two sparsities, each over as many seeds: `magnitude-0.5-seed1`, …"""
    base = load()
    tuned = finetune(base)
    found = []
    for place, method in enumerate(("magnitude", "wanda")):
        for share in (0.5, 0.9):
            for seed in range(1, count + 1):
                stage = prune(tuned, f"5eed{place}{round(10 * share)}{seed}", method=method, sparsity=share)
                swept = {"stages.1.prune.method": method, "stages.1.prune.sparsity": share}
                group, worse = f"{method}-{share:g}", math.exp((3 - place) * share**6 + seed / 100)
                name, chain = f"{group}-seed{seed}", (base, tuned, stage)
                found.append(Wanted(name, chain, DENSE * worse, share, swept=swept, group=group, seed=seed))
    return found


def many(count: int) -> list[Wanted]:
    """Finished trials of a search over two values."""
    draw = np.random.default_rng(0)
    base = load()
    tuned = finetune(base)
    found = []
    for index in range(count):
        share, rate = float(draw.uniform(0.5, 0.95)), float(10 ** draw.uniform(-5, -3))
        stage = prune(tuned, f"{index:06x}", sparsity=round(share, 4))
        swept = {"stages.1.prune.sparsity": round(share, 4), "train.learning_rate": float(f"{rate:.3g}")}
        worse = math.exp(2 * share**4) + abs(math.log10(rate) + 4) / 10
        found.append(Wanted(f"trial-{index:05d}", (base, tuned, stage), DENSE * worse, share, swept=swept))
    return found


def searching(count: int = 14) -> list[Wanted]:
    """What `SEARCH` has tried so far: finished trials, and every seventh stopped early."""
    draw = np.random.default_rng(1)
    base = load()
    found = []
    for index in range(count):
        share, rate = round(float(draw.uniform(0.5, 0.9)), 3), float(f"{10 ** draw.uniform(-5, -3):.3g}")
        method = ("magnitude", "wanda")[index % 2]
        tuned = finetune(base, f"5ea{index:03x}")
        chain = (base, tuned, prune(tuned, f"5eb{index:03x}", method=method, sparsity=share))
        swept = {
            "stages.1.prune.sparsity": share,
            "train.learning_rate": rate,
            "stages.1.prune.method": method,
        }
        early = {"state": "stopped", "reason": EARLY_STOP} if index % 7 == 6 else {}
        worse = DENSE * math.exp(2 * share**4) * (1 + abs(math.log10(rate) + 4) / 10)
        one = Wanted(f"found-{index + 1}", chain, worse, share, swept=swept, search=str(SEARCH["name"]))
        found.append(replace(one, number=index + 1, **early))
    return found


def make_root(
    path: Path,
    trials: Sequence[Wanted] = (),
    *,
    name: str = "study",
    windows: bool = True,
    cached: bool = False,
    searches: Sequence[Mapping[str, Any]] = (),
    figures: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[TableSpec] = (),
) -> Root:
    """A root with one sweep of these trials, or those of `study`; `cached`: all its stages were there before."""
    wanted = list(trials or study())
    root = Root(path)
    plan = SweepPlan(
        name=name,
        title="Pruning study in small",
        source="sweeps/study.yaml",
        trials=tuple(_plan(name, order, one) for order, one in enumerate(wanted)),
        tables=tuple(tables) or (_tables() if not trials else ()),
        spec={
            "name": name,
            "base": {"model": _MODEL.source, "seeds": [42]},
            "trials": list(searches),
            "figures": list(figures),
        },
    )
    with Store.open(root) as store:
        done = {stage.key for one in wanted for stage in one.chain if cached}
        for saved, one in zip(store.save_sweep(plan), wanted, strict=True):
            if one.state != "waiting":
                _run(root, store, saved.id, name, one, done, windows)
    return root


def _plan(sweep: str, order: int, one: Wanted) -> TrialPlan:
    chain = one.chain[1:]
    teachers = {stage.teacher for stage in chain if stage.teacher}
    return TrialPlan(
        sweep=sweep,
        name=one.name,
        group=one.group or one.name,
        seed=one.seed,
        label="tiny-gpt2",
        order=order,
        model=_MODEL,
        data=_DATA,
        evaluate=EvaluateSpec(data=_DATA, block_size=128),
        evaluation_key=_MEASURED,
        stages=one.chain,
        needs=tuple(teachers),
        swept=dict(one.swept or {}),
        search=one.search,
        number=one.number,
        config={
            "name": one.name,
            "model": {"source": _MODEL.source},
            "stages": [
                stage.model_dump(mode="json", exclude_none=True, include={stage.kind}) for stage in one.chain[1:]
            ],
        },
        teachers=dict.fromkeys(teachers, "finetuned"),
    )


def _tables() -> tuple[TableSpec, ...]:
    columns = ["model", "sparsity", "perplexity", "distilled", "teacher"]
    rows = ["zero-shot", "finetuned", "magnitude-*", "wanda-*", "recovered", "going", "too-big"]
    return (
        TableSpec.model_validate({"title": "Pruning and distillation", "rows": rows, "columns": columns}),
        TableSpec.model_validate(
            {
                "title": "One layer at 80%",
                "rows": ["finetuned", "layer-*"],
                "columns": ["model", "layer", "perplexity"],
            }
        ),
    )


def _run(root: Root, store: Store, trial: int, sweep: str, one: Wanted, done: set[str], windows: bool) -> None:
    attempt = store.start_attempt(trial)
    began = time.time() - 3600
    reached = len(one.chain) if one.state == "finished" else 1
    records = []
    for index, stage in enumerate(one.chain[:reached]):
        last = index == len(one.chain) - 1
        perplexity = one.perplexity if last else DENSE
        record = _stage(stage, index, stage.key in done, perplexity, one.sparsity if last else 0.0, one.layers)
        if last and record.sparsity:
            sparsity = record.sparsity.model_copy(update={"parameters": one.parameters})
            kept = {"sparsity": sparsity, "bytes": 4 * one.parameters, "stored": "float32"}
            record = record.model_copy(update={"also": one.also or {}, **kept})
        if stage.key not in done and stage.training:
            store.add_points(attempt.id, curve(index, perplexity, one.sparsity if last else 0.0, began))
        if windows and record.evaluation and stage.key not in done:
            _keep_windows(root, stage.key, record.evaluation)
        done.add(stage.key)
        store.record_stage(record, attempt.id)
        records.append(record)
    _log(root, sweep, one.name, attempt.number, one)
    if one.state == "running":
        store.add_points(attempt.id, curve(1, 80.0, 0.0, began, until=60))
        return
    if one.reason == EARLY_STOP:
        store.add_points(attempt.id, curve(1, 1.5 * one.perplexity, 0.0, began, until=60))
    if one.state == "diverged":
        store.add_points(attempt.id, _rising(began))
    store.finish_attempt(
        AttemptRecord(
            sweep=sweep, trial=one.name, attempt=attempt.number, state=one.state, reason=one.reason, error=one.error,
            trace="Traceback (most recent call last):\n  <b>bold</b>" if one.error else "", stages=tuple(records),
            started=began, ended=time.time() + 60 * len(one.chain), device="cpu", versions=_VERSIONS,
        )
    )  # fmt: skip


def _rising(began: float) -> Iterable[Point]:
    """A loss that ends in no number."""
    for step in range(41):
        value = 4 + step / 10 if step < 40 else None
        yield Point(stage=1, step=step, epoch=0, name="loss", value=value, time=began + step, tokens=step * TOKENS)


def _stage(
    stage: StagePlan, index: int, cached: bool, perplexity: float, sparsity: float, layers: Sequence[int]
) -> StageRecord:
    loss = float(windows_of(perplexity)[:, 0].sum() / windows_of(perplexity)[:, 1].sum())
    tensors = {
        f"transformer.h.{block}.{part}.weight": min(0.999, sparsity + 0.01 * (place - 1.5))
        for block in layers
        for place, part in enumerate(_TENSORS)
    }
    return StageRecord(
        key=stage.key, kind=stage.kind, index=index, cached=cached, seconds=0.4 if index == 0 else 62.5 - index,
        train_tokens=STEPS * TOKENS if stage.training else 0, steps=STEPS if stage.training else 0,
        evaluation=Evaluation(
            key=_MEASURED, protocol=_PROTOCOL, split="validation", perplexity=math.exp(loss), loss=loss,
            bits_per_byte=loss / 3, word_perplexity=math.exp(1.3 * loss), tokens=_WINDOWS * 127, windows=_WINDOWS,
        ),
        sparsity=SparsityRecord(
            pruned=sparsity, overall=sparsity * 0.68, selected=786_432, parameters=940_000, target=sparsity or None,
            by_tensor=tensors if sparsity else {}, layers=tuple(layers) if sparsity else (),
        ),
        versions=_VERSIONS, device="cpu",
    )  # fmt: skip


def windows_of(perplexity: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Per-window sums of losses and tokens, as an evaluation keeps them."""
    scatter = np.random.default_rng(0).normal(0.0, 0.3, _WINDOWS)
    return np.column_stack([(math.log(perplexity) + scatter - scatter.mean()) * 127, np.full(_WINDOWS, 127.0)])


def _keep_windows(root: Root, key: str, evaluation: Evaluation) -> None:
    assert evaluation.perplexity is not None
    folder = root.evaluation(key, evaluation.key)
    folder.mkdir(parents=True)
    np.save(folder / "windows.npy", windows_of(evaluation.perplexity))
    evaluation.write(folder / "evaluation.json")


def curve(
    stage: int, perplexity: float, sparsity: float, began: float, *, start: int = 0, until: int = STEPS
) -> Iterable[Point]:
    """What a training stage records from step `start` up to `until`."""
    for step in range(start, until, 2):
        share = step / STEPS
        loss = math.log(perplexity) + 0.8 * math.exp(-4 * share) + 0.03 * math.sin(step)
        values = {
            "loss": loss,
            "ce": loss - 0.1,
            "kd": 0.4 * math.exp(-2 * share),
            "learning_rate": 2e-3 * 0.5 * (1 + math.cos(math.pi * share)),
            "total_steps": float(STEPS),
        }
        if step % 20 == 0:
            values["perplexity"] = perplexity * math.exp(0.8 * math.exp(-4 * share))
            values["sparsity"] = sparsity * (1 - (1 - share) ** 3)
            values["sparsity_target"] = sparsity * (1 - (1 - share) ** 3)
            for place, part in enumerate(_TENSORS if sparsity else ()):
                values[f"sparsity/transformer.h.0.{part}.weight"] = sparsity * share ** (0.5 + place / 4)
        for name, value in values.items():
            yield Point(
                stage=stage, step=step, epoch=share, name=name, value=value, time=began + step, tokens=step * TOKENS
            )


def _log(root: Root, sweep: str, name: str, number: int, one: Wanted) -> None:
    folder = root.attempt(sweep, name, number)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"step {step}: loss {5 - step / 100:.3f}" for step in range(0, 100, 10)]
    (folder / "log.txt").write_text("\n".join([*lines, one.error, "<img src=x onerror=console.error(1)>"]) + "\n")
    (folder / "trial.json").write_text(json.dumps({"name": name}))


def grow(root: Root, name: str = "study", *, start: int = 60, until: int = 100) -> None:
    """The running trial goes on: points from step `start` up to `until`."""
    with Store.open(root) as store:
        running = next(trial for trial in store.results(name) if trial.state == "running")
        attempt = store.attempts(running.id)[-1]
        store.add_points(attempt.id, curve(1, 80.0, 0.0, attempt.started, start=start, until=until))
