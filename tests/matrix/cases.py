"""Every way to prune while training, from what is registered: the cases that the matrix runs.

An axis is a kind of part; its values are the registered names, so that a new part is in the matrix by being registered.
"""

import random
from collections.abc import Iterable, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

from prunegpt.planning.resolve import plan_data
from prunegpt.registry import ALLOCATIONS, CRITERIA, DISTILLATION_LOSSES, MASK_MODES, SCHEDULES, SOLVERS
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.training_arguments import choices

Case = dict[str, str]  # axis -> name of a value

BLOCKS, EPOCHS, BATCH = 8, 2, 2
STEPS = BLOCKS * EPOCHS // BATCH  # of the optimizer: 8

PRUNED: Mapping[str, Any] = {"prune": {"method": "magnitude", "sparsity": 0.3}}  # what a case may begin with

# When masks change: all between step 1 and step 6 of 8.
CLOCKS: Mapping[str, Mapping[str, Any]] = {
    "steps": {"unit": "steps", "start": 1, "end": 6, "every": 2},
    "epochs": {"unit": "epochs", "start": 0.25, "end": 1.5, "every": 0.25},
    "fraction": {"unit": "fraction", "start": 0.15, "end": 0.75, "every": 0.15},
    "sparseml": {"unit": "epochs", "start": 0.25, "end": 1.5, "every": 0.3, "clock": "sparseml"},
    "half-way": {"unit": "steps", "start": 1, "every": 2},
}

# What a stage distils with, beside each registered loss.
_TERMS: Mapping[str, Mapping[str, Any]] = {
    "cached": {"cache": {"k": 16}},
    "hidden": {"hidden_gain": 0.5},
    "attention": {"attention_gain": 0.5},
    "no-teacher-term": {"hardness": 0.0},
    "on-policy": {"on_policy": {"share": 0.7, "new_tokens": 5}},
}
KINDS: Mapping[str, Mapping[str, Any] | None] = {
    "finetune": None,
    **{f"distill-{loss}": {"loss": loss} for loss in DISTILLATION_LOSSES.names()},
    **{f"distill-{name}": fields for name, fields in _TERMS.items()},
}

# What a scheduler cannot do without.
_SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "reduce_lr_on_plateau": {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"},
    "greedy": {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}, "warmup_steps": 2},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 4}, "warmup_steps": 2},
    "constant_with_warmup": {"warmup_steps": 2},
    "inverse_sqrt": {"warmup_steps": 2},
}

# Training arguments that decide or might disturb what a stage comes to; an axis for what excludes each other.
ARGUMENTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "batches": {
        "plain": {},
        "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        "drop last": {"dataloader_drop_last": True},
    },
    "optimizer": {"adamw": {}, "sgd": {"optim": "sgd"}, "adafactor": {"optim": "adafactor"}},
    "gradients": {
        "clipped": {},
        "no clipping": {"max_grad_norm": 0.0},
        "checkpointing": {"gradient_checkpointing": True},
        "weight decay": {"weight_decay": 0.1},
        "neftune": {"neftune_noise_alpha": 5.0},
    },
    "log": {"every fifth": {}, "no log": {"logging_strategy": "no"}, "at the end only": {"logging_steps": 1000}},
    "evaluation": {"at the end": {}, "on the way": {"eval_strategy": "steps", "eval_steps": 3}},
    "checkpoints": {
        "none": {},
        "every third": {"save_strategy": "steps", "save_steps": 3},
        "every step": {"save_strategy": "steps", "save_steps": 1},
    },
}
SCHEDULERS = {
    f"scheduler {name}": {"lr_scheduler_type": name, **_SCHEDULERS.get(name, {})} for name in choices()["SchedulerType"]
}

# What trains once more, with the masks held.
_LOW_RANK = {"train": {"num_train_epochs": 1}, "adapter": {"rank": 4}}
AFTER: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "nothing": {},
    "finetune": {"finetune": {"train": {"num_train_epochs": 1}}},
    "adapter": {"finetune": _LOW_RANK},
    "adapter, distilled": {"distill": _LOW_RANK},
    "adapter, cached": {"distill": {**_LOW_RANK, "cache": {"k": 16}}},
}

