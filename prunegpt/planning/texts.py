"""The datasets of a trial: local files as absolute paths, and what represents each in keys."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunegpt.errors import DataError
from prunegpt.planning import harness
from prunegpt.planning.facts import data_fingerprint, dataset_commit, split_files
from prunegpt.planning.fingerprint import FORMAT, Files, decisive, digest, versions
from prunegpt.registry import PROTOCOLS
from prunegpt.spec.data import GenerateSpec
from prunegpt.spec.plan import PlannedEvaluation
from prunegpt.spec.schema import CalibrationSpec, DataSpec, EvaluateSpec

_BESIDE = ("data", "batch_size", "skip", "name", "after", "tasks", "num_fewshot", "limit", "include_path", "speed")
# ^ fields of an evaluation that do not decide a perplexity


def block_size_of(data: DataSpec | None, usual: int) -> int:
    """Tokens of a block of a stage's own text; the trial's where the stage has no text or does not say."""
    return usual if data is None or "block_size" not in data.model_fields_set else data.block_size


def window_of(evaluate: EvaluateSpec, usual: int) -> int:
    """Tokens of an evaluation window: as it says, else as its protocol does, else as in training."""
    return evaluate.block_size or PROTOCOLS.entry(evaluate.protocol).block_size or usual


def check_stride(evaluate: EvaluateSpec, block_size: int) -> None:
    """Raises DataError where a stride is wider than the window."""
    if evaluate.stride is None:
        return
    if evaluate.stride > block_size:
        raise DataError(f"stride must be at most the window's {block_size} tokens, got {evaluate.stride}.")


def with_block_size(data: DataSpec, positions: int | None) -> DataSpec:
    """A trial's text with a block size where it has none: the usual one, or all positions of a model with fewer."""
    if positions is None or "block_size" in data.model_fields_set:
        return data
    return data.model_copy(update={"block_size": min(data.block_size, positions)})


@dataclass(frozen=True)
class Texts:
    """Reads datasets from one spec's folder.

    Args:
        files: hashes of files.
        base: the spec's folder; None where the spec is no file.
        unchecked: takes, as keys, what could not be checked, in words.
    """

    files: Files
    base: Path | None
    unchecked: dict[str, None] = field(default_factory=dict)
    writer: str = ""  # the model that writes generated text, as keys have it; empty where none may be read

    def located(self, data: DataSpec) -> DataSpec:
        """The same text with local files named absolutely, and a hub dataset at the commit it has now.

        Raises:
            DataError: a file is missing, or the text names no source.
        """
        if data.generate is not None:
            return data.model_copy(update={"generate": self._generated(data.generate)})
        local = split_files(data, self.base)
        if local is None:
            return data.model_copy(update={"revision": dataset_commit(data)})
        names = {split: tuple(str(file) for file in found) for split, found in local.items()}
        return data.model_copy(update={"path": None, "files": names})

    def _generated(self, generate: GenerateSpec) -> GenerateSpec:
        """What is to be written, with its prompts located and its key."""
        if not self.writer:
            raise DataError(
                "generated text is for training stages and calibration: as data of a stage, or of its calibration. "
                "Name a dataset that is there as data of the trial and of its evaluations."
            )
        prompts = None if generate.prompts is None else self.located(generate.prompts)
        text = None if prompts is None else self.fingerprint(prompts, generate.split)
        content = {"format": FORMAT, "kind": "generate", "model": self.writer, "versions": versions(), "prompts": text}
        key = digest({**content, **decisive(generate, (), without=("prompts", "split", "key"))})
        return generate.model_copy(update={"prompts": prompts, "key": key})

    def of_stage(self, data: DataSpec | None, usual: DataSpec) -> DataSpec:
        """A stage's own text, located, or the trial's.

        Raises:
            DataError: a file is missing, or the text names no source.
        """
        if data is None:
            return usual
        return self.located(data).model_copy(update={"block_size": block_size_of(data, usual.block_size)})

    def fingerprint(self, data: DataSpec, split: str) -> str:
        """What stands for one split in keys.

        Raises:
            DataError: there is no such split.
        """
        if data.generate is not None:
            return self._generated(data.generate).key
        key, unchecked = data_fingerprint(data, split, self.files, self.base)
        if unchecked:
            self.unchecked[unchecked] = None
        return key

    def evaluation(self, data: DataSpec, evaluate: EvaluateSpec) -> PlannedEvaluation:
        """How a trial is measured, text and window filled in; and the key of that.

        Args:
            data: the trial's text, located.
            evaluate: with its precision, resolved.

        Raises:
            DataError: the text or its split is missing, or the stride does not fit.
        """
        if evaluate.tasks is not None:
            return self._tasks(evaluate)
        if evaluate.speed is not None:  # its key is complete with its reference, see `planning.resolve`
            return PlannedEvaluation(evaluate=evaluate, key=digest([FORMAT, evaluate.precision, "speed"]))
        block_size = window_of(evaluate, data.block_size)
        check_stride(evaluate, block_size)
        measured = self.located(evaluate.data) if evaluate.data else data
        split = evaluate.split
        if evaluate.data and measured.files and len(set(measured.files.values())) == 1:
            split = split if split in measured.files else next(iter(measured.files))  # all there is to measure on
        filled = evaluate.model_copy(update={"data": measured, "split": split, "block_size": block_size})
        key = {
            "format": FORMAT,
            "text": None if evaluate.skip else self.fingerprint(measured, split),
            **decisive(filled, ("bos",), without=_BESIDE),
        }
        return PlannedEvaluation(evaluate=filled, key=digest(key))

    def watching(self, planned: PlannedEvaluation) -> str:
        """The key of what trainings are evaluated by while they run, also where models are not measured so.

        Raises:
            DataError: there is no such text.
        """
        asked = planned.evaluate
        if not asked.skip or asked.data is None:
            return planned.key
        return digest([planned.key, self.fingerprint(asked.data, asked.split)])

    def _tasks(self, evaluate: EvaluateSpec) -> PlannedEvaluation:
        filled, key, files, unchecked = harness.planned(evaluate, self.base)
        self.unchecked.update(dict.fromkeys(unchecked))
        key = {"format": FORMAT, **key, "files": [(path.name, self.files.hash(path)) for path in files]}
        return PlannedEvaluation(evaluate=filled, key=digest(key), files=tuple(map(str, files)))

    def calibration(
        self, data: DataSpec, calibration: CalibrationSpec, seed: int
    ) -> tuple[CalibrationSpec, dict[str, Any]]:
        """The calibration windows of a pruning, with dataset, length and seed filled in; and what decides the result.

        Args:
            seed: the trial's.

        Raises:
            DataError: the text or its split is missing.
        """
        if calibration.sources:
            sources = [one.model_copy(update={"data": self.located(one.data)}) for one in calibration.sources]
            update: dict[str, Any] = {"sources": tuple(sources), "length": calibration.length or data.block_size}
        else:
            located = self.of_stage(calibration.data, data)
            update = {"data": located, "split": calibration.split or located.train_split}
            update["length"] = calibration.length or located.block_size
        if calibration.seed == "trial":
            update["seed"] = seed
        filled = calibration.model_copy(update=update)
        texts = [self.fingerprint(part.data, part.split) for part in filled.parts]
        key = decisive(filled, ("bos",), without=("data", "split", "sources"))
        if not filled.sources:
            return filled, {**key, "text": texts[0]}
        mix = [(part.mode, part.windows, text) for part, text in zip(filled.parts, texts, strict=True)]
        return filled, {**key, "mode": None, "sources": mix}
