"""Taking a sweep out of a root."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from prunegpt.errors import LaunchError
from prunegpt.root import Root
from prunegpt.store import Store
from prunegpt.sweep.recovery import is_outside


@dataclass(frozen=True)
class Removal:
    """What would go."""

    name: str
    trials: int
    attempts: int
    stages: tuple[str, ...]  # keys whose folders nothing else uses
    bytes: int  # of those folders

    @classmethod
    def of(cls, name: str, root: Root, store: Store, *, stages: bool) -> "Removal":
        """What removing a sweep would take with it.

        Args:
            stages: also stage folders that no trial of another sweep has come through, is planned to, or learns from.

        Raises:
            StoreError: there is no such sweep.
            LaunchError: agents run trials of it.
        """
        _refuse_while_agents_run(name, root, store)
        held = store.held(name)
        own = sorted(held.stages - held.elsewhere) if stages else []
        places = [place for key in own for place in (root.stage(key), root.work(key))]
        size = sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
        return cls(name, held.trials, held.attempts, tuple(own), size)

    def remove(self, root: Root, store: Store) -> None:
        """Rows first: an interruption leaves folders that nothing names, not rows whose folders are gone.

        Raises:
            LaunchError: agents have begun to run trials of it.
        """
        _refuse_while_agents_run(self.name, root, store)
        store.remove_sweep(self.name, self.stages)
        for key in self.stages:
            _remove(root.stage(key))
            _remove(root.work(key))
            root.work(key).with_suffix(".lock").unlink(missing_ok=True)
        _remove(root.path / "trials" / self.name)
        _remove(root.path / "figures" / self.name)


def _refuse_while_agents_run(name: str, root: Root, store: Store) -> None:
    running = [
        f"{row.trial}/attempt-{row.number}"
        for row in store.running_attempts()
        if row.sweep == name and is_outside(root.path / row.folder)
    ]
    if running:
        raise LaunchError(
            f"only a sweep that nobody runs can be removed; agents run {len(running)} of {name}: "
            f"{', '.join(running[:3])}. End them, or wait until they have been silent for ten minutes."
        )


def _remove(folder: Path) -> None:
    """A folder under another name first, so that no half of it is ever taken for a whole."""
    if os.path.isdir(folder):  # not exists(): a name of an earlier version may be too long to be asked after
        doomed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
