"""Where the numbers of a table come from: read from the records, so that the same store gives the same line."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prunegpt.records import TrialResult

_NAMED = ("prunegpt", "torch", "transformers")  # packages whose version a line names
_KEY_SHOWN = 12  # digits of an evaluation key


@dataclass(frozen=True)
class Provenance:
    """The provenance of some trials."""

    sweeps: tuple[str, ...]
    versions: Mapping[str, tuple[str, ...]]  # package -> every version that computed one of the stages
    protocols: tuple[str, ...]
    evaluations: tuple[str, ...]  # keys: text, tokeniser and windowing, hashed
    devices: tuple[str, ...]
    threads: tuple[int, ...]  # CPU threads of stages that were computed on the CPU
    newest: float | None  # when the last trial ended, in seconds since the epoch
    trials: int
    commit: str | None = None  # of the spec

    @property
    def date(self) -> str | None:
        """When the newest result ended, in UTC."""
        if self.newest is None:
            return None
        return datetime.fromtimestamp(self.newest, UTC).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def line(self) -> str:
        """All of it in one line of text."""
        parts = [f"sweep {', '.join(self.sweeps)}" if self.sweeps else "no results"]
        if self.commit:
            parts.append(f"spec at {self.commit}")
        parts += [f"{name} {', '.join(self.versions[name])}" for name in _NAMED if name in self.versions]
        if self.protocols:
            parts.append(f"protocol {', '.join(self.protocols)}")
        if self.evaluations:
            parts.append(f"evaluation {', '.join(key[:_KEY_SHOWN] for key in self.evaluations)}")
        if len(self.threads) > 1:
            parts.append(f"computed with {' and '.join(map(str, self.threads))} CPU threads")
        if self.date:
            parts.append(f"newest result {self.date}")
        return "; ".join(parts)


def gather(results: Sequence[TrialResult], *, commit: str | None = None) -> Provenance:
    """What the records of these trials say about themselves."""
    stages = [stage for trial in results for stage in trial.stages]
    versions: dict[str, set[str]] = {}
    for stage in stages:
        for name, version in stage.versions.items():
            versions.setdefault(name, set()).add(version)
    evaluations = [trial.evaluation for trial in results if trial.evaluation]
    ended = [trial.ended for trial in results if trial.ended is not None and trial.stages]
    return Provenance(
        sweeps=_unique(trial.sweep for trial in results),
        versions={name: tuple(sorted(found)) for name, found in sorted(versions.items())},
        protocols=_unique(evaluation.protocol for evaluation in evaluations),
        evaluations=_unique(evaluation.key for evaluation in evaluations),
        devices=_unique(stage.device for stage in stages if stage.device),
        threads=tuple(sorted({stage.threads for stage in stages if stage.device == "cpu" and stage.threads})),
        newest=max(ended, default=None),
        trials=len({trial.id for trial in results}),
        commit=commit,
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def spec_commit(spec: Path) -> str | None:
    """The commit that last changed a spec, marked where the file differs from it; None outside a git checkout."""
    commit = _git(spec, "log", "-1", "--format=%h", "--", spec.name)
    if not commit:
        return None
    return f"{commit} (changed since)" if _git(spec, "status", "--porcelain", "--", spec.name) else commit


def _git(spec: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(spec.absolute().parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
