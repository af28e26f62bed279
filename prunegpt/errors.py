"""The error tree.

Every message states the rule, then the value that broke it, then a hint. The command line prints the message of a
:class:`PruneGPTError` and exits with 1; anything else is a defect of ours and keeps its trace.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

MOST_LISTED = 12  # names in one message
_NEAREST = 6  # of them, where there are more than that
_TELLING = 3  # letters that a name has in common with others by more than chance
_NAMED = 4  # trials shown in one message
_BELOW_TRIAL = re.compile(r"^trials\.\d+\.?")  # of a field's path: which trial it is of


class PruneGPTError(Exception):
    """Base of all errors whose message is meant for the user."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: where it is, and what to do."""

    where: str  # the path of the field, as `--set` takes it: trials.0.stages.1.prune.sparsity
    message: str
    line: int | None = None  # counted from 1 in the file
    trial: str = ""  # that has the field; empty where it is in `base` or of the whole spec

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.where}: {self.message}" if self.where else f"{place}{self.message}"


class SpecError(PruneGPTError):
    """A spec that cannot run. All its problems are reported at once, and what several trials have once."""

    def __init__(self, problems: Iterable[Problem], source: str = "the spec") -> None:
        self.problems = tuple(problems)
        self.source = source
        told = _told(self.problems)
        super().__init__("\n".join([f"{source}: {counted(len(told), 'problem')}", *(f"  {text}" for text in told)]))


def _told(problems: Iterable[Problem]) -> list[str]:
    """The problems in words: one and the same field of several trials once, with the trials."""
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((_BELOW_TRIAL.sub("", problem.where), problem.message), []).append(problem)
    return [f"{found[0]}{_others(list(dict.fromkeys(found)))}" for found in alike.values()]


def _others(found: Sequence[Problem]) -> str:
    """The end of a message: the trials that have the same problem as the first one."""
    if len(found) == 1:
        return ""
    lines = [f" (line {one.line})" if one.line != found[0].line else "" for one in found]
    names = [f"{one.trial or one.where}{line}" for one, line in zip(found, lines, strict=True)]
    return f" In {len(found)} trials: {listed(names, _NAMED)}."


class UnknownPartError(PruneGPTError, ValueError):
    """A name that no registered part has."""


class ModelError(PruneGPTError):
    """A model that cannot be loaded, or is not a decoder language model we can view."""


class ReportError(PruneGPTError):
    """A table, figure or comparison that the results do not support."""


class DataError(PruneGPTError):
    """Text that is missing, empty, not text, or too short for one window."""


class InputError(DataError, ModelError):
    """A file of a text or a model that is not what the trial was planned with."""


class PruningError(PruneGPTError):
    """A pruning request that the model or the numbers do not allow."""


class StreamingError(PruningError):
    """The decoder layers of a model cannot be run one at a time by themselves; nothing is pruned yet."""


class MaskDriftError(PruningError):
    """A weight that should be zero is not, or a tensor that should be untouched has changed."""


class ShrinkError(PruneGPTError):
    """A smaller shape that the model's family cannot express, or that a request does not describe."""


class DistillationError(PruneGPTError):
    """A teacher that does not fit its student, or a distillation that cannot be computed."""


class DivergedError(PruneGPTError):
    """A training loss that is not finite or exploded."""


class Interrupted(PruneGPTError):
    """A stage was asked to stop; what resumes it was written first."""


class StoreError(PruneGPTError):
    """The database of a root cannot be opened, or does not hold what was asked for."""


class LaunchError(PruneGPTError):
    """An attempt could not be started or was lost."""


class MissingPackageError(PruneGPTError):
    """An optional package that this request needs is not installed."""


def untrusted(what: str, sources: Iterable[str]) -> PruneGPTError:
    """The error where something that may come from elsewhere, such as a root or a folder, asks for code to be run."""
    return PruneGPTError(
        f"code that a model or a spec brings is run only with your permission; {what} trusts that of "
        f"{', '.join(sources)}. Pass --trust-remote-code where you have read and trust it."
    )


def counted(count: int, thing: str) -> str:
    """A number of things in words: 1 trial, 2,000 trials."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def alternatives(names: Iterable[str]) -> str:
    """Names in a sentence: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def in_bytes(size: float) -> str:
    """A size on disk as people read it: 37 MB, 1.2 GB; decimal units, as disks are sold."""
    units = ("kB", "MB", "GB", "TB")
    power = next((place for place in range(1, len(units)) if size < 999.5 * 1000**place), len(units))
    size /= 1000**power
    return f"{size:.{1 if size < 9.95 and power > 1 else 0}f} {units[power - 1]}"


def shown(value: Any, most: int = 60) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def listed(names: Iterable[str], most: int = MOST_LISTED) -> str:
    """Names in a message, as many as one reads: `a, b and 40 more`, or `none`."""
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return f"{', '.join(found[:most])}{more}" or "none"


def nearest(name: str, valid: Iterable[str]) -> list[str]:
    """The valid names, those most like `name` first."""
    names = list(dict.fromkeys(valid))
    close = _close(name, names)
    return close + sorted(set(names) - set(close))


def _close(name: str, names: Iterable[str]) -> list[str]:
    """The names that begin as `name`, then those that are like it; of a path, its end may be."""
    meant: dict[str, list[str]] = {}
    for one in names:
        _, dot, end = one.rpartition(".")
        for text in (one, end) if dot and end.isidentifier() else (one,):
            meant.setdefault(text, []).append(one)
    found = [text for text in meant if len(name) >= _TELLING and text.startswith(name)]
    found += get_close_matches(name, meant, n=len(meant) or 1, cutoff=0.6)
    return list(dict.fromkeys(one for text in found for one in meant[text]))


def unknown(kind: str, name: str, valid: Iterable[str], lists: str = "") -> str:
    """The message for a name that is not among the valid ones: of many, those that are like it.

    Args:
        lists: the command that lists them all, between backticks.
    """
    names = list(dict.fromkeys(valid))
    close = _close(name, names)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if len(names) <= MOST_LISTED:
        return f"unknown {kind} {name!r}.{hint} Valid: {listed(nearest(name, names))}."
    some = (close or sorted(names))[:_NEAREST]
    end = f"; {lists} lists all" if lists else ""
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(some)} and {len(names) - len(some):,} more{end}."
