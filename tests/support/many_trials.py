"""Large roots, written in bulk: a search of thousands of trials, and a trial with long curves."""

import json
import math
import time

import numpy as np

from prunegpt.points import Point
from prunegpt.records import Evaluation, SparsityRecord, StageRecord
from prunegpt.root import Root
from prunegpt.spec.plan import StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.schema import DataSpec, EvaluateSpec, FinetuneSpec, ModelSpec, PruneSpec, TableSpec
from prunegpt.store import Store
from prunegpt.store.engine import open_engine, writer
from prunegpt.store.schema import attempt, attempt_stage, trial

_MODEL = ModelSpec(source="builtin:tiny-gpt2")
_DATA = DataSpec(path="builtin:text", block_size=128)
_EVALUATED = "4e5a1d"
_BLOCKS = 4


def make_many(root: Root, trials: int, *, name: str = "many", tables: tuple[TableSpec, ...] = ()) -> None:
    """A sweep of so many finished trials over two values, each loaded, fine-tuned and pruned, with its windows kept."""
    draw = np.random.default_rng(0)
    load = StagePlan(key="load", kind="load", model=_MODEL)
    tuned = StagePlan(
        key="tuned", kind="finetune", parent="load", model=_MODEL, data=_DATA,
        finetune=FinetuneSpec(train={"max_steps": 200}),
    )  # fmt: skip
    plans = []
    for index in range(trials):
        share, rate = round(float(draw.uniform(0.5, 0.95)), 4), float(f"{10 ** draw.uniform(-5, -3):.3g}")
        pruned = StagePlan(
            key=f"p{index:06}", kind="prune", parent="tuned", model=_MODEL, prune=PruneSpec(sparsity=share)
        )
        trial_name = f"trial-{index:05}"
        plans.append(
            TrialPlan(
                sweep=name, name=trial_name, group=trial_name, seed=42, label="tiny-gpt2", order=index, model=_MODEL,
                data=_DATA, evaluate=EvaluateSpec(data=_DATA, block_size=128), evaluation_key=_EVALUATED,
                stages=(load, tuned, pruned), config={"name": trial_name, "model": {"source": _MODEL.source}},
                swept={"stages.1.prune.sparsity": share, "train.learning_rate": rate},
            )
        )  # fmt: skip
    spec = {"name": name, "trials": []}
    plan = SweepPlan(name=name, title="Many trials", trials=tuple(plans), spec=spec, tables=tables)
    with Store.open(root) as store:
        saved = store.save_sweep(plan)
    attempts, stages = [], []
    for index, one in enumerate(saved):
        share = float(one.plan.swept["stages.1.prune.sparsity"])
        records = [_record(stage, place, share if place == 2 else 0.0) for place, stage in enumerate(one.plan.stages)]
        attempts.append(
            {
                "id": one.id, "trial_id": one.id, "number": 1, "folder": f"trials/{name}/{one.plan.name}/attempt-1",
                "chain": json.dumps([stage.key for stage in one.plan.stages]), "key": one.plan.key,
                "evaluation_key": _EVALUATED, "state": "finished", "reason": "", "error": "", "trace": "",
                "started": 1e9 + index, "ended": 1e9 + index + 60, "device": "cpu", "versions": "{}", "offset": 0,
            }
        )  # fmt: skip
        stages += [
            {
                "attempt_id": one.id, "position": place, "key": record.key, "cached": place < 2,
                "record": record.model_dump_json(),
            }
            for place, record in enumerate(records)
        ]  # fmt: skip
        assert records[-1].evaluation is not None
        folder = root.evaluation(records[-1].key, _EVALUATED)
        folder.mkdir(parents=True)
        np.save(folder / "windows.npy", _windows(float(records[-1].evaluation.loss or 0)))
    engine = open_engine(root, create=False)
    with writer(engine).begin() as connection:
        connection.execute(attempt.insert(), attempts)
        connection.execute(attempt_stage.insert(), stages)
        connection.execute(trial.update().values(state="finished"))
    engine.dispose()


def _record(stage: StagePlan, index: int, share: float) -> StageRecord:
    loss = 4.1 + 2 * share**4
    tensors = [f"transformer.h.{block}.{part}.weight" for block in range(_BLOCKS) for part in ("attn", "mlp")]
    return StageRecord(
        key=stage.key, kind=stage.kind, index=index, cached=index < 2, seconds=30.0,
        train_tokens=100_000 * (index == 1), steps=200 * (index == 1), device="cpu", versions={"prunegpt": "0.1.0"},
        evaluation=Evaluation(
            key=_EVALUATED, protocol="blocks/validation/128", split="validation", perplexity=math.exp(loss), loss=loss,
            bits_per_byte=1.0, word_perplexity=None, tokens=40 * 127, windows=40,
        ),
        sparsity=SparsityRecord(
            pruned=share, overall=share / 2, selected=1000, parameters=2000, target=share or None,
            by_tensor=dict.fromkeys(tensors, share) if share else {}, layers=tuple(range(_BLOCKS)) if share else (),
        ),
    )  # fmt: skip


def _windows(loss: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    scatter = np.random.default_rng(0).normal(0.0, 0.3, 40)
    return np.column_stack([(loss + scatter - scatter.mean()) * 127, np.full(40, 127.0)])


def make_long(root: Root, points: int, *, name: str = "long") -> None:
    """A sweep of one running trial with ten curves, so many points together."""
    load = StagePlan(key="load", kind="load", model=_MODEL)
    tuned = StagePlan(key="long", kind="finetune", parent="load", model=_MODEL, finetune=FinetuneSpec(), data=_DATA)
    plan = TrialPlan(
        sweep=name, name="long", group="long", seed=42, label="tiny-gpt2", model=_MODEL, data=_DATA,
        evaluate=EvaluateSpec(data=_DATA, block_size=128), evaluation_key=_EVALUATED, stages=(load, tuned),
    )  # fmt: skip
    names = ("loss", "ce", "kd", "learning_rate", "perplexity", "sparsity", "sparsity_target", "grad_norm", "x", "y")
    now = time.time()
    with Store.open(root) as store:
        (saved,) = store.save_sweep(SweepPlan(name=name, title="Long", trials=(plan,), spec={"name": name}))
        started = store.start_attempt(saved.id)
        store.add_points(
            started.id,
            (
                Point(
                    stage=1, step=step, epoch=0.0, name=one, value=math.sin(step / 50) + 2, time=now + step, tokens=step
                )
                for step in range(points // len(names))
                for one in names
            ),
            offset=points,
        )
