"""A spec with a search, from its file to the store, on fake workers."""

import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest

from prunegpt.planning.resolve import Planner
from prunegpt.sweep.coordinator import run_sweep
from prunegpt.sweep.early_stop import open_early_stop
from prunegpt.sweep.events import TrialFinished, TrialStarted
from prunegpt.sweep.search.export import write_studies
from prunegpt.sweep.search.open import open_search
from tests.support import fake_worker
from tests.support.fork_launcher import ForkLauncher
from tests.support.searches import Faked
from tests.sweep.bench import Bench

SPEC = """\
name: words
base:
  model: builtin:tiny-gpt2
  data: {path: builtin:text, block_size: 128}
  train: {max_steps: 40, per_device_train_batch_size: 8}
early_stop: {method: median, metric: perplexity, every: 1000000}
trials:
  - name: dense
    stages: [finetune]
  - name: found
    search:
      n_trials: TRIALS
      sampler: nsga2
      sampler_options: {population_size: 4}
      objectives: [perplexity, tokens]
      space:
        stages:
          values:
            gradual: [finetune: {prune: {sparsity: 0.9}}]
            distilled: [distill: {teacher: dense, prune: {sparsity: 0.9}}]
        train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
        stages.0.distill.hardness: {low: 0.0, high: 1.0, when: {stages: distilled}}
        stages.0.finetune.prune.end: {low: 0.2, high: 0.6, when: {stages: gradual}}
  - name: last
"""


def run(
    bench: Bench,
    folder: Path,
    trials: int = 7,
    slots: int = 1,
    crash_after: int | None = None,
    crash_in: str = "",
    text: str = SPEC,
) -> Any:
    """One process: plans, opens what is adaptive, and runs; may die after so many trials, or while one runs."""
    spec = folder / "words.yaml"
    spec.write_text(text.replace("TRIALS", str(trials)))
    planner = Faked(Planner(spec, root=bench.root))
    plan = planner.plan
    ended = itertools.count(1)

    def hear(event: Any) -> None:
        bench.events.append(event)
        if isinstance(event, TrialFinished) and next(ended) == crash_after:
            raise KeyboardInterrupt
        if isinstance(event, TrialStarted) and event.trial == crash_in:
            raise KeyboardInterrupt

    return run_sweep(
        plan,
        bench.root,
        bench.store,
        ForkLauncher(fake_worker.run, slots),
        on_event=hear,
        suggester=open_search(plan, bench.store, planner),
        early_stopper=open_early_stop(plan, bench.store),
    )


def found(bench: Bench) -> list[tuple[str, dict[str, Any]]]:
    return [(one.name, dict(one.swept)) for one in bench.store.results("words") if one.plan.search]


def test_a_search_runs_beside_listed_trials(bench: Bench, tmp_path: Path) -> None:
    outcome = run(bench, tmp_path, slots=2)
    assert outcome.ok
    names = [one.name for one in bench.store.results("words")]
    assert names == ["dense", *(f"found-{number:03d}" for number in range(1, 8)), "last"]
    swept = [chosen for _, chosen in found(bench)]
    assert {chosen["stages"] for chosen in swept} == {"gradual", "distilled"}
    assert write_studies(tmp_path / "study.db", bench.store, "words") == {"words/found": 7}
    study = optuna.load_study(study_name="words/found", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.params for trial in study.trials] == swept
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert [trial.user_attrs["trial"] for trial in study.trials] == names[1:-1]
    assert study.trials[0].values[0] == bench.store.result("words/found-001").evaluation.perplexity  # type: ignore[union-attr]


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(bench: Bench, tmp_path: Path) -> None:
    run(bench, tmp_path)
    undisturbed = found(bench)
    bench.store.close()
    other = Bench(type(bench.root)(tmp_path / "other"), type(bench.store).open(type(bench.root)(tmp_path / "other")))
    for crash in (3, 2):
        try:
            run(other, tmp_path, crash_after=crash)
        except KeyboardInterrupt:
            continue
    assert run(other, tmp_path).ok
    assert found(other) == undisturbed
    assert {one.plan.study for one in other.store.results("words")} == {0}
    computed = other.noted("computed")
    assert len(computed) == len(set(computed))
    other.store.close()


