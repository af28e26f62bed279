"""Published folders that were cut, edited, half copied or half deleted."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from prunegpt.errors import StoreError, listed
from prunegpt.records import Evaluation, Record, StageRecord
from prunegpt.root import SEAL, Root, damage, sealed, set_aside, sha256, write_text
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store
from prunegpt.sweep.repair.database import attempt_folders, opens, plan_in, record_in
from prunegpt.sweep.repair.finding import Finding

_SHOWN = 3  # files named in one message
_CAUSES = {
    "missing": "it was deleted, or not copied with the rest",
    "cut": "the disk was full, or a copy was broken off",
    "changed": "it was edited, or the disk is failing",
    "unreadable": "it cannot be read as what it should be",
    "misplaced": "it belongs to another stage or evaluation: its folder was copied or renamed",
}


def broken_folders(root: Root, *, deep: bool = True) -> Iterator[Finding]:
    """Stages and their evaluations, and cached tokens, statistics and teachers, that are not as they were published."""
    known = _Known(root)
    for folder in _visible(root.stages):
        stage = _damaged(folder, "stage", "stage.json", StageRecord, known.stage, deep)
        if stage:
            yield stage
            continue
        for evaluation in _visible(folder / "evaluations"):
            found = _damaged(evaluation, "evaluation", "evaluation.json", Evaluation, known.evaluation, deep)
            if found:
                yield found
    for parent in (root.data, root.statistics, root.teachers, root.path / "tokenizers"):
        for folder in _visible(parent):
            for place in [folder, *_visible(folder)]:
                if place.is_dir() and (found := _damaged(place, "cache", None, None, lambda _: {}, deep)):
                    yield found


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_dir()]


def _damaged(
    folder: Path,
    kind: str,
    name: str | None,
    model: type[Record] | None,
    contents: Callable[[Path], Mapping[str, list[str]]],
    deep: bool,
) -> Finding | None:
    """What is wrong with one folder.

    Args:
        name: the file that says that the folder is published, and must be a `model`.
        contents: the contents that a file may have had.
    """
    wrong = damage(folder, deep=deep)
    if not wrong and name and model and (problem := _unreadable(folder / name, model)):
        text = f"{name} {problem}; so the {kind} does not count as published."
        return _aside(Finding(kind, folder, text))
    if not wrong:
        return None
    damaged = (f"{item.file} is {item.what} ({_CAUSES[item.what]})" for item in wrong)
    found = Finding(kind, folder, f"{listed(damaged, _SHOWN)}.")
    lost = wrong[0].file == SEAL or wrong[0].what == "misplaced"
    restored = {} if lost else _restorable(folder, [item.file for item in wrong], contents(folder))
    if len(restored) < len(wrong):
        return _aside(found)
    remedy = f"write {listed(restored)} again as it was"
    return Finding(kind, folder, found.text, remedy, apply=partial(_write, folder, restored))


def _unreadable(path: Path, model: type[Record]) -> str:
    try:
        model.read(path)
    except FileNotFoundError:
        return "is missing"
    except ValidationError as error:
        return f"is no record ({error.error_count()} fields are wrong)"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    return ""


def _aside(finding: Finding) -> Finding:
    fix = "set it aside; whatever needs it computes it again in the next run"
    return Finding(finding.kind, finding.path, finding.text, fix, apply=partial(set_aside, finding.path))


def _restorable(folder: Path, files: list[str], contents: Mapping[str, list[str]]) -> dict[str, str]:
    """Those of the files whose text is known from elsewhere: its hash is that of the seal."""
    import hashlib

    seals = sealed(folder) or {}
    return {
        file: text
        for file in files
        for text in contents.get(file, [])
        if hashlib.sha256(text.encode()).hexdigest() == seals[file][1]
    }


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    for file, text in contents.items():
        write_text(folder / file, text)
        assert sha256(folder / file) == (sealed(folder) or {})[file][1]


class _Known:
    """What database and attempts say that small published files said."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self._records: list[StageRecord] | None = None
        self._plans: list[TrialPlan] = []

    def _load(self) -> list[StageRecord]:
        if self._records is None:
            folders = list(attempt_folders(self.root))
            self._plans = [plan for folder in folders if (plan := plan_in(folder))]
            self._records = [stage for folder in folders if (one := record_in(folder)) for stage in one.stages]
            self._records += self._stored()
        return self._records

    def _stored(self) -> list[StageRecord]:
        if not opens(self.root):
            return []
        try:
            with Store.open(self.root, create=False) as store:
                results = [result for sweep in store.sweeps() for result in store.results(sweep.name, shown=None)]
        except StoreError:
            return []
        return [stage for result in results for stage in result.stages]

    def stage(self, folder: Path) -> Mapping[str, list[str]]:
        records = [record for record in self._load() if record.key == folder.name]
        plain = [record.model_copy(update={"evaluation": None, "cached": False}) for record in records]
        firsts = [record.model_copy(update={"index": index}) for record in plain for index in range(8)]
        plans = [stage for plan in self._plans for stage in plan.stages if stage.key == folder.name]
        return {
            "stage.json": [_text(record) for record in [*plain, *firsts]],
            "plan.json": [f"{stage.model_dump_json(indent=2)}\n" for stage in plans],
        }

    def evaluation(self, folder: Path) -> Mapping[str, list[str]]:
        stage = folder.parent.parent.name
        measured = [record.evaluation for record in self._load() if record.key == stage and record.evaluation]
        return {"evaluation.json": [_text(found) for found in measured if found.key == folder.name]}


def _text(record: Record) -> str:
    return record.model_dump_json(indent=2) + "\n"
