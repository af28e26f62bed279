"""Runs that were made elsewhere, as trials: a folder below ROOT/trials like any other, and rows in the store.

They belong to a sweep `wandb-PROJECT`. A run has one stage, `finetune`, whose curves are what it logged.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prunegpt.errors import StoreError
from prunegpt.records import AttemptRecord, Evaluation, Point, PointWriter, SparsityRecord, StageRecord
from prunegpt.root import Root, write_json, write_text
from prunegpt.spec.naming import MAX_NAME, slug
from prunegpt.spec.plan import StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.schema import DataSpec, EvaluateSpec, FinetuneSpec, ModelSpec
from prunegpt.store import Store
from prunegpt.sweep.recovery import OUTSIDE, planned

PROTOCOL = "as logged to W&B"  # nobody knows how a foreign perplexity was measured
_LOGGED = FinetuneSpec()
_STEPS = ("trainer/global_step", "global_step", "train/global_step")
_TOKENS = ("tokens", "num_input_tokens_seen", "train/num_input_tokens_seen")
_EPOCHS = ("epoch", "train/epoch")

State = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class ForeignRun:
    """What is known of a run.

    Args:
        config: name -> value, without W&B's own entries.
        swept: path -> value, of what a sweep varied.
        created: seconds since the epoch.
    """

    entity: str
    project: str
    id: str
    name: str = ""
    group: str = ""
    config: Mapping[str, Any] | None = None
    swept: Mapping[str, Any] | None = None
    created: float = 0.0

    @property
    def sweep(self) -> str:
        """The sweep of ours that it belongs to."""
        return f"wandb-{slug(self.project)}"[:MAX_NAME]

    @property
    def trial(self) -> str:
        return slug(self.id).lstrip("._=+,-")[:MAX_NAME] or "run"

    def plan(self, order: int = 0) -> TrialPlan:
        """The trial that stands for it. It cannot be run."""
        config = _plain(self.config or {})
        key = f"wandb-{slug(self.entity)}-{slug(self.project)}-{self.trial}"[:MAX_NAME]
        model = ModelSpec(source=f"wandb:{self.entity}/{self.project}/{self.id}", label=self.name or self.id)
        seed = config.get("seed")
        return TrialPlan(
            sweep=self.sweep,
            name=self.trial,
            group=slug(self.group or self.name or self.id)[:MAX_NAME],
            seed=seed if isinstance(seed, int) and 0 <= seed < 2**32 else 0,
            label=self.name or self.id,
            order=order,
            model=model,
            data=DataSpec(),
            evaluate=EvaluateSpec(),
            evaluation_key="wandb",
            stages=(StagePlan(key=key, kind="finetune", model=model, finetune=_LOGGED),),
            swept=_plain(self.swept or {}),
            config=config,
        )

    def kept_as(self, plan: TrialPlan) -> "ForeignRun":
        """The same run with all that its trial knows of it."""
        named = plan.group == slug(plan.label)[:MAX_NAME]  # it had no group of its own
        return replace(self, name=plan.label, group="" if named else plan.group, config=plan.config, swept=plan.swept)


class Keeper:
    """Keeps one run: its folder, its points, its rows. What was kept before is gone on with.

    Args:
        store: written in short transactions.
        run: who it is; what was kept of it before counts until `update` says otherwise.
    """

    def __init__(self, root: Root, store: Store, run: ForeignRun) -> None:
        self._store = store
        self.run = run
        self.folder = root.attempt(run.sweep, run.trial, 1)
        self._state = self._read()
        self._plan = run.plan(int(self._state.get("order", 0)))
        self._attempt = int(self._state.get("attempt", 0))
        if not self._attempt:
            self._attempt = self._begin(root)
        elif (kept := planned(self.folder)) is not None:
            self.run, self._plan = run.kept_as(kept), kept
        self._points = PointWriter(self.folder / "points.jsonl")

    @property
    def lines(self) -> int:
        """Rows of the history that are kept."""
        return int(self._state.get("lines", 0))

    @property
    def last_step(self) -> int:
        return int(self._state.get("last_step", -1))

    @property
    def summary(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._state.get("summary", {})
        return found

    def add(self, rows: Sequence[Mapping[str, Any]], offset: int) -> None:
        """Keeps rows of the history; those that are kept already are passed over.

        Args:
            offset: number of the first of them, from 0.
        """
        new = rows[max(self.lines - offset, 0) :]
        if not new:
            return
        points = [point for row in new for point in points_of(row)]
        for point in points:
            self._points.write(point)
        self._store.add_points(self._attempt, points)
        self._state["lines"] = offset + len(rows)
        steps = [row["_step"] for row in new if isinstance(row.get("_step"), int)]
        self._state["last_step"] = max([self.last_step, *steps])
        self._save()

    def update(self, run: ForeignRun, summary: Mapping[str, Any] | None = None) -> None:
        """Takes a changed configuration or summary."""
        if run != self.run:
            self.run = run
            self._plan = run.plan(self._plan.order)
            write_text(self.folder / "trial.json", self._plan.model_dump_json(indent=2) + "\n")
            self._store.add_trial(self._plan)
        if summary is not None:
            self._state["summary"] = dict(summary)
        self._save()

    def log(self, lines: Iterable[str]) -> None:
        """Appends to the log."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.writelines(line if line.endswith("\n") else line + "\n" for line in lines)

    def end(self, state: State, message: str = "") -> None:
        """The run is over. It may be gone on with all the same."""
        record = AttemptRecord(
            sweep=self._plan.sweep,
            trial=self._plan.name,
            attempt=1,
            state=state,
            reason="" if state == "finished" else ("stopped" if state == "stopped" else "exit"),
            error=message,
            stages=(_stage(self._plan.stages[0].key, self.summary, self._state),),
            started=float(self._state["started"]),
            ended=time.time(),
        )
        record.write(self.folder / "record.json")
        self._store.finish_attempt(record)
        self._save()

    def close(self) -> None:
        self._points.close()

    def _begin(self, root: Root) -> int:
        run = self.run
        try:
            self._store.sweep(run.sweep)
        except StoreError:
            title = f"{run.entity}/{run.project}, logged to W&B"
            self._store.save_sweep(SweepPlan(name=run.sweep, title=title, trials=()))
        self._plan = run.plan(len(self._store.results(run.sweep, shown=None)))
        saved = self._store.add_trial(self._plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "trial.json", self._plan.model_dump_json(indent=2) + "\n")
        started = self._store.start_attempt(saved.id)
        self.folder = root.path / started.folder
        self._state = {"order": self._plan.order, "attempt": started.id, "started": run.created or time.time()}
        self._save()
        return started.id

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / OUTSIDE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        try:
            known = self._store.attempts(f"{self.run.sweep}/{self.run.trial}")
        except StoreError:
            return {}  # the database is another one
        return found if any(row.id == found.get("attempt") for row in known) else {}

    def _save(self) -> None:
        own = {"entity": self.run.entity, "project": self.run.project, "run": self.run.id}
        write_json(self.folder / OUTSIDE, {**_plain(self._state), **own})