AXES: Mapping[str, tuple[str, ...]] = {
    "method": (*CRITERIA.names(), *SOLVERS.names()),
    "schedule": tuple(SCHEDULES.names()),
    "allocation": tuple(ALLOCATIONS.names()),
    "pattern": ("unstructured", "2:4", "[2, 4]"),
    "kind": tuple(KINDS),
    "clock": tuple(CLOCKS),
    **{axis: tuple(values) for axis, values in ARGUMENTS.items()},
    "before": ("dense", "pruned"),
    "masks": ("close", "regrow", *(name for name in MASK_MODES.names() if name != "projected")),
    "after": tuple(AFTER),
    "way": ("stopped", "killed"),  # what happens to it on the way, see `runs.py`
}
CHOSEN_MASKS = ("method", "schedule", "allocation", "pattern")  # all of their combinations are in the whole matrix


def trial_of(case: Case, model: str) -> dict[str, Any]:
    """The trial of a case, as a spec has it."""
    fields = KINDS[case["kind"]]
    train: dict[str, Any] = {"num_train_epochs": EPOCHS}
    for axis, values in ARGUMENTS.items():
        train |= values[case[axis]]
    train |= SCHEDULERS.get(case.get("scheduler", ""), {})
    stage: dict[str, Any] = {"train": train, "prune": _pruning(case)}
    if fields is not None:
        stage |= {"teacher": {"model": model}, **fields}
    stages: list[Any] = [{"finetune" if fields is None else "distill": stage}]
    if case["before"] == "pruned":
        stages.insert(0, PRUNED)
    for kind, after in AFTER[case["after"]].items():
        stages.append({kind: {**after, **({"teacher": {"model": model}} if kind == "distill" else {})}})
    return {"name": "case", "stages": stages}


def _pruning(case: Case) -> dict[str, Any]:
    prune: dict[str, Any] = {
        "method": case["method"],
        "schedule": case["schedule"],
        "pattern": case["pattern"],
        "calibration": {"windows": 4, "length": 16},
        **CLOCKS[case["clock"]],
    }
    if case["masks"] == "regrow":
        prune["regrow"] = True
    elif case["masks"] != "close":
        prune["mode"] = case["masks"]
    if case["pattern"] != "2:4":
        prune["sparsity"] = 0.5
    allocation = case["allocation"]
    if allocation == "explicit":
        prune["allocation"] = {"*mlp*": 0.25} if case["pattern"] == "2:4" else {"*mlp*": 0.75}
    elif allocation == "sensitivity":
        curve = [(0.25, 0.01), (0.5, 0.1), (0.75, 1.0)]
        prune |= {"allocation": allocation, "curves": {"0": curve, "1": [(level, 2 * cost) for level, cost in curve]}}
    else:
        prune["allocation"] = allocation
    return prune


def fits(case: Case) -> bool:
    """Whether parts go together by what they are. That a spec whose parts do not is refused, other tests see to."""
    solver, fixed = case["method"] in SOLVERS.names(), case["pattern"] == "2:4"
    return not (
        (solver and (case["allocation"] in ("row", "global") or case["pattern"] == "[2, 4]"))
        or (solver and fixed and case["schedule"] not in ("constant", "acdc"))  # solvers prune N:M at once
        or (solver and case["masks"] in MASK_MODES)  # which choose by scores alone
        or (case["masks"] == "elsa" and case["optimizer"] == "sgd")  # its pull needs Adam's scaling
        or (fixed and ALLOCATIONS.entry(case["allocation"]).scope is None)  # N:M says what each tensor gets
    )


