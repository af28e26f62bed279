"""Which models stay on the disk, and taking the others off it. What a trial came to stays always."""

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from prunegpt.records import StageRecord, TrialResult
from prunegpt.root import REMOVED, SEAL, Root, sealed, write_json
from prunegpt.spec.schema import Keep
from prunegpt.spec.search import ObjectiveSpec, SearchSpec
from prunegpt.store import Store

KEEP: tuple[str, ...] = get_args(Keep)
_DONE = ("finished", "diverged")  # states of trials that need no model any more
_PAUSE = 10.0  # seconds between two looks of a sweep that runs


@dataclass(frozen=True)
class Removable:
    """The model of a stage that may go."""

    key: str
    kind: str
    trials: tuple[str, ...]  # SWEEP/TRIAL of those that came through it; none: of an earlier configuration
    bytes: int
    seconds: float  # that computing it again would take


def removable(
    root: Root,
    store: Store,
    policies: Mapping[str, str] | None = None,
    *,
    spared: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[Removable]:
    """The models that no unfinished trial needs and no sweep keeps, largest first.

    Args:
        policies: sweep -> what it keeps, in place of what its spec says.
        spared: sweeps of which nothing is removed.
        only: of these sweeps alone; models of earlier configurations stay then. Default: of all.
    """
    users: dict[str, list[str]] = {}
    held: set[str] = set()
    for sweep in store.sweeps():
        results = [one for one in store.results(sweep.name, shown=None) if not one.plan.foreign]
        policy = (policies or {}).get(sweep.name) or sweep.spec.get("keep", "all")
        best = set(best_of(results, sweep.spec)) if policy == "best" else set()
        for one in results:
            keys = [stage.key for stage in one.plan.stages]
            for key in keys:
                users.setdefault(key, []).append(one.address)
            if one.state not in _DONE:
                held.update(keys, one.plan.needs)
            elif policy == "all" or sweep.name in spared:
                held.update(keys)
            elif one.name in best:
                held.add(keys[-1])
    found = [_removable(root, folder.name, users) for folder in _stages(root) if folder.name not in held]
    chosen = [one for one in found if one and (only is None or any(_sweep(name) in only for name in one.trials))]
    return sorted(chosen, key=lambda one: -one.bytes)


def _sweep(address: str) -> str:
    return address.partition("/")[0]


def _stages(root: Root) -> Iterator[Path]:
    if root.stages.is_dir():
        yield from (path for path in sorted(root.stages.iterdir()) if not path.name.startswith(".") and path.is_dir())


def _removable(root: Root, key: str, users: Mapping[str, list[str]]) -> Removable | None:
    size = sum(path.stat().st_size for path in _files(root.stage(key)))
    if not size or not root.is_published(key):
        return None
    record = StageRecord.read(root.stage(key) / "stage.json")
    return Removable(key, record.kind, tuple(users.get(key, ())), size, record.seconds)


def _files(folder: Path) -> list[Path]:
    """The files of a stage that make its model."""
    parts = [path for name in ("model", "checkpoints") for path in (folder / name).rglob("*") if path.is_file()]
    return [*parts, *(path for path in (folder / "masks.safetensors",) if path.exists())]


def remove_model(root: Root, key: str) -> None:
    """Takes the model of a published stage off the disk; its records, evaluations and digests stay.

    An interruption at any point leaves a stage whose model is there, or one whose model counts as removed.
    """
    folder = root.stage(key)
    gone = {path.relative_to(folder).as_posix() for path in _files(folder)}
    before = sealed(folder)
    contents = {name: list(content) for name, content in (before or {}).items() if name in gone}
    if not (folder / REMOVED).exists():
        write_json(folder / REMOVED, contents)
    if before is not None:
        write_json(folder / SEAL, {name: list(content) for name, content in before.items() if name not in gone})
    for name in ("model", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "masks.safetensors").unlink(missing_ok=True)
    root.kept(key).unlink(missing_ok=True)


def best_of(results: Iterable[TrialResult], spec: Mapping[str, Any]) -> list[str]:
    """The best of the seeds of each configuration, by perplexity, and of each search, by its objectives.

    Of several objectives all trials that no other one beats in every one of them.
    """
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for one in results:
        if one.state == "finished":
            groups.setdefault((one.plan.search, "" if one.plan.search else one.plan.group), []).append(one)
    return [one.name for (search, _), tried in groups.items() for one in _front(tried, _objectives(spec, search))]


def _objectives(spec: Mapping[str, Any], search: str) -> tuple[ObjectiveSpec, ...]:
    for trial in spec.get("trials", ()) if search else ():
        with suppress(ValidationError, TypeError, AttributeError, KeyError):
            if trial["name"] == search:
                return SearchSpec.model_validate(trial["search"]).objectives
    return (ObjectiveSpec(metric="perplexity", direction=None),)


def _front(tried: list[TrialResult], objectives: tuple[ObjectiveSpec, ...]) -> list[TrialResult]:
    costs: dict[int, list[float]] = {}
    for one in tried:
        values = [one.metrics.get(objective.metric) for objective in objectives]
        if all(value is not None for value in values):
            signs = [1 if objective.wanted == "minimize" else -1 for objective in objectives]
            costs[one.id] = [sign * (value or 0.0) for sign, value in zip(signs, values, strict=True)]
    if not costs:
        return tried  # nothing can be said of them

    def beaten(mine: list[float]) -> bool:
        others = (other for other in costs.values() if other != mine)
        return any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)

    return [one for one in tried if one.id in costs and not beaten(costs[one.id])]


class Retention:
    """Removes models while a sweep runs, as its spec says."""

    def __init__(
        self, root: Root, store: Store, sweep: str, policy: Keep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._store, self._sweep, self._policy, self._clock = root, store, sweep, policy, clock
        self._next = 0.0

    def look(self, kept: Collection[str], *, now: bool = False) -> None:
        """Removes what may go, where it is time to look.

        Args:
            kept: stage keys that may still be needed, such as by trials that a search will suggest.
            now: whether it is time in any case.
        """
        begun = self._clock()
        if self._policy == "all" or not (now or begun >= self._next):
            return
        for one in removable(self._root, self._store, {self._sweep: self._policy}, only=[self._sweep]):
            if one.key not in kept and not self._root.kept(one.key).exists():
                remove_model(self._root, one.key)
        self._next = self._clock() + max(_PAUSE, 20 * (self._clock() - begun))
