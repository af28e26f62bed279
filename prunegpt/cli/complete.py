"""What a shell completes: names from the root, the registry and the folder. No error reaches the shell."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import typer

from prunegpt.builtin import BUILTIN_MODELS, BUILTIN_TEXTS
from prunegpt.root import Root

Complete = Callable[[typer.Context, str], list[str]]
SPECS = (".yaml", ".yml")


def _completing(names: Callable[[typer.Context, str], Iterable[str]]) -> Complete:
    """The names that begin as what is typed; none where something fails."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        found: list[str] = []
        with suppress(Exception):  # a shell must not break because a root is damaged
            found += (name for name in names(ctx, incomplete) if name.startswith(incomplete))
        return found

    return complete


def choice(*names: str) -> Complete:
    """One of some fixed names."""
    return _completing(lambda _ctx, _incomplete: names)


def registered(*tables: str) -> Complete:
    """The names in tables of the registry, which is imported when a shell asks."""

    def names(_ctx: typer.Context, _incomplete: str) -> list[str]:
        from prunegpt import registry

        return [name for table in tables for name in getattr(registry, table).names()]

    return _completing(names)


def _root(ctx: typer.Context) -> Root:
    given = ctx.params.get("root")
    return given if isinstance(given, Root) else Root.find(given)


def _stored(ctx: typer.Context, sweep: str | None = None) -> list[str]:
    """The sweeps of the root, or the trials and groups of one."""
    from prunegpt.store import Store

    with Store.open(_root(ctx), create=False) as store:
        return store.names(sweep)


def _paths(incomplete: str, suffixes: Iterable[str] = ()) -> Iterator[str]:
    """Folders, and files of these kinds, as far as they are typed."""
    for path in sorted(Path().glob(f"{incomplete}*") if not os.path.isabs(incomplete) else ()):
        if path.is_dir() and not path.name.startswith("."):
            yield f"{path}/"
        elif path.suffix in suffixes:
            yield str(path)


def _addresses(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """SWEEP/ first, then its trials and groups; of a single sweep those at once."""
    sweeps = _stored(ctx)
    for sweep in sweeps:
        if incomplete.startswith(f"{sweep}/") or len(sweeps) == 1:
            yield from (f"{sweep}/{name}" for name in _stored(ctx, sweep))
        else:
            yield f"{sweep}/"


def _tables(ctx: typer.Context, _incomplete: str) -> list[str]:
    """The tables that a stored sweep declares, or the one it has in their place."""
    from prunegpt.report.tables import USUAL, table_name
    from prunegpt.store import Store

    sweep = ctx.params["sweep"] or ctx.args[0]  # behind an option without its value no argument is parsed
    with Store.open(_root(ctx), create=False) as store:
        return [table_name(table) for table in store.tables(sweep)] or [USUAL]


def _figures(ctx: typer.Context, _incomplete: str) -> list[str]:
    """The figures that a stored sweep declares, and those of every sweep."""
    from prunegpt.report.declared import figures_in
    from prunegpt.report.gallery import DRAWINGS
    from prunegpt.store import Store

    with Store.open(_root(ctx), create=False) as store:
        own = [figure.name for figure in figures_in(store.sweep(ctx.params["sweep"]).spec)]
    return [*own, *DRAWINGS]


def _fields(_ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """The fields of every trial, behind those that are named already."""
    from prunegpt.report.fields import TrialFields

    before, comma, _ = incomplete.rpartition(",")
    yield from (f"{before}{comma}{name}" for name in TrialFields(()).fixed)


def _templates(_ctx: typer.Context, _incomplete: str) -> Iterable[str]:
    from prunegpt.templates import names

    return names()


def _sweep_or_spec(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    with suppress(Exception):
        yield from _stored(ctx)
    yield from _paths(incomplete, SPECS)


def _model(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    yield from BUILTIN_MODELS
    yield from _paths(incomplete, (".gguf",))
    yield from _addresses(ctx, incomplete)


sweeps = _completing(lambda ctx, _incomplete: _stored(ctx))
sweep_or_spec = _completing(_sweep_or_spec)
trials = _completing(_addresses)
tables = _completing(_tables)
figures = _completing(_figures)
fields = _completing(_fields)
templates = _completing(_templates)
trials_of_sweep = _completing(lambda ctx, _incomplete: _stored(ctx, ctx.params["name"]))
models = _completing(_model)
datasets = _completing(lambda _ctx, typed: [*BUILTIN_TEXTS, *_paths(typed, (".txt", ".jsonl", ".csv", ".parquet"))])
methods = registered("CRITERIA", "SOLVERS")
allocations = registered("ALLOCATIONS")
refinements = registered("REFINEMENTS")
protocols = registered("PROTOCOLS")
launchers = registered("LAUNCHERS")
calibration_modes = registered("CALIBRATION_MODES")
export_formats = registered("EXPORT_FORMATS")
