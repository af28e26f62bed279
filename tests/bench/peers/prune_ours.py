"""The same one-shot pruning by ours, as a process: the model is loaded, pruned and saved.

python -m tests.bench.peers.prune_ours MODEL WINDOWS.npy OUT --method wanda --pattern unstructured
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from prunegpt.lm.models import load_model, save_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.views import block_matrices
from prunegpt.pruning.oneshot import prune_oneshot


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", required=True)
    parser.add_argument("--pattern", required=True)
    arguments = parser.parse_args()
    windows = torch.from_numpy(np.load(arguments.windows))  # [windows, length]
    model, tokenizer = load_model(arguments.model, dtype="float32"), load_tokenizer(arguments.model)
    wall, processor = time.perf_counter(), time.process_time()
    prune_oneshot(
        model,
        block_matrices(model),
        method=arguments.method,
        sparsity=0.5,
        pattern=arguments.pattern,
        calibration=windows,
    )
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    save_model(model, tokenizer, arguments.out)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
