"""Tokens to train for the seed's three tables, on paper: as one plan, and each trial from scratch.

Both are what `prunegpt sweep check` counts, of all trials together and of each one alone (`--only`). No model or text
is needed: the specs say how many tokens their texts have.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from prunegpt.planning.resolve import plan_file
from prunegpt.root import Root
from prunegpt.running import chosen
from prunegpt.spec.plan import SweepPlan
from prunegpt.stages.counting import Counting
from tests.bench.harness import Ratio, Settings
from tests.bench.rows import Row

SPECS = Path(__file__).resolve().parents[2] / "sweeps"
TABLES = ("wikitext2", "wikitext103", "layer-sensitivity")


def measure(settings: Settings) -> Iterator[Row]:
    root = Root(settings.work / "runs")
    plans = [plan_file(SPECS / f"{name}.yaml", root=root) for name in TABLES]
    together, alone = tokens(plans, root)
    trials = sum(len(own(plan)) for plan in plans)
    shared = sum(item for item in alone if item) / len(alone)
    yield Row.of(
        "study-tokens",
        f"The seed's three tables on paper, {trials} trials: tokens to train",
        "each trial from scratch, its teachers included",
        Ratio((together / sum(alone),)),
        wanted=0.6,
        floor=together / sum(alone),
        figures={"tokens as one plan": together, "tokens from scratch": sum(alone), "a trial": shared},
        note=(
            "Only teachers can be shared here: every trial of these tables trains a model of its own from the "
            "published weights, and no two of them begin alike. The figure follows from the specs."
        ),
    )


def own(plan: SweepPlan) -> list[str]:
    """The trials of the spec itself."""
    return [trial.name for trial in plan.trials if trial.sweep == plan.name]


def tokens(plans: Sequence[SweepPlan], root: Root) -> tuple[int, list[int]]:
    """Tokens to train for all plans together, and for each trial alone with what its teachers need."""
    together = Counting(root).costs([trial for plan in plans for trial in plan.trials]).train_tokens
    alone = [Counting(root).costs(chosen(plan, name)).train_tokens for plan in plans for name in own(plan)]
    assert together is not None
    return together, [count or 0 for count in alone]
