"""A worker without torch whose figures depend on every byte: a model is the hash of its parent, and so is what is
measured of it. Whatever is damaged on the way would show."""

import hashlib
import os
import time
from pathlib import Path

from prunegpt.points import Point, PointWriter
from prunegpt.records import AttemptRecord, Evaluation, SparsityRecord, StageRecord
from prunegpt.root import Root, damage, publishing, seal, write_text
from prunegpt.spec.plan import StagePlan, TrialPlan

WEIGHTS = "model/model.safetensors"


def run(folder: Path) -> str:
    root = Root(folder.parents[3])
    plan = TrialPlan.model_validate_json((folder / "trial.json").read_text())
    points = PointWriter(folder / "points.jsonl")
    print(f"running {plan.name}", flush=True)
    started, state, error, records = time.time(), "finished", "", []
    try:
        for index, stage in enumerate(plan.stages):
            records.append(_stage(root, plan, index, stage, points))
    except Exception as problem:
        state, error = "failed", str(problem)
    points.close()
    AttemptRecord(
        sweep=plan.sweep,
        trial=plan.name,
        attempt=int(folder.name.partition("-")[2]),
        state=state,
        reason="exception" if error else "",
        error=error,
        stages=tuple(records),
        started=started,
        ended=time.time(),
    ).write(folder / "record.json")
    return state


def _stage(root: Root, plan: TrialPlan, index: int, stage: StagePlan, points: PointWriter) -> StageRecord:
    cached = root.is_published(stage.key)
    if not cached:
        parent = _weights(root, stage.parent) if stage.parent else b""
        for step in range(3):
            points.write(Point(stage=index, step=step, epoch=0.0, name="loss", value=1 / (step + 1), time=0.0))
        with publishing(root.stage(stage.key)) as folder:
            (folder / "model").mkdir()
            (folder / WEIGHTS).write_bytes(hashlib.sha512(parent + stage.key.encode()).digest() * 9)
            write_text(folder / "plan.json", stage.model_dump_json(indent=2) + "\n")
            (folder / "evaluations").mkdir()
            zeros = SparsityRecord(pruned=_figure(parent), overall=0.4, selected=10, parameters=20)
            StageRecord(key=stage.key, kind=stage.kind, index=index, cached=False, sparsity=zeros).write(
                folder / "stage.json"
            )
            seal(folder)
    record = StageRecord.read(root.stage(stage.key) / "stage.json")
    measured = root.evaluation(stage.key, plan.evaluation_key)
    if not root.is_measured(stage.key, plan.evaluation_key):
        figure = _figure(_weights(root, stage.key))
        with publishing(measured) as folder:
            (folder / "windows.npy").write_bytes(os.urandom(8))
            Evaluation(
                key=plan.evaluation_key,
                protocol="none",
                split="none",
                perplexity=1 + figure,
                loss=figure,
                bits_per_byte=None,
                word_perplexity=None,
                tokens=1,
                windows=1,
            ).write(folder / "evaluation.json")
            seal(folder)
    evaluation = Evaluation.read(measured / "evaluation.json")
    return record.model_copy(update={"index": index, "cached": cached, "evaluation": evaluation})


def _weights(root: Root, key: str) -> bytes:
    if damage(root.stage(key), deep=True):
        raise RuntimeError(f"{key} is not as it was published. `prunegpt doctor --repair` sets it aside.")
    return (root.stage(key) / WEIGHTS).read_bytes()


def _figure(data: bytes) -> float:
    return int.from_bytes(hashlib.sha256(data).digest()[:4], "big") / 2**32


if __name__ == "__main__":
    from prunegpt.launch.worker import serve_attempts

    serve_attempts(run)
