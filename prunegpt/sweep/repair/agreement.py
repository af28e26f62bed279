"""Whether the database and what is published say the same."""

import os
from collections.abc import Iterator
from functools import partial

from prunegpt.records import StageRecord, TrialResult, published_record
from prunegpt.root import Root, sealed
from prunegpt.store import Store
from prunegpt.sweep.lock import coordinator
from prunegpt.sweep.recovery import is_outside
from prunegpt.sweep.repair.database import opens
from prunegpt.sweep.repair.finding import Finding


def disagreements(root: Root) -> Iterator[Finding]:
    """Finished trials whose models are gone, and figures that are not those that were measured."""
    if not opens(root):
        return
    with Store.open(root, create=False) as store:
        results = [result for sweep in store.sweeps() for result in store.results(sweep.name, shown=None)]
        for result in results:
            if result.state == "finished" and result.shown:
                yield from _gone(root, result)
            if result.state != "running":
                yield from _other_figures(root, result)
        holder = coordinator(root)
        running = [] if holder and holder.pid != os.getpid() else store.running_attempts()
    running = [row for row in running if not is_outside(root.path / row.folder)]
    for row in running:
        text = f"{row.sweep}/{row.trial} is marked as running, but nothing runs it. The next `sweep run` resumes it."
        yield Finding("trial", root.path / row.folder, text)


def _gone(root: Root, result: TrialResult) -> Iterator[Finding]:
    key, asked = result.key, result.plan.evaluations_after(result.key)
    if result.plan.foreign:
        return  # a W&B run, which never had a model here and cannot be run
    if root.is_computed(key, (one.key for one in asked)):
        return
    what = "model was" if not root.is_published(key) else "measurement was"
    text = f"{result.sweep}/{result.name} is finished, but its {what} deleted or damaged; its figures are still known."
    fix = "requeue it, so that the next `sweep run` computes what is missing"
    yield Finding("trial", root.stage(key), text, fix, apply=partial(_wait, root, result.id))


def _wait(root: Root, trial_id: int) -> None:
    with Store.open(root) as store:
        store.let_wait(trial_id)


def _other_figures(root: Root, result: TrialResult) -> Iterator[Finding]:
    right = {index: found for index, stage in enumerate(result.stages) if (found := _published(root, result, stage))}
    wrong = {index: found for index, found in right.items() if found != result.stages[index]}
    if not wrong:
        return
    index, found = next(iter(wrong.items()))
    text = (
        f"the database says of {result.sweep}/{result.name} {_figure(result.stages[index])}, but what was measured is "
        f"{_figure(found)}: the database was edited."
    )
    fix = "restore the measured values"
    yield Finding("trial", root.stage(found.key), text, fix, apply=partial(_correct, root, result, wrong))


def _published(root: Root, result: TrialResult, stage: StageRecord) -> StageRecord | None:
    """What a sealed stage says, as the database should have it; None where there is nothing to be sure of."""
    if not root.is_published(stage.key) or not sealed(root.stage(stage.key)):
        return None
    record = published_record(root, result.plan, stage.index, cached=stage.cached)
    sure = {
        one.name
        for one in result.plan.evaluations_after(stage.key)
        if root.is_measured(stage.key, one.key) and sealed(root.evaluation(stage.key, one.key))
    }
    first = record.evaluation if stage.evaluation and result.plan.evaluate.called in sure else stage.evaluation
    also = {name: record.also[name] if name in sure else known for name, known in stage.also.items()}
    return record.model_copy(update={"evaluation": first, "also": also})


def _figure(stage: StageRecord) -> str:
    perplexity = stage.evaluation.perplexity if stage.evaluation else None
    pruned = stage.sparsity.pruned if stage.sparsity else None
    return f"perplexity {perplexity}, sparsity {pruned}"


def _correct(root: Root, result: TrialResult, stages: dict[int, StageRecord]) -> None:
    with Store.open(root) as store:
        store.correct_stages(result.id, list(stages.values()))
