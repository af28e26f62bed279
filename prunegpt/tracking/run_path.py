"""What a run of W&B is called there, and where it is in a root."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prunegpt.root import Root, read_json
from prunegpt.spec.naming import MAX_NAME, slug
from prunegpt.spec.plan import FOREIGN
from prunegpt.sweep.recovery import planned

_MARK = 8  # hexadecimal digits of a mark that distinguishes two names


class RunPath(NamedTuple):
    """A run at W&B. All three together are its identity."""

    entity: str
    project: str
    id: str

    @property
    def source(self) -> str:
        """What the model of its trial is called, of which there is none here."""
        return f"{FOREIGN}{self.entity}/{self.project}/{self.id}"


class Place(NamedTuple):
    """The trial that stands for a run."""

    sweep: str
    trial: str


def place_of(root: Root, at: RunPath, *, claim: bool = False) -> Place:
    """Where a run is, or would be.

    The sweep `wandb-PROJECT` belongs to the first project that claims it, by a file below ROOT/wandb/projects; another
    one whose name would be the same, of another entity say, gets a mark behind it. A run's id is marked where it
    cannot be a folder's name as it is.

    Args:
        claim: the run begins, so that its project takes the name if nobody has it.
    """
    sweep, trial = f"wandb-{slug(at.project)}"[:MAX_NAME], slug(at.id).lstrip("._=+,-")[:MAX_NAME] or "run"
    own = trial if trial == at.id else _marked(trial, at.id)
    ours = _owner(root, sweep, at, claim) == (at.entity, at.project)
    if ours and own == trial:
        return Place(sweep, own)
    for name in dict.fromkeys((own, trial)):  # earlier versions marked neither
        if _is_of(root.trial(sweep, name), at):
            return Place(sweep, name)
    other = sweep if ours else _marked(sweep, f"{at.entity}/{at.project}")
    if claim and not ours:
        _owner(root, other, at, claim)  # so that the project is listed
    return Place(other, own)


def projects_of(root: Root) -> list[tuple[str, str]]:
    """Entity and project of every project that runs were logged to, by name."""
    found = []
    for file in sorted((root.path / "wandb" / "projects").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = read_json(file)
            found.append((str(said["entity"]), str(said["project"])))
    return found


def began(root: Root, at: RunPath) -> float:
    """When something was first logged to a project, seconds since the epoch; 0 where nothing was."""
    folder = root.path / "trials" / place_of(root, at).sweep
    return min((path.stat().st_ctime for path in folder.glob("*")), default=0.0)


def _owner(root: Root, sweep: str, at: RunPath, claim: bool) -> tuple[str, str]:
    """Entity and project that a sweep's name belongs to; those of the run where it belongs to nobody."""
    file = root.path / "wandb" / "projects" / f"{sweep}.json"
    for _ in range(2):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_json(file)
            return str(found["entity"]), str(found["project"])
        earlier = _earlier(root.path / "trials" / sweep)
        owner = earlier or (at.entity, at.project)
        if not claim:
            return owner
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_once(file, owner)
    return at.entity, at.project


def _write_once(file: Path, owner: tuple[str, str]) -> None:
    """Writes who has a name, unless somebody was faster."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"entity": owner[0], "project": owner[1]}), encoding="utf-8")
    with suppress(FileExistsError):
        os.link(temporary, file)
    temporary.unlink()


def _earlier(folder: Path) -> tuple[str, str] | None:
    """Entity and project of a sweep that an earlier version has made."""
    for trial in sorted(folder.glob("*/attempt-1")):
        plan = planned(trial)
        if plan is not None and plan.foreign:
            entity, project, *_ = [*plan.model.source.removeprefix(FOREIGN).split("/", 2), "", ""]
            return entity, project
    return None


def _is_of(folder: Path, at: RunPath) -> bool:
    plan = planned(folder / "attempt-1")
    return plan is not None and plan.model.source == at.source


def _marked(name: str, whole: str) -> str:
    mark = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:_MARK]
    return f"{name[: MAX_NAME - _MARK - 1]}-{mark}"
