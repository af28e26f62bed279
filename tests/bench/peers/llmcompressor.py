"""One-shot pruning beside llm-compressor: Wanda and SparseGPT, to 50% and to 2:4.

Both sides load the same folder, prune the same matrices with the same windows in the same order, and save; each is a
process. Time is that of calibration and solving; memory is the peak of the process; both saved models are measured by
ours. The recipe is the one of llm-compressor's documentation, `ignore: ['re:.*lm_head']`. With `ignore: [lm_head]`,
which it compares with the name `lm_head.`, it prunes the head, and the embedding that is tied to it.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.data import read_documents
from prunegpt.lm.models import load_model
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.protocols import evaluation_windows
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.lm.windows import Windows
from prunegpt.pruning.criteria.wanda import wanda
from prunegpt.pruning.patterns import parse_pattern
from prunegpt.pruning.statistics import block_statistics, evaluating
from tests.bench.harness import Ratio, Settings, environment
from tests.bench.peers.environments import Unavailable, outside, python_of, version
from tests.bench.peers.material import needs_text, tiny
from tests.bench.peers.processes import Finished, in_turn, ratio, run
from tests.bench.rows import Row

PEER = "llmcompressor"
SCRIPT = Path(__file__).with_name("prune_llmcompressor.py")
HEAD = "re:.*lm_head"  # what its documentation leaves alone
HEAD_BY_NAME = "lm_head"
TITLES = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}
PATTERNS = {"50%": ("unstructured", "0:0"), "2:4": ("2:4", "2:4")}  # ours, theirs


def measure(settings: Settings, way: str) -> Iterator[Row]:
    """Time, memory and perplexity of one way, such as wanda-2:4."""
    method, _, share = way.partition("-")
    name, what = f"{PEER}-{way}", f"{TITLES[method]} {share}"
    beside = f"llm-compressor {version(PEER, PEER)}"
    try:
        model, text = tiny(settings.work) if settings.quick else needs_text(settings)
        python = python_of(PEER, settings.environments, install=not settings.quick)
    except Unavailable as why:
        yield from (replace(row, skipped=str(why)) for row in planned(way))
        return
    yield from _Bench(settings, python, model, text).rows(method, *PATTERNS[share], name, what, beside)


def planned(way: str) -> Iterator[Row]:
    """The rows of one way, without figures."""
    method, _, share = way.partition("-")
    for figure, wanted in (("time", 0.7), ("memory", 0.8), ("perplexity", 1.0)):
        what = f"{TITLES[method]} {share}: {figure}"
        yield Row(f"{PEER}-{way}-{figure}", what, f"llm-compressor {version(PEER, PEER)}", wanted=wanted)


class _Bench:
    """The model, its windows, and where pruned models are written."""

    def __init__(self, settings: Settings, python: Path, model: Path, text: Path) -> None:
        self.settings, self.python, self.model = settings, python, model
        tokenizer = load_tokenizer(model)
        count, length = settings.pick(8, 2), settings.pick(512, 32)
        rows = read_documents(split="text", files={"text": [text / "validation.txt"]})
        self.calibration = calibration_windows(rows, tokenizer, windows=count, length=length, mode="first")
        self.windows = settings.work / "windows.npy"
        np.save(self.windows, self.calibration)
        self.measured: Windows = evaluation_windows(
            "blocks", tokenizer, split="test", files={"test": [text / "test.txt"]}, block_size=length,
            max_windows=settings.pick(32, 2),
        )  # fmt: skip
        self.folder = settings.work / "pruned"

    def rows(self, method: str, ours: str, theirs: str, name: str, what: str, beside: str) -> Iterator[Row]:
        lanes = {
            "ours": partial(self._ours, method, ours),
            "theirs": partial(self._theirs, method, theirs),
        }
        found = in_turn(lanes, self.settings.pick(2, 1))
        clock = self.settings.clock
        size = " × ".join(str(number) for number in self.calibration.shape)
        yield Row.of(
            f"{name}-time",
            f"{what}, {self.model.resolve().name}, {size} tokens: calibration and solving",
            beside,
            ratio(found["ours"], found["theirs"], lambda one: float(one.result[clock])),
            wanted=0.7,
            figures={
                **{f"seconds of {lane}": float(runs[-1].result[clock]) for lane, runs in found.items()},
                **{f"seconds of {lane}, the whole process": runs[-1].seconds(clock) for lane, runs in found.items()},
                "× of the whole process": ratio(found["ours"], found["theirs"], lambda one: one.seconds(clock)).median,
            },
        )
        yield Row.of(
            f"{name}-memory",
            f"{what}: peak memory of the process",
            beside,
            ratio(found["ours"], found["theirs"], lambda one: one.peak),
            wanted=0.8,
            figures={f"MiB of {lane}": runs[-1].peak for lane, runs in found.items()},
        )
        yield self._perplexity(name, method, what, ours, theirs, beside)
        shutil.rmtree(self.folder)

    def _perplexity(self, name: str, method: str, what: str, ours: str, theirs: str, beside: str) -> Row:
        figures = {f"perplexity of {lane}": self._measured(lane) for lane in ("ours", "theirs")}
        matrices = list(block_matrices(load_model(self.model, dtype="float32")))
        equal, differ = self._masks(matrices)
        figures |= {"matrices": len(matrices), "matrices with equal masks": equal, "share of other masks": differ}
        note = f"{equal} of {len(matrices)} masks are equal, and {differ:.2%} of the weights are in another one."
        if method == "wanda" and theirs == "0:0":
            self._theirs(method, theirs, ignore=HEAD_BY_NAME, out="head")
            figures["perplexity of theirs, ignore: [lm_head]"] = pruned = self._measured("head")
            figures["the same with the dense embedding put back"] = back = self._measured("head", dense_embedding=True)
            note += (
                f" With `ignore: [lm_head]` its perplexity is {pruned:.6g} as saved, as it prunes the tied embedding, "
                f"and {back:.6g} with the dense embedding put back."
            )
        if method == "wanda":
            figures["matrices with equal masks, on their inputs"] = given = self._masks_on_their_inputs(ours)
            note += (
                f" On the inputs that their pruned layers give, {given} are equal: ours sums squares in float64, and "
                "what ties in their float32 may differ in the last digit."
            )
        value = Ratio((figures["perplexity of ours"] / figures["perplexity of theirs"],))
        name = f"{name}-perplexity"
        return Row.of(name, f"{what}: perplexity", beside, value, wanted=1.0, figures=figures, note=note)

    def _ours(self, method: str, pattern: str) -> Finished:
        words = ["-m", "tests.bench.peers.prune_ours", self.model, self.windows, self.folder / "ours"]
        command = [sys.executable, *words, "--method", method, "--pattern", pattern]
        return run(command, environment(self.settings.threads))

    def _theirs(self, method: str, pattern: str, *, ignore: str = HEAD, out: str = "theirs") -> Finished:
        words = [SCRIPT, self.model, self.windows, self.folder / out]
        command = [self.python, "-P", *words, "--method", method, "--pattern", pattern, "--ignore", ignore]
        return run(command, outside(OMP_NUM_THREADS=str(self.settings.threads)))

    def _measured(self, out: str, *, dense_embedding: bool = False) -> float:
        """Perplexity of a saved model, by ours."""
        torch.set_num_threads(self.settings.threads)
        model = load_model(self.folder / out, dtype="float32")
        if dense_embedding:
            dense = load_model(self.model, dtype="float32")
            model.get_input_embeddings().weight.data.copy_(dense.get_input_embeddings().weight)
        return evaluate(model, self.measured)[0].perplexity

    @torch.no_grad()
    def _masks_on_their_inputs(self, pattern: str) -> int:
        """Matrices for which ours chooses the mask of theirs, where the layers before are pruned as theirs are."""
        model = load_model(self.model, dtype="float32")
        views, theirs = block_matrices(model), load_file(self.folder / "theirs" / "model.safetensors")
        calibration, equal = torch.from_numpy(self.calibration), 0
        with evaluating(model):
            for layer in block_statistics(model, views, calibration, gram=False, propagate=True):
                for name, found in layer.items():
                    assert found is not None  # none is solved before
                    scores = wanda(views[name].matrix, input_norm=found.input_norm)  # [out, in]
                    mask = parse_pattern(pattern).select(scores, 0.5, rowwise=True)  # [out, in]
                    kept = views[name].matrix * mask != 0  # [out, in]; some weights are zero before
                    equal += bool(torch.equal(kept, theirs[name] != 0))
                    views[name].matrix.copy_(theirs[name])
        return equal

    def _masks(self, matrices: list[str]) -> tuple[int, float]:
        """Matrices whose zeros are those of theirs, and the share of weights that are zero in one of the two only."""
        ours, theirs = (load_file(self.folder / lane / "model.safetensors") for lane in ("ours", "theirs"))
        differ = {name: int(((ours[name] == 0) != (theirs[name] == 0)).sum()) for name in matrices}
        weights = sum(ours[name].numel() for name in matrices)
        return sum(not count for count in differ.values()), sum(differ.values()) / weights
