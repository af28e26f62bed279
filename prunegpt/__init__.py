"""PruneGPT: what does pruning do to a GPT-style language model, and does distillation win it back?

The map of the house. Data flows down the page: spec → plan → attempts → records → store → tables.

    errors        the error tree; every message states the rule, the value, a hint
    redact        secrets taken out of what is written
    registry      named parts: built-in ones by table, others by entry point
    root          the directory layout, and atomic publishing
    access        the token of a root, which its server asks of who wants to change something
    records       what crosses from a worker to the coordinator
    points        curves and heartbeats, while a worker runs
    signals       those that ask a process to end in good order
    usage         what a process takes of its machine, as points
    memory        large blocks on a CPU, used again and given back; the collector
    builtin/      the model and the text that need no download
    templates/    specs to begin with
    spec/         the YAML: read with lines, checked field by field, expanded; what a plan is
    recipes/      recipe files of two dialects: what they mean, and conversion
    planning/     from a spec to a plan: facts about models and datasets, stage keys, teachers, costs; no torch

  the tensor side
    lm/           models and tokenisers, text as windows, canonical weight views, the one perplexity
    pruning/      criteria, solvers, patterns, schedules, allocation, statistics, masks and their enforcement
    shrinking/    which layers, neurons, heads, channels and experts stay, and the smaller model
    distill/      losses, teachers, hidden states
    training/     a stage as a frozen job, and transformers' Trainer that is handed it
    stages/       one file per stage; the chain of a trial, what is cached and published
    exporting/    a model as files that others run: one file per format, and its check
    trial         runs one trial from its folder; no database

  the book-keeping side
    store/        the database of a root
    launch/       where an attempt runs
    sweep/        the coordinator: what runs next, what came back
    tracking/     Weights & Biases
    report/       tables, statistics, figures
    web/          the dashboard

    api           the same from Python: Sweep, run, table
    running       opens all that a run of a sweep needs, for both
    cli/          one file a command group, on top of both sides

A module imports only what `tests/test_imports.py` allows its part to, downwards on this map, and the two sides never
import each other: they meet in `records`, in `trial` and in `cli`. Nothing that `prunegpt --help` or `prunegpt sweep
status` needs imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunegpt.api import Sweep, run, table

__version__ = "0.1.0"
__all__ = ["Sweep", "__version__", "run", "table"]


def __getattr__(name: str) -> Any:
    """The public names are imported when they are asked for: `prunegpt --help` needs none of them."""
    if name in __all__:
        return getattr(import_module("prunegpt.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__") and name not in __all__)])
