"""Trainings of a small model by one process, or by several that each hold a part of it. Each runs this program.

    python -m tests.support.sharded_fit FOLDER CASES   # CASES: JSON, {name: arguments of `fit`, ...}

The first process writes FOLDER/NAME.safetensors: what the model came to, and FOLDER/NAME.json: notes and curves.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prunegpt.distill import objective
from prunegpt.errors import Interrupted
from prunegpt.lm import ranks
from tests.support.trained import VOCABULARY, fit, gpt2, llama

STEPS = 6
TOKENS = torch.randint(0, VOCABULARY, (48, 16), generator=torch.Generator().manual_seed(1)).numpy()


def trained(folder: Path, name: str, case: dict[str, Any]) -> None:
    """One training; `family`, `tied`, `teach`, `chunked` and `stop` are not of `fit`."""
    family, teach, stop = case.pop("family", "llama"), case.pop("teach", False), case.pop("stop", 0)
    shape = {"tied": case.pop("tied", False), "heads": 2, "groups": 1} if family == "llama" else {"heads": 2}
    build = llama if family == "llama" else gpt2
    model = build(2, 36, **shape)  # no multiple of the processes' shares
    teacher = llama(2, 36, heads=2, groups=1, seed=1) if teach else None
    points: list[tuple[int, str, float]] = []

    def emit(step: int, epoch: float, what: str, value: float, tokens: int) -> None:
        points.append((step, what, value))

    asked: dict[str, Any] = {"steps": STEPS, "batch": 4, "emit": emit, "logged": 1}
    before, objective.LOGITS = objective.LOGITS, 1 if case.pop("chunked", False) else objective.LOGITS
    count = iter(range(1000))
    if stop:
        work = folder / f"{name}-work"
        try:
            fit(model, "cpu", TOKENS, **asked, **case, work=work, stop=lambda: next(count) >= stop - 1)
        except Interrupted:
            model = build(2, 36, **shape)
        case["work"] = work
    elif "work" in case:
        case["work"] = Path(case["work"])
    outcome = fit(model, "cpu", TOKENS, **asked, **case, teacher=teacher)
    objective.LOGITS = before
    if ranks.leads():
        weights = {key: value.detach().clone() for key, value in model.named_parameters()}
        save_file(weights, folder / f"{name}.safetensors")
        kept = [point for point in points if not point[1].startswith("system/")]
        (folder / f"{name}.json").write_text(json.dumps({"notes": outcome.notes, "points": kept}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(sys.argv[2])
    assert cases
    with ranks.joined():
        for name, case in cases.items():
            trained(Path(sys.argv[1]), name, case)
