"""Runs that were made elsewhere, as trials: a folder below ROOT/trials like any other, and rows in the store.

They belong to a sweep `wandb-PROJECT`. A run has one stage, `finetune`, whose curves are what it logged.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict

from prunegpt.errors import StoreError
from prunegpt.launch.log import LOG
from prunegpt.records import (
    AttemptRecord,
    Evaluation,
    Point,
    PointWriter,
    Record,
    SparsityRecord,
    StageRecord,
    read_points,
)
from prunegpt.root import Root, write_text
from prunegpt.spec.naming import MAX_NAME, slug
from prunegpt.spec.plan import FOREIGN, StagePlan, SweepPlan, TrialPlan
from prunegpt.spec.read import MAX_DEPTH, MAX_INTEGER
from prunegpt.spec.schema import DataSpec, EvaluateSpec, FinetuneSpec, ModelSpec
from prunegpt.store import Store
from prunegpt.sweep.recovery import OUTSIDE, planned
from prunegpt.tracking.claims import POINTS
from prunegpt.tracking.ingest import start

PROTOCOL = "as logged to W&B"  # nobody knows how a foreign perplexity was measured
_RECORD = "record.json"  # in the folder of an attempt that has ended
_STEPS = ("trainer/global_step", "global_step", "train/global_step")
_TOKENS = ("tokens", "num_input_tokens_seen", "train/num_input_tokens_seen")
_EPOCHS = ("epoch", "train/epoch")
_PERPLEXITIES = ("perplexity", "eval/perplexity", "val/perplexity")
_LOSSES = ("eval/loss", "eval_loss", "val/loss", "val_loss")

ForeignState = Literal["finished", "failed", "stopped"]


class RunPath(NamedTuple):
    """Where a run is at W&B."""

    entity: str
    project: str
    id: str

    @property
    def sweep(self) -> str:
        """The sweep of ours that it belongs to."""
        return f"wandb-{slug(self.project)}"[:MAX_NAME]

    @property
    def trial(self) -> str:
        return slug(self.id).lstrip("._=+,-")[:MAX_NAME] or "run"

    def plan(
        self, label: str, group: str, config: Mapping[str, Any], swept: Mapping[str, Any], order: int = 0
    ) -> TrialPlan:
        """The trial that stands for it. It cannot be run."""
        key = f"wandb-{slug(self.entity)}-{slug(self.project)}-{self.trial}"[:MAX_NAME]
        model = ModelSpec(source=f"{FOREIGN}{self.entity}/{self.project}/{self.id}", label=label)
        seed = config.get("seed")
        return TrialPlan(
            sweep=self.sweep,
            name=self.trial,
            group=slug(group or label)[:MAX_NAME],
            seed=seed if isinstance(seed, int) and 0 <= seed < 2**32 else 0,
            label=label,
            order=order,
            model=model,
            data=DataSpec(),
            evaluate=EvaluateSpec(),
            evaluation_key="wandb",
            stages=(StagePlan(key=key, kind="finetune", model=model, finetune=FinetuneSpec()),),
            swept=plain(swept),
            config=plain(config),
        )


class StoredRun(Record):
    """What is kept of a run beside its trial and points; the file is touched when the run speaks."""

    model_config = ConfigDict(extra="ignore")  # earlier versions kept more

    attempt: int  # the store's number of its only one
    started: float = 0.0
    lines: int = 0  # rows of the history
    size: int | None = None  # bytes of points.jsonl that hold them; earlier versions did not say
    output: int = 0  # lines of what it has printed
    last_step: int = -1  # `_step` of the last row
    summary: Mapping[str, Any] = {}


class Keeper:
    """Keeps one run: its folder, its points, its rows. An existing run is resumed.

    Nothing of it stays in memory, and no file stays open.

    Args:
        store: written in short transactions.
        created: when it began, seconds since the epoch; default now.
    """

    def __init__(self, root: Root, store: Store, at: RunPath, created: float = 0.0) -> None:
        self._at = at
        self._store = store
        self.folder = root.attempt(at.sweep, at.trial, 1)
        kept: StoredRun | None = None
        with suppress(OSError, ValueError):  # the run is new
            kept = StoredRun.read(self.folder / OUTSIDE)
        self.plan = (planned(self.folder) if kept else None) or at.plan(at.id, "", {}, {}, self._order())
        if kept is None or not self._is_known(kept):
            title = f"{at.entity}/{at.project}, logged to W&B"
            attempt = start(root, store, SweepPlan(name=at.sweep, title=title, trials=()), self.plan)
            if kept is not None and attempt.folder == self.folder:  # the database is another one
                kept = kept.model_copy(update={"attempt": attempt.id})
                store.add_points(attempt.id, read_points(self.folder / POINTS)[0])
            else:
                kept = StoredRun(attempt=attempt.id, started=created or time.time())
            self.folder = attempt.folder
            kept.write(self.folder / OUTSIDE)
        self.kept = kept

    @property
    def active(self) -> float:
        """When the run last spoke, seconds since the epoch."""
        return (self.folder / OUTSIDE).stat().st_mtime

    @property
    def ended(self) -> str:
        """How the run ended, where it has."""
        try:
            return AttemptRecord.read(self.folder / _RECORD).state
        except (OSError, ValueError):
            return ""

    def touch(self) -> None:
        """The run has spoken."""
        os.utime(self.folder / OUTSIDE)

    def add(self, rows: Sequence[Mapping[str, Any]], offset: int) -> None:
        """Keeps rows of the history; those that are kept already are passed over.

        Args:
            offset: number of the first of them, from 0.

        Raises:
            ValueError: they are nested too deep, or are at a step that is none; none of them is kept.
        """
        new = [plain(row) for row in rows[max(self.kept.lines - offset, 0) :]]
        if not new:
            return
        points = [point for row in new for point in points_of(row)]
        file = self.folder / POINTS
        if self.kept.size is not None and file.exists():
            os.truncate(file, self.kept.size)  # rows that could not be kept to the end are sent again
        with closing(PointWriter(file)) as writer:
            for point in points:
                writer.write(point)
        self._store.add_points(self.kept.attempt, points)
        last = max([self.kept.last_step, *(step_of(row) for row in new)])
        self._keep(lines=offset + len(rows), size=file.stat().st_size, last_step=last)

    def update(
        self,
        *,
        label: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
        swept: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """The run continues with further values. A configuration is merged."""
        before = self.plan
        kept_group = "" if before.group == slug(before.label)[:MAX_NAME] else before.group  # "": it had none
        self.plan = self._at.plan(
            label or before.label,
            group or kept_group,
            {**before.config, **(config or {})},
            before.swept if swept is None else swept,
            before.order,
        )
        if self.plan != before:
            write_text(self.folder / "trial.json", self.plan.model_dump_json(indent=2) + "\n")
            self._store.add_trial(self.plan)
        (self.folder / _RECORD).unlink(missing_ok=True)
        self._keep(summary=self.kept.summary if summary is None else plain(summary))

    def log(self, lines: Sequence[str], offset: int) -> None:
        """Appends to the log what it does not have yet.

        Args:
            offset: number of the first line, from 0.
        """
        new = lines[max(self.kept.output - offset, 0) :]
        if new:
            with (self.folder / LOG).open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(line if line.endswith("\n") else line + "\n" for line in new)
            self._keep(output=offset + len(lines))

    def end(self, state: ForeignState, message: str = "") -> None:
        """The run is over. It can still be resumed."""
        record = AttemptRecord(
            sweep=self.plan.sweep,
            trial=self.plan.name,
            attempt=1,
            state=state,
            reason="" if state == "finished" else ("stopped" if state == "stopped" else "exit"),
            error=message,
            stages=(_stage(self.plan.stages[0].key, self.kept),),
            started=self.kept.started,
            ended=time.time(),
        )
        record.write(self.folder / _RECORD)
        self._store.finish_attempt(record)

    def _order(self) -> int:
        """The place of a new trial in its sweep."""
        try:
            return len(self._store.results(self._at.sweep, shown=None))
        except StoreError:
            return 0

    def _is_known(self, kept: StoredRun) -> bool:
        """Whether the database has what was kept."""
        try:
            return any(row.id == kept.attempt for row in self._store.attempts(f"{self._at.sweep}/{self._at.trial}"))
        except StoreError:
            return False

    def _keep(self, **changed: Any) -> None:
        self.kept = self.kept.model_copy(update=changed)
        self.kept.write(self.folder / OUTSIDE)


def step_of(row: Mapping[str, Any]) -> int:
    """The number that W&B gives a row; 0 where it has none.

    Raises:
        ValueError: it is none that a database holds.
    """
    step = whole(row.get("_step") or 0)
    if step is None:
        raise ValueError(f"_step must be a whole number from 0 to {MAX_INTEGER}, but is {row['_step']!r}.")
    return step


def points_of(row: Mapping[str, Any]) -> Iterator[Point]:
    """The numbers of one row of a history, nested ones by dotted names.

    Raises:
        ValueError: it is at a step that is none.
    """
    flat = dict(_numbers(row, ""))
    step, tokens = _whole(flat, _STEPS, step_of(row)), _whole(flat, _TOKENS)
    stamp = flat.get("_timestamp")
    for name, value in flat.items():
        if not name.startswith("_"):
            yield Point(
                stage=0,
                step=step,
                epoch=_first(flat, _EPOCHS) or 0.0,
                name=name,
                value=value,
                time=time.time() if stamp is None else stamp,
                tokens=tokens,
            )


def _first(flat: Mapping[str, float | None], names: Iterable[str]) -> float | None:
    return next((value for name in names if (value := flat.get(name)) is not None), None)


def _whole(flat: Mapping[str, float | None], names: Iterable[str], otherwise: int = 0) -> int:
    return next((found for name in names if (found := whole(flat.get(name))) is not None), otherwise)


def _numbers(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | None]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            if "_type" not in value:
                yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            continue
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)
        elif value in ("NaN", "Infinity", "-Infinity"):
            yield prefix + name, None


def _stage(key: str, kept: StoredRun) -> StageRecord:
    """What the run came to, where its summary has names that tables know."""
    flat = dict(_numbers(kept.summary, ""))
    perplexity, loss = _first(flat, _PERPLEXITIES), _first(flat, _LOSSES)
    if loss is None and perplexity is not None and perplexity > 0:
        loss = math.log(perplexity)
    if perplexity is None and loss is not None and loss < 700:
        perplexity = math.exp(loss)
    evaluation = sparsity = None
    if perplexity is not None or loss is not None:
        evaluation = Evaluation(
            key="wandb",
            protocol=PROTOCOL,
            split="",
            perplexity=perplexity,
            loss=loss,
            bits_per_byte=flat.get("bits_per_byte"),
            word_perplexity=None,
            tokens=0,
            windows=0,
        )
    pruned = flat.get("sparsity")
    if pruned is not None and 0 <= pruned <= 1:
        overall = min(max(flat.get("sparsity_all") or 0.0, 0.0), 1.0)
        sparsity = SparsityRecord(pruned=pruned, overall=overall, selected=0, parameters=0)
    return StageRecord(
        key=key,
        kind="finetune",
        index=0,
        cached=False,
        seconds=flat.get("_runtime") or 0.0,
        train_tokens=_whole(flat, _TOKENS),
        steps=max(kept.last_step, 0),
        evaluation=evaluation,
        sparsity=sparsity,
    )


# -- what others have logged, as every reader of JSON and every database takes it --------------------------------------


def plain(value: Any, depth: int = 0) -> Any:
    """The same as bounded JSON.

    A whole number of more than 64 bits becomes a float, what is not finite the text that W&B writes for it, and what
    JSON has no kind for its text, without characters that UTF-8 or a database refuse.

    Raises:
        ValueError: it is nested deeper than `MAX_DEPTH` levels.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"values may be nested {MAX_DEPTH} levels deep, but are nested deeper. Flatten them.")
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= MAX_INTEGER else plain(float(str(value)))
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return _text(str(value))


def whole(value: Any) -> int | None:
    """A whole number from 0 on that a database's column holds, or None where this is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_INTEGER:
        return None
    return min(int(value), MAX_INTEGER)  # the float next to the largest integer is larger than that


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
