"""Answers what :mod:`prunegpt.planning.asked` asks, a line of JSON for each, into the file descriptor that it names."""

import json
import os
import select
import sys
from typing import Any

import torch

from prunegpt.errors import ShrinkError
from prunegpt.lm.skeleton import skeleton
from prunegpt.lm.tasks import leaves
from prunegpt.lm.views import outline
from prunegpt.shrinking.narrow import narrower_config
from prunegpt.training.rehearsal import refusals

_IDLE = 300.0  # seconds without a question, after which nobody is believed to ask


def answer(question: dict[str, Any]) -> Any:
    """The outline of a model with that config, its config with other sizes, what tasks read, or arguments refused."""
    if "tasks" in question:
        return _tasks(**question)
    if "config" not in question:
        return refusals(**question)
    try:
        if "sizes" in question:
            return {"config": narrower_config(**question)}
        found = outline(skeleton(question["config"]))
    except ShrinkError as error:
        return {"refused": str(error)}
    except Exception as error:  # of a family that cannot be built so, or has no decoder layers
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    return {"matrices": found.matrices, "weights": found.weights}


def _tasks(tasks: list[str], include_path: str | None) -> Any:
    try:
        return leaves(tasks, include_path)
    except Exception as error:  # files of tasks hold code of their own
        return {"error": " ".join(str(error).split()) or type(error).__name__}


def main() -> None:
    """Answers questions until there are no more, or none for a while."""
    torch.set_num_threads(1)
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    while select.select([sys.stdin], [], [], _IDLE)[0] and (line := sys.stdin.readline()):
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