def points_of(row: Mapping[str, Any]) -> Iterator[Point]:
    """The numbers of one row of a history, nested ones by dotted names."""
    flat = dict(_numbers(row, ""))
    step = next((flat[name] for name in _STEPS if flat.get(name) is not None), row.get("_step", 0))
    stamp = row.get("_timestamp")
    for name, value in flat.items():
        if name.startswith("_"):
            continue
        yield Point(
            stage=0,
            step=int(step) if isinstance(step, (int, float)) else 0,
            epoch=_first(flat, _EPOCHS),
            name=name,
            value=value,
            time=float(stamp) if isinstance(stamp, (int, float)) else time.time(),
            tokens=int(_first(flat, _TOKENS)),
        )


def _first(flat: Mapping[str, float | None], names: Iterable[str]) -> float:
    return next((value for name in names if (value := flat.get(name)) is not None), 0.0)


def _numbers(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | None]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            if "_type" not in value:
                yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            continue
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value) if math.isfinite(value) else None
        elif value in ("NaN", "Infinity", "-Infinity"):
            yield prefix + name, None


def _stage(key: str, summary: Mapping[str, Any], state: Mapping[str, Any]) -> StageRecord:
    """What the run came to, where its summary has names that tables know."""
    flat = {name: value for name, value in _numbers(summary, "") if value is not None}
    perplexity = next(
        (flat[name] for name in ("perplexity", "eval/perplexity", "val/perplexity") if name in flat), None
    )
    loss = next((flat[name] for name in ("eval/loss", "eval_loss", "val/loss", "val_loss") if name in flat), None)
    evaluation = None
    if perplexity is not None or loss is not None:
        known = math.log(perplexity) if perplexity is not None and perplexity > 0 else None
        loss = known if loss is None else loss
        evaluation = Evaluation(
            key="wandb",
            protocol=PROTOCOL,
            split="",
            perplexity=perplexity if perplexity is not None else _exp(loss),
            loss=loss,
            bits_per_byte=flat.get("bits_per_byte"),
            word_perplexity=None,
            tokens=0,
            windows=0,
        )
    sparsity = None
    if "sparsity" in flat:
        overall = flat.get("sparsity_all", 0.0)
        sparsity = SparsityRecord(pruned=flat["sparsity"], overall=overall, selected=0, parameters=0)
    return StageRecord(
        key=key,
        kind="finetune",
        index=0,
        cached=False,
        seconds=float(flat.get("_runtime", 0.0)),
        train_tokens=int(_first(flat, _TOKENS)),
        steps=max(int(state.get("last_step", 0)), 0),
        evaluation=evaluation,
        sparsity=sparsity,
    )


def _exp(loss: float | None) -> float | None:
    return math.exp(loss) if loss is not None and loss < 700 else None


def _plain(value: Any) -> Any:
    """The same as JSON has it: what is not finite is text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
