"""A worker without a model: it publishes empty stages as the real one does, and misbehaves as the trial's config says.

`config.fake` may say: `seconds` that each stage but the first takes; `steps` of each stage, a point each; `fail`,
`diverge`, `exit`, `kill`, `stop` or `freeze`: a stage key at which that happens; `reason` of failing; `once`: only in
the trial's first attempt, or in so many; `deaf`: it does not hear SIGTERM; `mute`: it writes no record; `tokens` of
each step; `sequence_mb`: memory that each sequence of a micro-batch takes, of `room_mb` that there are; `checkpoint`:
each step is kept in the stage's work folder, and the next attempt goes on there.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prunegpt.launch.worker import serve_attempts
from prunegpt.planning.budget import divided_note, micro_batch
from prunegpt.points import Point, PointWriter, beating
from prunegpt.records import AttemptRecord, Evaluation, SparsityRecord, StageRecord
from prunegpt.root import Root, publishing
from prunegpt.spec.plan import StagePlan, TrialPlan

COMMAND = (sys.executable, __file__)
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
        if self.ways.get("once") and self.number > int(self.ways["once"]):
            for way in ("fail", "diverge", "exit", "kill", "mute", "stop", "freeze"):
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
        except MemoryError:
            print("MemoryError", flush=True)
            state, reason, error = "failed", "out-of-memory", "MemoryError"
        except Exception as problem:
            print(repr(problem), flush=True)
            state, reason, error = "failed", self.ways.get("reason", "exception"), str(problem)
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
        if stage.training and "sequence_mb" in self.ways:
            self.fill(stage)
        steps = self.ways.get("steps", 1)
        begun = self.first_step(stage)
        self.point(index, begun, "total_steps", steps)
        for step in range(begun, steps):
            time.sleep(self.ways.get("seconds", 0.0) / steps if index else 0.0)
            self.point(index, step, "loss", 1.0 / (step + 1))
            if self.ways.get("checkpoint"):
                self.root.work(stage.key).mkdir(parents=True, exist_ok=True)
                (self.root.work(stage.key) / "step.txt").write_text(str(step + 1))
            if STOP[0] and not self.ways.get("deaf"):
                raise Stopped
        with publishing(self.root.stage(stage.key)) as folder:
            (folder / "evaluations").mkdir()
            counted = SparsityRecord(pruned=0.5, overall=0.4, selected=10, parameters=20)
            notes = divided_note(stage.training.train, self.plan.micro_batch_divisor) if stage.training else ()
            StageRecord(
                key=stage.key, kind=stage.kind, index=index, cached=False, seconds=0.1, sparsity=counted, notes=notes
            ).write(folder / "stage.json")
        self.note("computed", stage.key)

    def point(self, stage: int, step: int, name: str, value: float) -> None:
        tokens = step * int(self.ways.get("tokens", 0))
        self.points.write(
            Point(stage=stage, step=step, epoch=0.0, name=name, value=value, time=time.time(), tokens=tokens)
        )

    def first_step(self, stage: StagePlan) -> int:
        kept = self.root.work(stage.key) / "step.txt"
        return int(kept.read_text() or "0") if self.ways.get("checkpoint") and kept.exists() else 0

    def fill(self, stage: StagePlan) -> None:
        """Takes the memory of one micro-batch, under a limit of this process."""
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        room = int(held.split()[1]) * 1024 + self.ways["room_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (room, resource.RLIM_INFINITY))
        sequences, _ = micro_batch(stage.training.train, self.plan.micro_batch_divisor)
        try:
            bytearray(sequences * self.ways["sequence_mb"] * 2**20)
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def measure(self, stage: StagePlan) -> Evaluation:
        folder = self.root.evaluation(stage.key, self.plan.evaluation_key)
        if not folder.exists():
            perplexity, loss = self.figures(stage)
            with publishing(folder) as new:
                Evaluation(
                    key=self.plan.evaluation_key,
                    protocol="none",
                    split="none",
                    perplexity=perplexity,
                    loss=loss,
                    bits_per_byte=None,
                    word_perplexity=None,
                    tokens=1,
                    windows=1,
                ).write(new / "evaluation.json")
            self.note("measured", f"{stage.key}/{self.plan.evaluation_key}")
        return Evaluation.read(folder / "evaluation.json")

    def figures(self, stage: StagePlan) -> tuple[float, float]:
        """Perplexity and loss."""
        return float(len(stage.key)), 1.0

    def misbehave(self, stage: StagePlan) -> None:
        if self.ways.get("fail") == stage.key:
            raise RuntimeError(f"cannot compute {stage.key}")
        if self.ways.get("diverge") == stage.key:
            raise Diverged
        if self.ways.get("exit") == stage.key:
            print("going down", flush=True)
            os._exit(3)
        if self.ways.get("stop") == stage.key:
            raise Stopped
        if self.ways.get("freeze") == stage.key:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.ways.get("kill") == stage.key:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, what: str, of: str) -> None:
        """Tells the test what was done, past all that is tested: one line, appended."""
        with (self.root.path / f"{what}.txt").open("a") as file:
            file.write(f"{of}\n")


def run(folder: Path) -> str:
    STOP[0] = False
    signal.signal(signal.SIGTERM, lambda *_: STOP.__setitem__(0, True))
    with beating(folder, every=0.1):
        return Fake(folder).run()


if __name__ == "__main__":
    print("a worker that begins", file=sys.stderr)
    serve_attempts(run)
