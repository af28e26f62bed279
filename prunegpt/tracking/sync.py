"""Sending what was kept: every trial that W&B has not, or has not all of, from the store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prunegpt.root import Root
from prunegpt.spec.tracking import WandbSpec
from prunegpt.store import Store
from prunegpt.tracking.client import Server
from prunegpt.tracking.posted import Posted, all_posted
from prunegpt.tracking.scribe import ENDED, Scribe


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
        names = [sweep] if sweep else list(dict.fromkeys(one.sweep for one in known.values()))
        scribes: dict[tuple[str, WandbSpec], Scribe] = {}
        for name in names:
            for result in store.results(name):
                before = known.get((name, result.name))
                if result.state not in ENDED or (before is None and sweep is None):
                    continue
                if before is not None and before.sent and before.state == result.state and before.key == result.key:
                    continue
                wanted = spec or (_spec(before) if before else WandbSpec(mode="online"))
                scribe = scribes.setdefault((name, wanted), Scribe(root, name, wanted, server, say))
                note = scribe.send(store, result)
                yield Synced(f"{name}/{result.name}", note.sent, note.problem)
    for scribe in scribes.values():
        scribe.sheets()


def _spec(before: Posted) -> WandbSpec:
    return WandbSpec(mode="online", project=before.project, entity=before.entity)
