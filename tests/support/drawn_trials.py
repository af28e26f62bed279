"""Trials drawn over the whole schema: methods, options, allocations, patterns, schedules, clocks, losses, arguments.

Mostly what goes together is drawn, so that many trials of several stages are accepted; seldom anything else, so that
the check has something to refuse. What it accepts has to run. Names and options come from the registry, so that a new
part is drawn as soon as it is registered. The model is `builtin:tiny-gpt2` or one like it: four decoder layers whose
tensors are called as GPT-2's.
"""

from collections.abc import Mapping
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from hypothesis import strategies as st

from prunegpt.registry import (
    ALLOCATIONS,
    CRITERIA,
    DISTILLATION_LOSSES,
    GATHERED,
    MASK_MODES,
    REFINEMENTS,
    SCHEDULES,
    SOLVERS,
    Entry,
)

METHODS = (*CRITERIA.names(), *SOLVERS.names())
PATTERNS = ("unstructured", "unstructured", "2:4", "1:4", "[4, 4]", "[2, 2]", "3:7")
TARGETS: tuple[Mapping[str, Any], ...] = (
    {},
    {},
    {"targets": ["*attn*"]},
    {"targets": ["*.mlp.c_fc"]},
    {"layers": [0, 1]},
    {"exclude": ["*c_proj*"]},
    {"targets": ["*wte*"]},
    {"targets": ["lm_head", "*mlp*"]},
)
MAPPINGS: tuple[Mapping[str, float], ...] = ({"*attn*": 0.3, "*mlp*": 0.6}, {"*.h.0.*": 0.2}, {"*": 0.5, "*mlp*": 0.2})


