"""A worker without a model: it publishes empty stages as the real one does, and misbehaves as the trial's config says.

`config.fake` may say: `seconds` that each stage but the first takes; `steps` of each stage, a point each; `fail`,
`diverge`, `exit` or `kill`: a stage key at which that happens; `once`: only in the trial's first attempt; `deaf`: it
does not hear SIGTERM; `mute`: it writes no record.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prunegpt.launch.worker import serve_attempts
from prunegpt.records import AttemptRecord, Evaluation, Point, PointWriter, SparsityRecord, StageRecord
from prunegpt.root import Root, publishing
from prunegpt.spec.plan import StagePlan, TrialPlan

STOP = [False]


class Stopped(Exception):
    pass


class Diverged(Exception):
    pass


class Fake:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Root(folder.parents[3])
        self.plan = TrialPlan.model_validate_json((folder / "trial.json").read_text())
        self.number = int(folder.name.partition("-")[2])
        self.ways: dict[str, Any] = dict(self.plan.config["fake"])
        if self.ways.get("once") and self.number > 1:
            for way in ("fail", "diverge", "exit", "kill", "mute"):
                self.ways.pop(way, None)
        self.points = PointWriter(folder / "points.jsonl")

    def run(self) -> str:
        print(f"running {self.plan.name}", flush=True)
        started, state, reason, error, records = time.time(), "finished", "", "", []
        try:
            for index, stage in enumerate(self.plan.stages):
                records.append(self.stage(index, stage))
        except Stopped:
            state, reason = "stopped", "stopped"
        except Diverged:
            state, reason, error = "diverged", "diverged", "the loss is not finite."
        except Exception as problem:
            print(repr(problem), flush=True)
            state, reason, error = "failed", "exception", str(problem)
        self.points.close()
        if self.ways.get("mute"):
            return state
        AttemptRecord(
            sweep=self.plan.sweep,
            trial=self.plan.name,
            attempt=self.number,
            state=state,
            reason=reason,
            error=error,
            stages=tuple(records),
            started=started,
            ended=time.time(),
            device="none",
        ).write(self.folder / "record.json")
        return state

    def stage(self, index: int, stage: StagePlan) -> StageRecord:
        cached = self.root.is_published(stage.key)
        if not cached:
            self.compute(index, stage)
        record = StageRecord.read(self.root.stage(stage.key) / "stage.json")
        evaluation = None
        if not self.plan.evaluate.skip:
            evaluation = self.measure(stage)
        return record.model_copy(update={"index": index, "cached": cached, "evaluation": evaluation})

    def compute(self, index: int, stage: StagePlan) -> None:
        missing = [need for need in self.plan.needs if not self.root.is_published(need)]
        if missing:
            raise RuntimeError(f"started without its teachers {missing}")
        self.misbehave(stage)
        steps = self.ways.get("steps", 1)
        for step in range(steps):
            time.sleep(self.ways.get("seconds", 0.0) / steps if index else 0.0)
            self.points.write(Point(stage=index, step=step, epoch=0.0, name="loss", value=1.0 / (step + 1), time=0.0))
            if STOP[0] and not self.ways.get("deaf"):
                raise Stopped
        with publishing(self.root.stage(stage.key)) as folder:
            (folder / "evaluations").mkdir()
            counted = SparsityRecord(pruned=0.5, overall=0.4, selected=10, parameters=20)
            StageRecord(key=stage.key, kind=stage.kind, index=index, cached=False, seconds=0.1, sparsity=counted).write(
                folder / "stage.json"
            )
        self.note("computed", stage.key)

    def measure(self, stage: StagePlan) -> Evaluation:
        folder = self.root.evaluation(stage.key, self.plan.evaluation_key)
        if not folder.exists():
            with publishing(folder) as new:
                Evaluation(
                    key=self.plan.evaluation_key,
                    protocol="none",
                    split="none",
                    perplexity=float(len(stage.key)),
                    loss=1.0,
                    bits_per_byte=None,
                    word_perplexity=None,
                    tokens=1,
                    windows=1,
                ).write(new / "evaluation.json")
            self.note("measured", f"{stage.key}/{self.plan.evaluation_key}")
        return Evaluation.read(folder / "evaluation.json")

    def misbehave(self, stage: StagePlan) -> None:
        if self.ways.get("fail") == stage.key:
            raise RuntimeError(f"cannot compute {stage.key}")
        if self.ways.get("diverge") == stage.key:
            raise Diverged
        if self.ways.get("exit") == stage.key:
            print("going down", flush=True)
            os._exit(3)
        if self.ways.get("kill") == stage.key:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, what: str, of: str) -> None:
        """Tells the test what was done, past all that is tested: one line, appended."""
        with (self.root.path / f"{what}.txt").open("a") as file:
            file.write(f"{of}\n")


def run(folder: Path) -> str:
    STOP[0] = False
    signal.signal(signal.SIGTERM, lambda *_: STOP.__setitem__(0, True))
    return Fake(folder).run()


if __name__ == "__main__":
    print("a worker that begins", file=sys.stderr)
    serve_attempts(run)
