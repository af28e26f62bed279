"""Exact masks by one threshold over GPT-2 small's 85 million block weights, beside torch.kthvalue on all of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunegpt.pruning.threshold import global_masks
from tests.bench.harness import Settings, rounds
from tests.bench.rows import Row

SHAPES = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
SPARSITY, GROWN = 0.8, 0.9


def measure(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    scores = {str(index): torch.randn(shape).abs_() for index, shape in enumerate(SHAPES * settings.pick(12, 1))}
    total = sum(tensor.numel() for tensor in scores.values())

    def by_kthvalue(sparsity: float) -> list[Tensor]:
        joined = torch.cat([tensor.flatten() for tensor in scores.values()])
        threshold = joined.kthvalue(round(total * sparsity)).values
        return [tensor > threshold for tensor in scores.values()]

    before = global_masks(scores, SPARSITY)
    times = rounds(
        {
            "ours": lambda: global_masks(scores, GROWN),
            "ours, growing": lambda: global_masks(scores, GROWN, masks=before),
            "kthvalue": lambda: by_kthvalue(GROWN),
        },
        count=settings.pick(5, 2),
        clock=settings.clock,
    )
    zeros = sum(int((~mask).sum()) for mask in global_masks(scores, GROWN).values())
    if zeros != round(total * GROWN):
        raise AssertionError(f"exactly {round(total * GROWN)} weights must be pruned; {zeros} are.")
    yield Row.of(
        "global-threshold",
        f"Masks by one threshold over {total:,} weights, exact",
        "torch.kthvalue on a concatenation",
        times.ratio("ours", "kthvalue"),
        wanted=0.2,
        figures={**times.medians, "growing from 80 to 90%, ×": times.ratio("ours, growing", "kthvalue").median},
    )
