"""The local files that a trial reads: hashed when it is planned, and compared with that when they are read."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prunegpt.builtin import is_builtin
from prunegpt.errors import InputError
from prunegpt.planning.budget import evaluates
from prunegpt.planning.fingerprint import Files, stamp
from prunegpt.planning.sources import find_local
from prunegpt.root import Root
from prunegpt.spec.code import CodePart
from prunegpt.spec.plan import PlannedEvaluation, StagePlan, TrialPlan
from prunegpt.spec.schema import DataSpec


def text_files(data: DataSpec | None, split: str | None) -> list[Path]:
    """The local files of one split of a located text; none where it is built in or on the hub.

    A folder that has come to the place that a hub id names, seen from here, would be read instead: it counts as one.
    """
    if data is None:
        return []
    if data.generate is not None:
        return text_files(data.generate.prompts, data.generate.split)
    if data.files is None and data.path and not is_builtin(data.path) and (there := find_local(data.path)):
        return [there]
    return [Path(name) for name in (data.files or {}).get(split or "", ())]


def planned_inputs(
    models: Iterable[Path], stages: Iterable[StagePlan], evaluations: Iterable[PlannedEvaluation], files: Files
) -> dict[str, str]:
    """Absolute path -> SHA-256 of every local file that a trial reads, teachers included.

    Args:
        models: the files of its model and of those of its teachers.
        files: hashes them, and remembers those that went into keys.
    """
    paths, stages = list(models), list(stages)
    watched = any(stage.training and evaluates(stage.training.train) for stage in stages)
    for one in evaluations:
        paths += [] if one.evaluate.skip and not watched else text_files(one.evaluate.data, one.evaluate.split)
        paths += map(Path, one.files)
    for stage in stages:
        if stage.training and stage.data:
            paths += text_files(stage.data, stage.data.train_split)
        if stage.pruning and (code := CodePart.of(stage.pruning.method)):
            paths.append(Path(code.path))
        if stage.calibration:
            for part in stage.calibration.parts:
                paths += text_files(part.data, part.split)
    return {str(path): files.hash(path) for path in dict.fromkeys(paths)}


class Inputs:
    """Lets a trial read what it was planned with, and nothing else.

    Args:
        expected: absolute path -> SHA-256, of a plan. None: nothing was planned, and files are taken as they are.
        root: where hashes of files are remembered.
    """

    def __init__(self, expected: Mapping[str, str] | None, root: Root | None = None) -> None:
        self._expected = expected
        self._files = Files(root)

    @classmethod
    def of(cls, trial: TrialPlan, root: Root) -> "Inputs":
        return cls(trial.inputs, root)

    @contextmanager
    def reading(self, paths: Iterable[Path]) -> Iterator[None]:
        """Files are what was planned before the block reads them, and nobody has touched them when it is done.

        Raises:
            InputError: naming the file, where one is not.
        """
        if self._expected is None:
            yield
            return
        found = {path: self._verified(path) for path in paths}
        yield
        for path, before in found.items():
            if self._verified(path) != before:
                raise InputError(_message(path, "was written to while it was read"))

    def _verified(self, path: Path) -> list[int]:
        """The stamp of a file that holds what was planned."""
        assert self._expected is not None
        expected = self._expected.get(str(path))
        if not self._expected:
            raise InputError(
                f"a plan must say what its files held; that of an earlier version does not, and {path} may have "
                "changed since. Run the sweep again, which plans again."
            )
        if expected is None:
            raise InputError(_message(path, "was not there then"))
        try:
            before = stamp(path)
            if self._files.hash(path) != expected:
                raise InputError(_message(path, "has another content now"))
        except OSError as error:
            raise InputError(_message(path, f"cannot be read now ({error.strerror})")) from error
        return before


def _message(path: Path, what: str) -> str:
    return (
        f"a file must stay as it was when the trial was planned; {path} {what}. Run the sweep again, which plans with "
        "the files as they are, or put the file back."
    )
