"""The same suggestions as Optuna alone, written by hand, for the same history and seed."""

from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest

from tests.sweep.search.made import SPACE, Run, loss_of, search_plan, sparsity_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
FLAT = {path: dimension for path, dimension in SPACE.items() if path != "extra"}


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


def by_hand(trial: optuna.Trial, *, conditional: bool = True) -> None:
    trial.suggest_float("x", -3.0, 3.0)
    trial.suggest_int("n", 1, 32, log=True)
    if trial.suggest_categorical("kind", ["plain", "fancy"]) == "fancy" and conditional:
        trial.suggest_float("extra", 0.0, 1.0, step=0.25)


def oracle(
    sampler: optuna.samplers.BaseSampler,
    trials: int,
    slots: int,
    tell: Callable[[optuna.Study, optuna.Trial], None],
    directions: tuple[str, ...] = ("minimize",),
    *,
    conditional: bool = True,
) -> list[dict[str, Any]]:
    """Optuna alone: as many trials at a time, told in the order in which they were asked for.

    A suggestion that was there before takes no slot: it is told with the first of its kind, or at once after that.
    """
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    running: list[list[optuna.Trial]] = []  # each with its doubles
    ended: list[dict[str, Any]] = []
    for _ in range(trials):
        while len(running) < slots:
            trial = study.ask()
            by_hand(trial, conditional=conditional)
            if trial.params in ended:
                tell(study, trial)
            elif twins := next((one for one in running if one[0].params == trial.params), None):
                twins.append(trial)
            else:
                running.append([trial])
        ended.append(running[0][0].params)
        for trial in running.pop(0):
            tell(study, trial)
    return [trial.params for trial in study.trials]


def tell_loss(study: optuna.Study, trial: optuna.Trial) -> None:
    study.tell(trial, loss_of(trial.params))


def tell_both(study: optuna.Study, trial: optuna.Trial) -> None:
    study.tell(trial, [loss_of(trial.params), sparsity_of(trial.params)])


def samplers(seed: int) -> dict[str, tuple[optuna.samplers.BaseSampler, dict[str, Any]]]:
    made = optuna.samplers
    return {
        "random": (made.RandomSampler(seed=seed), {}),
        "tpe": (made.TPESampler(seed=seed), {}),
        "tpe with options": (
            made.TPESampler(seed=seed, n_startup_trials=4, multivariate=False),
            {"sampler": "tpe", "sampler_options": {"n_startup_trials": 4, "multivariate": False}},
        ),
        "nsga2": (
            made.NSGAIISampler(seed=seed, population_size=6),
            {"sampler": "nsga2", "sampler_options": {"population_size": 6}},
        ),
        "qmc": (made.QMCSampler(seed=seed, warn_independent_sampling=False), {}),
    }


SINGLE = ("random", "tpe", "tpe with options", "nsga2", "qmc")


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("name", SINGLE)
def test_one_objective(name: str, slots: int) -> None:
    sampler, fields = samplers(7)[name]
    run = Run(search_plan(**{"sampler": name, **fields}, seed=7), slots)
    run.go(25)
    assert run.asked == oracle(sampler, 25, slots, tell_loss)
    assert len(run.chosen) == 24 + slots
    assert {"extra" in chosen for chosen in run.chosen} == {True, False}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_two_objectives(name: str, slots: int) -> None:
    sampler, fields = samplers(3)[name]
    objectives = ["perplexity", "sparsity"]
    run = Run(search_plan(**{"sampler": name, **fields}, objectives=objectives, seed=3), slots)
    run.go(30)
    assert run.asked == oracle(sampler, 30, slots, tell_both, ("minimize", "maximize"))


def test_constraints() -> None:
    def tell(study: optuna.Study, trial: optuna.Trial) -> None:
        trial.set_constraint("a", 0.7 - sparsity_of(trial.params))
        trial.set_constraint("b", loss_of(trial.params) - 2.0)
        study.tell(trial, loss_of(trial.params))

    run = Run(search_plan(constraints=["sparsity >= 0.7", "perplexity <= 2"], seed=1), 2)
    assert run.go(25) == oracle(optuna.samplers.TPESampler(seed=1), 25, 2, tell)
    free = Run(search_plan(seed=1), 2)
    assert free.go(25) != run.chosen


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_failed_and_stopped_trials(name: str) -> None:
    """Some fail, and some are given up: with several objectives too, where Optuna's own cannot."""
    sampler, fields = samplers(5)[name]
    state = optuna.trial.TrialState

    def tell(study: optuna.Study, trial: optuna.Trial) -> None:
        if trial.params["n"] % 3 == 0:
            study.tell(trial, state=state.FAIL)
        elif trial.params["n"] % 2 == 0:
            study.tell(trial, state=state.PRUNED)
        else:
            tell_both(study, trial)

    def ends(plan: Any) -> tuple[str, dict[str, Any]]:
        if plan.swept["n"] % 3 == 0:
            return "failed", {"reason": "exception"}
        return ("stopped", {"reason": "early-stop"}) if plan.swept["n"] % 2 == 0 else ("finished", {})

    run = Run(search_plan(**{"sampler": name, **fields}, objectives=["perplexity", "sparsity"], seed=5), 2)
    run.ends = ends
    run.go(30)
    assert run.asked == oracle(sampler, 30, 2, tell, ("minimize", "maximize"))
    assert {one.state for one in run.store.values()} >= {"finished", "failed", "stopped"}


def test_the_curve_of_a_stopped_trial_is_told_where_there_is_one_objective() -> None:
    def tell(study: optuna.Study, trial: optuna.Trial) -> None:
        if trial.number % 2:
            for step in (10, 20):
                trial.report(loss_of(trial.params) + 1 / step, step)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            tell_loss(study, trial)

    def curve(result: Any) -> dict[int, float]:
        return {step: loss_of(result.swept) + 1 / step for step in (10, 20)}

    run = Run(search_plan(seed=2), 2)
    run.open(curve=curve)
    run.ends = lambda plan: ("stopped", {"reason": "early-stop"}) if plan.number % 2 == 0 else ("finished", {})
    assert run.go(25) == oracle(optuna.samplers.TPESampler(seed=2), 25, 2, tell)


def test_what_diverged_is_the_worst_of_all() -> None:
    def tell(study: optuna.Study, trial: optuna.Trial) -> None:
        study.tell(trial, float("inf") if trial.params["x"] > 1.5 else loss_of(trial.params))

    run = Run(search_plan(seed=4), 1)
    run.ends = lambda plan: ("diverged" if plan.swept["x"] > 1.5 else "finished", {})
    assert run.go(25) == oracle(optuna.samplers.TPESampler(seed=4), 25, 1, tell)
    assert any(chosen["x"] > 1.5 for chosen in run.chosen)


def test_gaussian_process() -> None:
    pytest.importorskip("torch")
    sampler = optuna.samplers.GPSampler(seed=0, n_startup_trials=4)
    plan = search_plan(space=FLAT, sampler="gp", sampler_options={"n_startup_trials": 4})
    assert Run(plan).go(7) == oracle(sampler, 7, 1, tell_loss, conditional=False)


def test_cmaes() -> None:
    pytest.importorskip("cmaes")
    sampler = optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=2, warn_independent_sampling=False)
    plan = search_plan(space=FLAT, sampler="cmaes", sampler_options={"n_startup_trials": 2})
    assert Run(plan, 2).go(12) == oracle(sampler, 12, 2, tell_loss, conditional=False)


def test_optuna_says_nothing_and_its_settings_are_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    Run(search_plan(sampler="qmc")).go(5)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    assert capfd.readouterr() == ("", "")