def seldom(draw: st.DrawFn, one_in: int = 12) -> bool:
    """Whether a draw shall leave what usually goes together."""
    return draw(st.integers(1, one_in)) == one_in


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of the type and range of an option."""
    plain, *limits = get_args(kind) or (kind,)
    if plain is str:
        return st.sampled_from(["a", "b"])
    if plain is bool:
        return st.booleans()
    if plain is float:
        return st.sampled_from([0.05, 0.1, 0.3, 0.5])
    low = next((limit.ge if isinstance(limit, Ge) else limit.gt for limit in limits if isinstance(limit, Ge | Gt)), 0)
    high = next((limit.le if isinstance(limit, Le) else limit.lt for limit in limits if isinstance(limit, Le | Lt)), 16)
    return st.integers(int(low), int(high))


@st.composite
def options(draw: st.DrawFn, *entries: Entry) -> dict[str, Any]:
    """Some of the options that parts take; seldom one that they do not, or a value beside its range."""
    known = {name: kind for entry in entries for name, kind in entry.valid_options.items() if name != "sweep"}
    chosen = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=2)) if known else []
    found = {name: draw(values(known[name])) for name in chosen}
    if seldom(draw, 20):
        found["nonsense"] = 1
    if found and seldom(draw, 20):
        found[min(found)] = draw(st.sampled_from(["wide", True, -1, 1.5, 10_000]))
    return found


@st.composite
def prunings(draw: st.DrawFn, *, training: bool) -> dict[str, Any]:
    """Fields of a one-shot pruning, or of a gradual one: mostly of what goes together."""
    method = draw(st.sampled_from(METHODS))
    entry = (SOLVERS if method in SOLVERS else CRITERIA).entry(method)
    patterns = [name for name in PATTERNS if name != "3:7" and not (entry.solver and name[0] == "[")]
    pattern = draw(st.sampled_from(PATTERNS if seldom(draw) else patterns))
    names = [name for name in ALLOCATIONS.names() if name != "sensitivity"]  # asks for a sweep that was run
    scoped = [name for name in names if ALLOCATIONS.entry(name).scope is not None]
    spreading = [name for name in names if name not in (*scoped, "explicit")]
    usual = [*scoped, *([*spreading, *range(len(MAPPINGS))] if ":" not in pattern else [])]
    usual = [name for name in usual if not entry.solver or name not in ("row", "global")]
    allocation = draw(st.sampled_from([None, *([*names, *range(len(MAPPINGS))] if seldom(draw) else usual)]))
    found: dict[str, Any] = {"method": method, "pattern": pattern, **draw(st.sampled_from(TARGETS))}
    if ":" not in pattern or seldom(draw):
        found["sparsity"] = draw(st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.9]))
    if allocation is not None:
        found["allocation"] = dict(MAPPINGS[allocation]) if isinstance(allocation, int) else allocation
    spread = ALLOCATIONS.entry(allocation) if isinstance(allocation, str) else Entry("")
    mode = draw(st.sampled_from(MASK_MODES.names() if seldom(draw) or not entry.solver else ["projected"]))
    refinable = not entry.solver and pattern[0] != "[" and spread.scope != "global"
    refine = draw(st.sampled_from([None, *(REFINEMENTS.names() if refinable or seldom(draw) else [])]))
    if refine and not training:
        found["refine"] = refine
    further = MASK_MODES.entry(mode) if training else REFINEMENTS.entry(refine) if refine else Entry("")
    found["options"] = draw(options(entry, spread, further))
    found["calibration"] = {"windows": 2, "length": 16}
    if not training:
        found["propagate"] = draw(st.booleans())
        return found
    unit = draw(st.sampled_from(["epochs", "steps", "fraction"]))
    length = {"epochs": 1.0, "steps": 5.0, "fraction": 1.0}[unit]
    starts = [0.0, 0.01, 0.1, 0.25] if seldom(draw) or not entry.needs & GATHERED else [0.25]
    found |= {
        "schedule": draw(st.sampled_from(SCHEDULES.names())),
        "initial": draw(st.sampled_from([0.0, 0.2])) if pattern == "unstructured" else 0.0,
        "unit": unit,
        "start": draw(st.sampled_from(starts)) * length,
        "every": draw(st.sampled_from([0.05, 0.1, 0.2])) * length,
        "regrow": draw(st.booleans()),
        "mode": mode,
    }
    end = draw(st.sampled_from([None, 0.5, 0.75, 1.0] if seldom(draw) else [0.5, 0.75]))
    if end is not None:
        found["end"] = end * length
    if seldom(draw) or (unit == "epochs" and draw(st.booleans())):
        found["clock"] = "sparseml"
    return found


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Training arguments that decide how long a stage is, and some that do not go with everything."""
    found: dict[str, Any] = draw(st.sampled_from([{"max_steps": 9}, {"num_train_epochs": 2}, {"num_train_epochs": 1}]))
    found = {**found, "per_device_train_batch_size": draw(st.sampled_from([2, 4])), "learning_rate": 1e-3}
    optional: dict[str, list[Any]] = {
        "gradient_accumulation_steps": [2, 3],
        "dataloader_drop_last": [True],
        "lr_scheduler_type": ["cosine", "constant", "constant_with_warmup"],
        "warmup_steps": [2],
        "max_grad_norm": [0.5],
        "weight_decay": [0.1],
        "logging_strategy": ["no", "epoch"],
        "logging_steps": [1, 3],
        "save_strategy": ["no", "epoch"],
        "eval_strategy": ["epoch"],
        "optim": ["adamw_torch", "sgd"],
    }
    if seldom(draw):
        optional = {"save_only_model": [True], "load_best_model_at_end": [True], "max_stepz": [1]}
    for name in draw(st.lists(st.sampled_from(sorted(optional)), unique=True, max_size=3)):
        found[name] = draw(st.sampled_from(optional[name]))
    return found


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a low-rank adapter."""
    also = draw(st.lists(st.sampled_from(["biases", "norms", "embeddings", "head"]), unique=True, max_size=2))
    rank = draw(st.sampled_from([0, 1, 4, 10_000] if seldom(draw) else [1, 4]))
    return {"rank": rank, "also": also, **draw(st.sampled_from(TARGETS if seldom(draw) else TARGETS[:6]))}


@st.composite
def trainings(draw: st.DrawFn, teacher: str | None) -> dict[str, Any]:
    """A fine-tuning, or where there is a teacher a distillation, with or without pruning."""
    found: dict[str, Any] = {"train": draw(arguments()), "keep_masks": draw(st.sampled_from([True, True, False]))}
    if draw(st.booleans()):
        found["prune"] = draw(prunings(training=True))
    if draw(st.integers(0, 5)) == 0:
        found["keep_checkpoints"] = True
    if seldom(draw, 20) or ("prune" not in found and draw(st.booleans())):
        found["adapter"] = draw(adapters())
    if teacher is None or draw(st.booleans()):
        return {"finetune": found}
    loss = draw(st.sampled_from(DISTILLATION_LOSSES.names()))
    gains = [0.0, 0.0, 1.0] if (cached := draw(st.integers(0, 2)) == 0) is False or seldom(draw) else [0.0]
    found |= {
        "teacher": teacher,
        "loss": loss,
        "options": draw(options(DISTILLATION_LOSSES.entry(loss))),
        "hardness": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "temperature": draw(st.sampled_from([1.0, 2.0])),
        "hidden_gain": draw(st.sampled_from(gains)),
        "attention_gain": draw(st.sampled_from(gains)),
    }
    if draw(st.integers(0, 3)) == 0:
        found["layer_map"] = draw(st.sampled_from([{0: 99}, {}] if seldom(draw) else [{0: 0}, {0: 3, 1: 1}]))
    if cached:
        found["cache"] = {"k": 5000 if seldom(draw) else draw(st.sampled_from([1, 8]))}
    if seldom(draw) or (not cached and draw(st.booleans())):
        found["on_policy"] = {"share": draw(st.sampled_from([0.1, 1.0])), "new_tokens": draw(st.sampled_from([1, 4]))}
    return {"distill": found}


@st.composite
def trials(draw: st.DrawFn, *, teacher: str | None = "teacher") -> dict[str, Any]:
    """A trial of one to three stages, to be laid over a base that names model and text.

    Args:
        teacher: a trial of the same spec that distillations learn from; None = no distillation.
    """
    stage = st.one_of(trainings(teacher), prunings(training=False).map(lambda fields: {"prune": fields}))
    found: dict[str, Any] = {"name": "drawn", "seeds": [draw(st.integers(0, 3))]}
    found["stages"] = draw(st.lists(stage, min_size=1, max_size=3))
    if seldom(draw):
        found |= {"device": "cpu", "precision": draw(st.sampled_from(["float16", "bfloat16", "float32"]))}
    return found