def covering(axes: Mapping[str, tuple[str, ...]] = AXES, seed: int = 0, tries: int = 5) -> list[Case]:
    """Cases that fit, in which every two values that can fit occur together: about as many as the two longest axes ask.

    The pairs of the longest axes come first, as each needs a case of its own; a case is then filled axis by axis with
    the value that brings most of the pairs that are missing.
    """
    names, draw = list(axes), random.Random(seed)
    place = {axis: index for index, axis in enumerate(names)}
    missing = {
        tuple(zip(chosen, values, strict=True))
        for chosen in combinations(names, 2)
        for values in product(*(axes[axis] for axis in chosen))
    }

    def brings(case: Case, axis: str, value: str) -> int:
        ends = ((axis, value), *case.items())
        return sum(tuple(sorted((ends[0], other), key=lambda end: place[end[0]])) in missing for other in ends[1:])

    def filled(fixed: Case) -> Case:
        case = dict(fixed)
        for axis in draw.sample(names, len(names)):
            if axis not in case:
                case[axis] = max(axes[axis], key=lambda value: (brings(case, axis, value), draw.random()))
        return {axis: case[axis] for axis in names}

    def candidates(fixed: Case) -> list[Case]:
        """Filled well; at random, where none of those fits."""
        found = [case for case in (filled(fixed) for _ in range(tries)) if fits(case)]
        drawn = ({axis: fixed.get(axis) or draw.choice(axes[axis]) for axis in names} for _ in range(200))
        return found or [case for case in drawn if fits(case)]

    def length(pair: tuple[tuple[str, str], ...]) -> tuple[int, tuple[tuple[str, str], ...]]:
        return -len(axes[pair[0][0]]) * len(axes[pair[1][0]]), pair

    cases: list[Case] = []
    for wanted in sorted(missing, key=length):
        if wanted in missing:
            best = max(candidates(dict(wanted)), key=lambda case: len(missing & pairs(case)), default=None)
            if best is not None:  # else these values do not go together
                cases.append(best)
                missing -= pairs(best)
    return cases


def pairs(case: Case) -> set[tuple[tuple[str, str], ...]]:
    """What of a case goes together, in the order of the axes."""
    return set(combinations(case.items(), 2))


def scheduled(cases: Iterable[Case]) -> list[Case]:
    """The cases, with each learning-rate scheduler of the installed transformers in one of them.

    What a scheduler cannot do without is what its case has of that axis, so that no pair of values is lost.
    """
    left = dict(SCHEDULERS)
    found = []
    for case in cases:
        agrees = (name for name, needs in left.items() if "eval_strategy" not in needs or "way" in case["evaluation"])
        name = next(agrees, None)
        if name is not None:
            del left[name]
        found.append(case if name is None else {**case, "scheduler": name})
    assert not left
    return found


def schedulers() -> list[Case]:
    """A case for each of them."""
    return [case for case in GATE if "scheduler" in case]


def whole(seed: int = 0) -> list[Case]:
    """Every combination of method, schedule, allocation and pattern that fits; the other axes are drawn."""
    draw = random.Random(seed)
    others = [axis for axis in AXES if axis not in CHOSEN_MASKS]
    cases = [
        {**dict(zip(CHOSEN_MASKS, values, strict=True)), **{axis: draw.choice(AXES[axis]) for axis in others}}
        for values in product(*(AXES[axis] for axis in CHOSEN_MASKS))
    ]
    return [case for case in cases if fits(case)]


def plans_of(case: Case, model: Path, texts: dict[str, str], root: Root) -> list[TrialPlan]:
    """The trial of a case, after its teacher."""
    base = {
        "model": str(model),
        "data": {"files": texts, "block_size": 16, "max_train_blocks": BLOCKS},
        "evaluate": {"max_windows": 2, "block_size": 16},
        "train": {"per_device_train_batch_size": BATCH, "learning_rate": 0.003, "logging_steps": 5},
    }
    plan = plan_data({"name": "matrix", "base": base, "trials": [trial_of(case, str(model))]}, root=root)
    return sorted(plan.trials, key=lambda trial: len(trial.needs))


GATE = scheduled(covering())