def test_what_ended_while_nobody_looked_is_told_before_the_next_suggestion(bench: Bench, tmp_path: Path) -> None:
    """The attempt of a coordinator that died went on, and left its record: the next run finds it and tells it."""

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    run(bench, tmp_path, trials=1)
    bench.store.finish_attempt, original = die, bench.store.finish_attempt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(bench, tmp_path, trials=2)
    bench.store.finish_attempt = original  # type: ignore[method-assign]
    run(bench, tmp_path, trials=3)
    assert [one.plan.told for one in bench.store.results("words") if one.plan.search] == [(), (1,), (2,)]


def test_more_trials_go_on_and_nothing_runs_twice(bench: Bench, tmp_path: Path) -> None:
    run(bench, tmp_path, trials=3)
    before = found(bench)
    outcome = run(bench, tmp_path, trials=5)
    assert found(bench)[:3] == before
    assert outcome.finished == ("words/found-004", "words/found-005")
    assert run(bench, tmp_path, trials=5).finished == ()


NARROW = SPEC.replace("{low: 1.0e-4, high: 1.0e-2, log: true}", "{low: 0.5, high: 0.9}")


def leave_one(bench: Bench, folder: Path) -> str:
    """A process that dies while a suggested trial runs; its name."""
    with pytest.raises(KeyboardInterrupt):
        run(bench, folder, trials=4, crash_in="words/found-002")
    (row,) = bench.store.running_attempts()
    assert row.trial == "found-002"
    (bench.root.path / row.folder / "record.json").unlink(missing_ok=True)  # it was that quick
    return row.trial


def test_a_waiting_suggestion_outside_a_changed_space_does_not_run(bench: Bench, tmp_path: Path) -> None:
    left = leave_one(bench, tmp_path)
    outcome = run(bench, tmp_path, trials=2, text=NARROW)
    assert outcome.ok
    rates = [one.swept["train.learning_rate"] for one in bench.store.results("words") if one.plan.search]
    assert len(rates) == 2
    assert all(0.5 <= rate <= 0.9 for rate in rates)
    result = bench.store.result(f"words/{left}")
    assert (result.state, result.shown, len(bench.store.attempts(result.id))) == ("waiting", False, 1)
    assert run(bench, tmp_path, trials=4).ok  # the space of before: it is one of its trials again
    assert bench.store.result(f"words/{left}").state == "finished"


def test_a_search_is_opened_by_whoever_has_the_root(bench: Bench, tmp_path: Path) -> None:
    """Until then another coordinator may suggest, and nothing is put aside under its feet."""
    spec = tmp_path / "narrow.yaml"
    spec.write_text(NARROW.replace("TRIALS", "2"))
    planner = Faked(Planner(spec, root=bench.root))
    early = open_search(planner.plan, bench.store, planner)
    left = leave_one(bench, tmp_path)
    shown = [one.name for one in bench.store.results("words")]
    open_search(planner.plan, bench.store, planner)
    assert [one.name for one in bench.store.results("words")] == shown
    launcher = ForkLauncher(fake_worker.run)
    assert run_sweep(planner.plan, bench.root, bench.store, launcher, suggester=early).ok
    result = bench.store.result(f"words/{left}")
    assert (result.state, result.shown, len(bench.store.attempts(result.id))) == ("waiting", False, 1)


def test_trials_of_a_changed_base_are_put_aside_and_come_back(bench: Bench, tmp_path: Path) -> None:
    """What the search as it is now could not have suggested is kept, not shown, and not run."""
    try:
        run(bench, tmp_path, trials=3, crash_after=3)
    except KeyboardInterrupt:
        names = [name for name, _ in found(bench)]
    longer = SPEC.replace("max_steps: 40", "max_steps: 50")
    run(bench, tmp_path, trials=2, text=longer)
    assert [name for name, _ in found(bench)] == [f"found-{len(names) + 1:03d}", f"found-{len(names) + 2:03d}"]
    hidden = [one.name for one in bench.store.results("words", shown=False) if one.plan.search]
    assert hidden == names
    run(bench, tmp_path, trials=3)
    assert [name for name, _ in found(bench)][: len(names)] == names
    assert len(found(bench)) == 3
