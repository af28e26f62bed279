"""Time of one-shot SparseGPT on SmolLM2-135M: calibration and solve, without evaluation."""

import json
import time
from pathlib import Path

import pytest
import torch

from prunegpt.lm.data import calibration_windows, read_documents
from prunegpt.lm.models import load_model, load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.oneshot import prune_oneshot

pytestmark = pytest.mark.slow

REFERENCE = 129.0  # seconds of the published reference code on two cores, same model, text and windows


def test_sparsegpt_is_faster_than_the_reference(smollm2: Path, wikitext2: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = load_model(smollm2, dtype="float32", device="cpu")
        documents = read_documents(split="text", files={"text": [wikitext2 / "validation.txt"]})
        windows = calibration_windows(documents, load_tokenizer(smollm2), windows=32, length=512, mode="first")
        started, processor = time.perf_counter(), time.process_time()
        found = prune_oneshot(
            model, block_matrices(model), method="sparsegpt", sparsity=0.5, calibration=torch.from_numpy(windows)
        )
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    finally:
        torch.set_num_threads(before)
    report = {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "reference": REFERENCE}
    print("\nSparseGPT 50 %, SmolLM2-135M, 32 x 512 tokens:", json.dumps(report))
    assert found.sparsity == pytest.approx(0.5, abs=1e-3)
    assert seconds < REFERENCE
