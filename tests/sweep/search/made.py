"""Searches over made-up trials: what a trial comes to is a formula of its choices, and nothing is computed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from prunegpt.errors import Problem, SpecError
from prunegpt.records import Evaluation, SparsityRecord, StageRecord, TrialResult
from prunegpt.spec.plan import SearchPlan, TrialPlan
from prunegpt.spec.search import SearchSpec
from prunegpt.sweep.search.suggester import Search
from tests.support.sweep_plans import make_trial

Choices = Mapping[str, Any]

SPACE = {
    "x": {"low": -3.0, "high": 3.0},
    "n": {"low": 1, "high": 32, "log": True},
    "kind": ["plain", "fancy"],
    "extra": {"low": 0.0, "high": 1.0, "step": 0.25, "when": {"kind": "fancy"}},
}


def search_plan(**fields: Any) -> SearchPlan:
    spec = SearchSpec.model_validate({"space": SPACE, "n_trials": 100, **fields})
    return SearchPlan(name="s", index=0, order=0, spec=spec)


def loss_of(chosen: Choices) -> float:
    """Lowest at x = 1, n = 8, fancy, extra = 0.5."""
    fancy = abs(chosen.get("extra", 0.5) - 0.5) if chosen.get("kind") == "fancy" else 0.4
    return (chosen.get("x", 0.0) - 1) ** 2 + abs(chosen.get("n", 8) - 8) / 8 + fancy


def sparsity_of(chosen: Choices) -> float:
    return 0.5 + 0.4 / (1 + abs(chosen.get("x", 0.0)))


def plan_of(search: SearchPlan, chosen: Choices, number: int) -> TrialPlan:
    """As Planner.suggested: equal choices have equal keys; choices that hold `invalid` make no trial."""
    if "invalid" in chosen.values():
        raise SpecError([Problem("", "that cannot be.")])
    key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
    trial = make_trial(f"s-{number:03d}", f"load {key}")
    return trial.model_copy(update={"search": search.name, "number": number, "swept": dict(chosen)})


def result_of(plan: TrialPlan, state: str = "finished", *, ended: float = 0.0, **fields: Any) -> TrialResult:
    """What the store would say of a trial."""
    stages: tuple[StageRecord, ...] = ()
    if state == "finished":
        evaluation = Evaluation(
            key="measured",
            protocol="none",
            split="none",
            perplexity=loss_of(plan.swept),
            loss=None,
            bits_per_byte=None,
            word_perplexity=None,
            tokens=1,
            windows=1,
        )
        counted = SparsityRecord(pruned=sparsity_of(plan.swept), overall=0.25, selected=10, parameters=20)
        stages = (
            StageRecord(key="load", kind="load", index=0, cached=True),
            StageRecord(
                key=plan.key,
                kind="finetune",
                index=1,
                cached=False,
                seconds=2.0,
                train_tokens=100,
                evaluation=evaluation,
                sparsity=counted,
            ),
        )
    return TrialResult(
        id=plan.number,
        plan=plan,
        shown=True,
        state=state,
        stages=stages,
        started=ended - 2.0,
        ended=ended,
        **fields,
    )


class Run:
    """Runs a search with so many slots, each trial ending in the order in which it started, or as told."""

    def __init__(self, search: SearchPlan, slots: int = 1, known: Mapping[int, TrialResult] | None = None) -> None:
        self.plan = search
        self.slots = slots
        self.store: dict[int, TrialResult] = dict(known or {})  # number -> as the store has it
        self.clock = float(len(self.store))
        self.waiting: list[TrialPlan] = []
        self.ends: Callable[[TrialPlan], tuple[str, dict[str, Any]]] = lambda _: ("finished", {})
        self.open()

    def open(self, search: SearchPlan | None = None, **options: Any) -> None:
        """A new process."""
        self.plan = search or self.plan
        self.search = Search(self.plan, list(self.store.values()), plan_of, **options)
        waiting = [one for one in self.store.values() if one.state in ("waiting", "running")]
        kept = self.search.kept
        self.waiting = [one.plan for one in waiting if one.plan.number in kept]

    def go(self, trials: int) -> list[dict[str, Any]]:
        """Until so many more have ended; the choices of all trials so far."""
        for _ in range(trials):
            while len(self.waiting) < self.slots:
                plan = self.search.suggest()
                if plan is None:
                    break
                self.waiting.append(plan)
                self.store[plan.number] = result_of(plan, "running")
            if not self.waiting:
                break
            plan = self.waiting.pop(0)
            state, fields = self.ends(plan)
            self.clock += 1
            self.store[plan.number] = result_of(plan, state, ended=self.clock, **fields)
            self.search.tell(self.store[plan.number])
        return self.chosen

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What Optuna suggested, duplicates too."""
        return [dict(trial.params) for trial in self.search.study.trials]

    @property
    def chosen(self) -> list[dict[str, Any]]:
        return [dict(self.store[number].swept) for number in sorted(self.store)]
