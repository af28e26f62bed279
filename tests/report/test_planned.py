"""A table of a spec that nobody has run has all its rows and no number."""

import pytest

from prunegpt.planning.resolve import plan_data
from prunegpt.report.rows import with_planned
from prunegpt.report.tables import build_table
from prunegpt.spec.plan import SweepPlan


@pytest.fixture(scope="module")
def plan() -> SweepPlan:
    prune = {"finetune": {"prune": {"sparsity": 0.9}}}
    return plan_data(
        {
            "name": "demo",
            "base": {"model": "builtin:tiny-gpt2", "data": {"path": "builtin:text", "block_size": 128}},
            "trials": [{"name": "dense"}, {"name": "pruned", "stages": [prune]}],
            "tables": [{"title": "T", "rows": ["*"], "columns": ["trial", "sparsity", "perplexity", "tokens"]}],
        }
    )


def test_rows_of_trials_that_were_not_run(plan: SweepPlan) -> None:
    made = build_table(plan.tables[0], with_planned((), plan), lambda _: None, sweep="demo")
    assert [row.trial for row in made.rows] == ["dense", "pruned"]
    assert [[cell.text for cell in row.cells[1:]] for row in made.rows] == [
        ["–", "not run", "–"],
        ["– (asked 90)", "not run", "–"],
    ]
    assert all(cell.value is None for row in made.rows for cell in row.cells[1:])


def test_what_is_stored_stays_and_only_the_rest_is_added(plan: SweepPlan) -> None:
    first, second = with_planned((), plan)
    kept = first.model_copy(update={"id": 7, "state": "failed"})
    assert with_planned((kept,), plan) == (kept, second.model_copy(update={"id": -1}))
