"""Trials made by hand, as the store would give them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunegpt.records import Evaluation, SparsityRecord, StageRecord, TrialResult, TrialState
from prunegpt.report.statistics import WindowLosses, mean_loss
from prunegpt.spec.plan import TrialPlan

_IDS = itertools.count(1)
PROTOCOL = "blocks/validation/1024/gpt2"


def draw_windows(loss: float, *, count: int = 60, tokens: int = 128, noise: float = 0.3, seed: int = 0) -> WindowLosses:
    """Windows whose losses scatter around `loss`; equal seeds scatter alike, as two models on one text do."""
    scatter = np.random.default_rng(seed).normal(0.0, noise, count)
    return np.column_stack([(loss + scatter) * tokens, np.full(count, float(tokens))])


def evaluation(
    windows: WindowLosses | None = None, *, perplexity: float = 20.0, protocol: str = PROTOCOL, finite: bool = True
) -> Evaluation:
    loss = mean_loss(windows) if windows is not None else float(np.log(perplexity))
    return Evaluation(
        key=f"evaluation-of-{protocol}",
        protocol=protocol,
        split="validation",
        perplexity=float(np.exp(loss)) if finite else None,
        loss=loss if finite else None,
        bits_per_byte=loss / 3 if finite else None,
        word_perplexity=float(np.exp(1.3 * loss)) if finite else None,
        tokens=int(windows[:, 1].sum()) if windows is not None else 1000,
        windows=len(windows) if windows is not None else 10,
        finite=finite,
    )


def make_trial(
    name: str,
    *,
    sweep: str = "wikitext2",
    group: str | None = None,
    seed: int = 42,
    label: str = "GPT-2 122M",
    order: int = 0,
    state: TrialState = "finished",
    measured: Evaluation | None = None,
    pruned: float = 0.0,
    target: float | None = None,
    layers: Sequence[int] = (),
    stages: Sequence[Mapping[str, Any]] = (),
    teachers: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    reason: str = "",
    implicit: bool = False,
    shown: bool = True,
    ended: float = 1_700_000_000.0,
) -> TrialResult:
    """A trial that was loaded and went through `stages`, plans such as {"kind": "finetune", "finetune": {}}."""
    model, data = {"source": "gpt2"}, {"path": "builtin:text"}
    chain = [{"kind": "load"}, *stages]
    for stage in chain:
        if isinstance(taught := stage.get("distill"), dict):
            taught.setdefault("teacher", "teacher")
    keyed = [{"model": model, "key": f"{name}-{i}", **stage} for i, stage in enumerate(chain)]
    planned = {
        "sweep": sweep, "name": name, "group": group or name, "seed": seed, "label": label, "order": order,
        "implicit": implicit, "model": model, "data": data, "evaluate": {}, "evaluation_key": "e", "stages": keyed,
        "teachers": teachers or {}, "config": config or {}, **(plan or {}),
    }  # fmt: skip
    sparsity = SparsityRecord(
        pruned=pruned, overall=pruned * 0.68, selected=84_934_656, parameters=124_439_808, target=target,
        layers=tuple(layers), by_tensor={f"transformer.h.{i}.mlp.c_fc.weight": pruned for i in layers},
    )  # fmt: skip
    records = tuple(
        StageRecord(
            key=stage["key"],
            kind=stage["kind"],
            index=index,
            cached=False,
            seconds=10.0 * index,
            train_tokens=1000 * index,
            evaluation=measured if index == len(chain) - 1 else None,
            sparsity=sparsity if index == len(chain) - 1 else None,
            versions={"prunegpt": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"},
            device="cpu",
        )
        for index, stage in enumerate(keyed)
    )
    return TrialResult(
        id=next(_IDS),
        plan=TrialPlan.reopened(json.dumps(planned)),
        shown=shown,
        state=state,
        stages=records if state != "waiting" else (),
        reason=reason,
        ended=ended if state != "waiting" else None,
    )


class Kept:
    """Per-window losses by trial name, standing for the evaluations of a root."""

    def __init__(self) -> None:
        self.of: dict[str, WindowLosses] = {}

    def trial(self, name: str, windows: WindowLosses, **fields: Any) -> TrialResult:
        """A finished trial that was measured on these windows."""
        protocol = fields.pop("protocol", PROTOCOL)
        self.of[name] = windows
        return make_trial(name, measured=evaluation(windows, protocol=protocol), **fields)

    def __call__(self, trial: TrialResult) -> WindowLosses | None:
        return self.of.get(trial.name)
