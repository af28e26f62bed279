"""Sending what was kept: every trial that W&B has not, or has not all of, from the store."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prunegpt.root import Root
from prunegpt.spec.tracking import TrackingSpec, WandbSpec
from prunegpt.store import Store
from prunegpt.tracking.client import Server
from prunegpt.tracking.posted import ENDED, all_posted
from prunegpt.tracking.scribe import Scribe


@dataclass(frozen=True)
class Synced:
    """What became of one trial."""

    trial: str
    sent: bool
    problem: str


def sync(
    root: Root,
    *,
    sweep: str | None = None,
    spec: WandbSpec | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Synced]:
    """Sends trials that wait to be sent; one that W&B has already is not sent again.

    Those of a sweep that is tracked wait even where nothing could be noted of them, as on a full disk.

    Args:
        sweep: this one only, and all of its trials, whether they were to be tracked or not.
        spec: where to; what each trial was kept for where not given.

    Raises:
        TrackingError: there is no API key, or the server cannot be reached.
    """
    server = Server.find()
    server.ask("query Viewer { viewer { id } }", {})  # before anything is begun
    known = {(one.sweep, one.trial): one for one in all_posted(root)}
    with Store.open(root, create=False) as store:
        tracked = {row.name: _tracking(row.spec) for row in store.sweeps()}
        told = {one.sweep for one in known.values()}
        waiting = [name for name, own in tracked.items() if own.mode != "off" or name in told]
        scribes: dict[tuple[str, WandbSpec], Scribe] = {}
        for name in [sweep] if sweep else waiting:
            own = tracked.get(name, WandbSpec())
            for result in store.results(name):
                before = known.get((name, result.name))
                if result.state not in ENDED or (before is None and sweep is None and own.mode == "off"):
                    continue
                if before is not None and before.sent and before.state == result.state and before.key == result.key:
                    continue
                kept = {"project": before.project, "entity": before.entity} if before else {}
                wanted = spec or own.model_copy(update={"mode": "online", **kept})
                scribe = scribes.setdefault((name, wanted), Scribe(root, name, wanted, server, say))
                note = scribe.send(store, result)
                yield Synced(f"{name}/{result.name}", note.sent, note.problem)
    for scribe in scribes.values():
        scribe.sheets()


def _tracking(spec: Mapping[str, Any]) -> WandbSpec:
    """How a sweep's spec wants W&B to be told."""
    try:
        return TrackingSpec.model_validate(spec.get("tracking") or {}).wandb
    except ValidationError:
        return WandbSpec()  # of another version
