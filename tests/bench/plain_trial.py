"""One trial as a script of its own has it: load a model, prune it by magnitude, measure it on a little text.

    python plain_trial.py MODEL TEXT --sparsity 0.5

It is what `wandb agent`, or an Optuna objective that starts a process, would run; Ray Tune calls `trial`.
"""

import argparse
import math
import os
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer


def trial(source: str, text: Path, sparsity: float) -> float:
    """The perplexity of a pruned model."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".h." in name and weight.dim() == 2:
                threshold = weight.abs().flatten().kthvalue(max(1, int(weight.numel() * sparsity))).values
                weight.mul_(weight.abs() > threshold)
        ids = torch.tensor(tokenizer(text.read_text()[:4000])["input_ids"])
        ids = ids[: len(ids) // 32 * 32].view(-1, 32)  # [windows, 32]
        return math.exp(cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--sparsity", type=float, required=True)
    arguments = parser.parse_args()
    run = None
    if "WANDB_SWEEP_ID" in os.environ:
        import wandb

        run = wandb.init()
    perplexity = trial(arguments.model, arguments.text, arguments.sparsity)
    if run is not None:
        run.log({"perplexity": perplexity})
        run.finish()
    if "BENCH_RESULTS" in os.environ:
        with open(os.environ["BENCH_RESULTS"], "a") as results:
            results.write(f"{perplexity}\n")
    print(perplexity)


if __name__ == "__main__":
    main()
