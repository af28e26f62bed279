"""Whatever happens to inputs, stages, evaluations and archives while a sweep runs: no table shows a figure that a
fresh root would not give for what the trial was planned with."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from prunegpt.api import stored
from prunegpt.errors import PruneGPTError
from prunegpt.planning.resolve import plan_data
from prunegpt.report.archive import read_archive, write_archive
from prunegpt.report.declared import tables_of
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.stages import cache as stage_cache
from prunegpt.stages import text as stage_text
from prunegpt.store import Store
from prunegpt.sweep.coordinator import run_sweep
from tests.support.here import Here
from tests.support.small import make_model

TEXTS = ("the one and the other text\n" * 60, "and one other, of the text\n" * 60)
torch.set_num_threads(1)


@cache
def models() -> tuple[Path, Path]:
    """Two models of equal size."""
    folder = Path(tempfile.mkdtemp(prefix="prunegpt-models-"))
    first = make_model(folder / "first", layers=1, width=16, positions=32)
    shutil.copytree(first, folder / "second")
    weights = bytearray((first / "model.safetensors").read_bytes())
    weights[-64:] = weights[-128:-64]
    (folder / "second" / "model.safetensors").write_bytes(bytes(weights))
    return first, folder / "second"


def plan_of(project: Path, model: str, root: Root) -> SweepPlan:
    files = {"train": str(project / "t.txt"), "validation": str(project / "v.txt")}
    spec = {
        "name": "drawn",
        "base": {
            "model": str(project / model),
            "data": {"files": files, "block_size": 16},
            "evaluate": {"max_windows": 2},
            "train": {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.01},
        },
        "trials": [
            {"name": "pruned", "stages": [{"prune": {"sparsity": 0.5}}]},
            {"name": "tuned", "stages": ["finetune"]},
        ],
    }
    return plan_data(spec, root=root)


def run(plan: SweepPlan, root: Root) -> None:
    with Store.open(root) as store:
        run_sweep(plan, root, store, Here())


def figures(root: Root) -> dict[str, tuple[str, float | None]]:
    """Trial -> key of its last stage, and the figure that a table would show."""
    with Store.open(root, create=False) as store:
        return {
            result.name: (result.plan.key, result.measured.perplexity)
            for result in store.results("drawn")
            if result.shown and result.measured
        }


@cache
def fresh(model: int, train: int, validation: int) -> dict[str, float | None]:
    """What a root that never held anything gives."""
    folder = Path(tempfile.mkdtemp(prefix="prunegpt-fresh-"))
    write(folder, "m", model, train, validation)
    root = Root(folder / "runs")
    run(plan_of(folder, "m", root), root)
    return {name: value for name, (_, value) in figures(root).items()}


def write(project: Path, name: str, model: int, train: int, validation: int) -> None:
    shutil.copytree(models()[model], project / name)
    (project / "t.txt").write_text(TEXTS[train], encoding="utf-8")
    (project / "v.txt").write_text(TEXTS[validation], encoding="utf-8")


ACTIONS = [
    *(f"edit {name}" for name in "mntv"),
    *(f"harm {how}" for how in ("digit", "cut", "gone", "copy")),
    "forget",
    "forget",
    "swap_models",
    "name_the_other_model",
    "move_the_project",
]


class Interleaved(RuleBasedStateMachine):
    """A project whose files change at any time, and a root whose files do."""

    @initialize(model=st.integers(0, 1), train=st.integers(0, 1), validation=st.integers(0, 1))
    def begin(self, model: int, train: int, validation: int) -> None:
        self.project = Path(tempfile.mkdtemp(prefix="prunegpt-drawn-"))
        self.content = {"m": model, "n": 1 - model, "t": train, "v": validation}
        write(self.project, "m", model, train, validation)
        shutil.copytree(models()[1 - model], self.project / "n")
        self.source = "m"
        self.root = Root(self.project / "runs")
        self.planned: dict[str, tuple[int, int, int]] = {}  # key -> contents it was planned with

    def teardown(self) -> None:
        if hasattr(self, "project"):
            shutil.rmtree(self.project, ignore_errors=True)

    # -- what is done to inputs ----------------------------------------------------------------------------------

    def _put(self, name: str, content: int, *, dated: bool = False) -> None:
        """Writes an input in place, its date kept where asked."""
        file = self.project / name / "model.safetensors" if name in "mn" else self.project / f"{name}.txt"
        status = file.stat()
        if name in "mn":
            file.write_bytes((models()[content] / "model.safetensors").read_bytes())
        else:
            file.write_text(TEXTS[content], encoding="utf-8")
        if dated:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def edit(self, name: str, *, dated: bool) -> None:
        self.content[name] = 1 - self.content[name]
        self._put(name, self.content[name], dated=dated)

    def swap_models(self) -> None:
        for one, two in (("m", "x"), ("n", "m"), ("x", "n")):
            (self.project / one).rename(self.project / two)
        self.content["m"], self.content["n"] = self.content["n"], self.content["m"]

    def name_the_other_model(self) -> None:
        self.source = "n" if self.source == "m" else "m"

    def move_the_project(self) -> None:
        moved = self.project.with_name(f"{self.project.name}-")
        self.project.rename(moved)
        self.project, self.root = moved, Root(moved / "runs")

    # -- what is done to the root --------------------------------------------------------------------------------

    def harm(self, draw: Callable[[st.SearchStrategy[Path]], Path], how: str) -> None:
        files = sorted(path for path in self.root.path.rglob("*") if _harmed(path)) if self.root.path.exists() else []
        if not files:
            return
        file = draw(st.sampled_from(files))
        content = file.read_bytes()
        if how == "digit":
            edited = re.sub(rb'("(?:perplexity|loss|steps|pruned)": )\d', rb"\g<1>1", content)
            file.write_bytes(edited if file.suffix == ".json" else content[:-8] + bytes([7]) * 8)
        elif how == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif how == "gone":
            file.unlink()
        else:
            others = [other for other in files if other.name == file.name and other != file]
            if others:
                file.write_bytes(draw(st.sampled_from(others)).read_bytes())

    def forget(self) -> None:
        """Another database over the same stages, as of another sweep: what is published is asked again."""
        for file in self.root.path.glob("prunegpt.db*"):
            file.unlink()

    # -- a run, undisturbed or not -------------------------------------------------------------------------------

    @rule(
        data=st.data(),
        actions=st.lists(st.sampled_from(ACTIONS), max_size=2),
        name=st.sampled_from(["", *"mtv"]),
        back=st.booleans(),
        moment=st.sampled_from(["planned", "read"]),
    )
    def act_and_run(self, data: st.DataObject, actions: list[str], name: str, back: bool, moment: str) -> None:
        for action in actions:
            kind, _, argument = action.partition(" ")
            if kind == "edit":
                self.edit(argument, dated=data.draw(st.booleans()))
            elif kind == "harm":
                self.harm(data.draw, argument)
            else:
                getattr(self, kind)()
        self.run(name, back=back, moment=moment)

    def run(self, name: str, *, back: bool, moment: str) -> None:
        """Plans and runs; one input changes after planning, or while it is read, and may be put back."""
        plan = plan_of(self.project, self.source, self.root)
        contents = self.content[self.source], self.content["t"], self.content["v"]
        for trial in plan.trials:
            self.planned[trial.key] = contents
        name = self.source if name == "m" else name
        if not name:
            run(plan, self.root)
            return
        before = self.content[name]

        def change() -> None:
            self._put(name, 1 - before, dated=True)

        def restore() -> None:
            if back:
                self._put(name, before, dated=True)

        if moment == "planned":
            change()
            run(plan, self.root)
            restore()
        else:
            with reading(change, restore):
                run(plan, self.root)
        self.content[name] = self._found(name)

    def _found(self, name: str) -> int:
        if name in "mn":
            stored = (self.project / name / "model.safetensors").read_bytes()
            return 0 if stored == (models()[0] / "model.safetensors").read_bytes() else 1
        return TEXTS.index((self.project / f"{name}.txt").read_text(encoding="utf-8"))

    @invariant()
    def tables_tell_the_truth(self) -> None:
        if not hasattr(self, "root") or not self.root.database.exists():
            return
        for trial, (key, value) in figures(self.root).items():
            assert value == fresh(*self.planned[key])[trial], (trial, self.planned[key])
        archive = self.project / "archive"
        try:
            found = stored("drawn", self.root)
            shown = [[cell.text for row in table.rows for cell in row.cells] for table in tables_of(found)]
            write_archive(archive, replace(found, commit=None))
            again = tables_of(read_archive(archive))
        except PruneGPTError:
            return  # refused, which shows nothing
        assert [[cell.text for row in table.rows for cell in row.cells] for table in again] == shown


def _harmed(path: Path) -> bool:
    """What is looked for in a root: whatever was published there, and its caches."""
    return path.is_file() and path.name in {
        "stage.json",
        "plan.json",
        "evaluation.json",
        "windows.npy",
        "model.safetensors",
        "masks.safetensors",
        "blocks.npy",
        "job.json",
    }


@contextmanager
def reading(change: Callable[[], None], restore: Callable[[], None]) -> Iterator[None]:
    """The first read of a model or a text in the block sees a change that is made just before it."""
    with pytest.MonkeyPatch.context() as patch:
        done: list[bool] = []

        def around(read: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **options: Any) -> Any:
                if done:
                    return read(*args, **options)
                done.append(True)
                change()
                try:
                    return read(*args, **options)
                finally:
                    restore()

            return wrapped

        for module, name in (
            (stage_cache, "load_model"),
            (stage_text, "read_rows"),
            (stage_text.protocols, "read_split"),
        ):
            patch.setattr(module, name, around(getattr(module, name)))
        yield


def machine(examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Interleaved,
        settings=settings(
            max_examples=examples,
            stateful_step_count=4,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_twenty_interleavings() -> None:
    machine(20)


@pytest.mark.slow
def test_two_hundred_interleavings() -> None:
    machine(200)
