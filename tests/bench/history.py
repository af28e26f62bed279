"""Results on disk: the latest ones whole, and a line for every run, so that a regression shows."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.harness import Settings
from tests.bench.rows import Row

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Place:
    """Where and how figures came about. Only those of equal places are compared."""

    processor: str
    cores: int
    device: str  # cpu, or the card's name
    threads: int
    clock: str
    quick: bool
    machine: str = ""  # what tells it from others with the same processor

    @property
    def of_machine(self) -> tuple[str, int, str]:
        return self.processor, self.cores, self.machine

    @classmethod
    def here(cls, settings: Settings, machine: str = "") -> "Place":
        import torch

        on_card = settings.device == "cuda" and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if on_card else settings.device
        cores = len(os.sched_getaffinity(0))
        return cls(_processor(), cores, device, settings.threads, settings.clock, settings.quick, machine)


@dataclass(frozen=True)
class Latest:
    """latest.json: the newest figure of every row."""

    place: Place
    date: str
    commit: str
    versions: dict[str, str]
    rows: tuple[Row, ...]


def read_latest(folder: Path = RESULTS) -> Latest | None:
    """What latest.json holds; None where there is none."""
    path = folder / "latest.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(Row.read(row) for row in data.pop("rows"))
    return Latest(**{**data, "place": Place(**data["place"]), "rows": rows})


def last_rows(place: Place, folder: Path = RESULTS) -> dict[str, Row]:
    """The last figure of each row that was taken at an equal place."""
    path = folder / "history.jsonl"
    found: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        if Place(**entry["place"]) == place:
            found |= {row["name"]: Row.read(row) for row in entry["rows"] if not row.get("skipped")}
    return found


def elsewhere(latest: Latest, folder: Path = RESULTS) -> dict[str, list[Row]]:
    """By row, the last figure on each other machine where the same was measured, beside the one of `latest`."""
    path = folder / "history.jsonl"
    places: dict[tuple[str, int, str], Place] = {}  # the last one of each machine
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        place = Place(**json.loads(line)["place"])
        if (place.device, place.clock, place.quick) == (latest.place.device, latest.place.clock, False):
            places[place.of_machine] = place
    places.pop(latest.place.of_machine, None)
    same = {row.name: row.what for row in latest.rows if not row.skipped}
    found: dict[str, list[Row]] = {}
    for place in places.values():
        for name, row in last_rows(place, folder).items():
            if same.get(name) == row.what:
                found.setdefault(name, []).append(row)
    return found


def write(rows: Sequence[Row], place: Place, folder: Path = RESULTS) -> Latest:
    """Appends a run to the history, and puts its rows into latest.json.

    Rows that were not measured this time stay as they are there, where they come from an equal place.
    """
    before = read_latest(folder)
    kept: Iterable[Row] = before.rows if before is not None and before.place == place else ()
    merged = {row.name: row for row in kept}
    for row in rows:
        if not row.skipped or merged.get(row.name, row).skipped:
            merged[row.name] = row
    latest = Latest(place, _now(), _commit(), _versions(), tuple(merged.values()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(_plain(latest), indent=2, ensure_ascii=False) + "\n", "utf-8")
    with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(replace(latest, rows=tuple(rows))), ensure_ascii=False) + "\n")
    return latest


def _plain(latest: Latest) -> dict[str, Any]:
    return {**asdict(latest), "rows": [row.written() for row in latest.rows]}


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _commit() -> str:
    asked = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=7"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "optuna", "wandb", "SQLAlchemy")}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
