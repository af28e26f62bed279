"""Hosted sweeps on disk: a JSON file each below ROOT/wandb/sweeps, written whole."""

import re
from collections.abc import Iterator

from prunegpt.root import Root, write_text
from prunegpt.tracking.endpoint.hosted import Hosted

_NAME = re.compile(r"[a-z0-9]{1,32}")


class Shelf:
    """All sweeps of a root. Used by one process, the server's."""

    def __init__(self, root: Root) -> None:
        self._folder = root.path / "wandb" / "sweeps"
        self._known: dict[str, Hosted] = {}

    def get(self, name: str) -> Hosted | None:
        """The sweep of that short id."""
        if name not in self._known and _NAME.fullmatch(name):
            path = self._folder / f"{name}.json"
            if path.exists():
                self._known[name] = Hosted.model_validate_json(path.read_text(encoding="utf-8"))
        return self._known.get(name)

    def keep(self, hosted: Hosted) -> None:
        """Writes a sweep as it is now."""
        self._known[hosted.name] = hosted
        write_text(self._folder / f"{hosted.name}.json", hosted.model_dump_json(indent=1) + "\n")

    def all(self) -> Iterator[Hosted]:
        """Every sweep, by short id."""
        for path in sorted(self._folder.glob("*.json")):
            found = self.get(path.stem)
            if found is not None:
                yield found

    def of_agent(self, agent: str) -> Hosted | None:
        """The sweep that an agent belongs to."""
        return next((hosted for hosted in self.all() if agent in hosted.agents), None)
