"""PruneGPT from Python: what the command line does, in a notebook, with results as pandas.

from prunegpt import Sweep, run, table

sweep = run("sweeps/quickstart.yaml", slots=2)
sweep.frame()                       # pandas: one row per trial
sweep.curves("pruned90", "loss")    # one row per point
print(table("quickstart"))          # the declared tables, as Markdown
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegpt.errors import LaunchError, PruneGPTError, StoreError
from prunegpt.records import TrialResult
from prunegpt.registry import RENDERERS
from prunegpt.root import Root
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.curves import curves_in
from prunegpt.sweep.events import Event, SweepOutcome

if TYPE_CHECKING:
    from pandas import DataFrame

    from prunegpt.planning.resolve import Planner
    from prunegpt.report.archive import Archive
    from prunegpt.report.cells import Table


class Sweep:
    """One sweep: its spec, and its results so far.

    Args:
        spec: a spec file, or a spec as plain data.
        root: the results directory; default PRUNEGPT_ROOT, else ./runs.
        overrides: PATH=VALUE, as `--set` takes them.

    Raises:
        SpecError: the spec cannot be read. Its other problems are reported by `plan`.
    """

    def __init__(
        self, spec: str | Path | Mapping[str, Any], *, root: str | Path | None = None, overrides: Sequence[str] = ()
    ) -> None:
        from prunegpt.planning.resolve import Planner  # here and below: stored tables need no planning

        self.root = Root.find(Path(root) if root is not None else None)
        source = spec if isinstance(spec, Mapping) else Path(spec)
        self._planner = Planner(source, overrides, self.root, curves_in(self.root), strict=True)

    @cached_property
    def plan(self) -> SweepPlan:
        """Every trial with its stages and their keys.

        Raises:
            SpecError: with every problem of the spec.
        """
        return self._planner.plan

    @property
    def name(self) -> str:
        return self.plan.name

    def run(
        self,
        *,
        slots: int | None = None,
        launcher: str | None = None,
        only: str | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> SweepOutcome:
        """Runs what is not finished yet, and waits for it; see `prunegpt sweep run`."""
        return start(self._planner, self.root, slots=slots, launcher=launcher, only=only, on_event=on_event)

    def results(self) -> list[TrialResult]:
        """The trials as stored, in spec order; none where nothing has run."""
        if not self.root.database.exists():
            return []
        with Store.open(self.root, create=False) as store:
            known = any(sweep.name == self.name for sweep in store.sweeps())
            return store.results(self.name) if known else []

    def frame(self) -> "DataFrame":
        """One row per trial: state, what was swept, perplexity, sparsity (0 to 1), tokens trained, seconds."""
        return _pandas().DataFrame([_row(result) for result in self.results()])

    def curves(self, trial: str, name: str | None = None) -> "DataFrame":
        """The points of a trial, or of its curve of that name: stage, step, epoch, name, value, time, tokens."""
        with Store.open(self.root, create=False) as store:
            points = store.points(f"{self.name}/{trial}", name)
        return _pandas().DataFrame([point.model_dump() for point in points])

    def table(self, format: str = "md") -> str:
        """The declared tables: md, latex, csv, html or json."""
        return table(self.name, format=format, root=self.root.path)


def run(
    spec: str | Path | Mapping[str, Any],
    *,
    root: str | Path | None = None,
    overrides: Sequence[str] = (),
    slots: int | None = None,
    launcher: str | None = None,
    only: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Sweep:
    """Runs a sweep to its end and gives it.

    Raises:
        SpecError: with every problem of the spec, before anything runs.
        LaunchError: another coordinator has the root, or no worker can be started.
    """
    sweep = Sweep(spec, root=root, overrides=overrides)
    sweep.run(slots=slots, launcher=launcher, only=only, on_event=on_event)
    return sweep


def table(sweep: str, *, format: str = "md", root: str | Path | None = None) -> str:
    """The tables of a stored sweep, or of a spec file: md, latex, csv, html or json.

    Raises:
        StoreError: there is no such sweep.
    """
    text: str = RENDERERS.load(format)(tables_of(stored(sweep, Root.find(Path(root) if root is not None else None))))
    return text


def stored(sweep: str, root: Root, overrides: Sequence[str] = ()) -> "Archive":
    """What the store has of a sweep, by its name or its spec.

    A spec's tables are those it declares now, and its trials are there whether they were run or not.
    """
    from prunegpt.report.archive import Archive
    from prunegpt.report.measure import stored_windows
    from prunegpt.report.provenance import spec_commit
    from prunegpt.report.rows import other_sweeps, with_planned

    path, plan = Path(sweep), None
    if path.suffix in (".yaml", ".yml"):
        from prunegpt.planning.resolve import plan_file

        plan = plan_file(path, overrides, root=root, curves=curves_in(root))
    name = plan.name if plan else sweep
    try:
        with Store.open(root, create=False) as store:
            source = store.sweep(name).source
            tables = plan.tables if plan else store.tables(name)
            others = [one.name for one in store.sweeps() if one.name in other_sweeps(tables, name)]
            results = tuple(result for one in (name, *others) for result in store.results(one))
    except StoreError:
        if plan is None:
            raise
        return Archive(name, spec_commit(path), plan.tables, with_planned((), plan), lambda _: None)
    commit = spec_commit(Path(source)) if source else None
    return Archive(name, commit, tables, with_planned(results, plan) if plan else results, stored_windows(root))


def tables_of(found: "Archive") -> "list[Table]":
    """The tables that stored results make; one of all trials where none is declared."""
    from prunegpt.report.logged import is_logged, logged_table
    from prunegpt.report.tables import build_table, usual_table

    if not found.tables and is_logged(found.results):
        return [logged_table(found.sweep, found.results)]
    return [
        build_table(table, found.results, found.windows, sweep=found.sweep, commit=found.commit)
        for table in found.tables or (usual_table(found.sweep, found.results),)
    ]


def start(
    planner: "Planner",
    root: Root,
    *,
    slots: int | None,
    launcher: str | None,
    only: str | None,
    on_event: Callable[[Event], None],
) -> SweepOutcome:
    """Opens all that a run of a sweep needs, runs it, and closes it again.

    Args:
        slots: number of concurrent trials; overrides the spec.
        launcher: kind of launcher; overrides the spec.
        only: a glob of the trials that are wanted.

    Raises:
        LaunchError: another coordinator has the root, or nothing can be started.
    """
    from prunegpt.launch.choose import open_launcher
    from prunegpt.planning.precision import resolved
    from prunegpt.sweep.coordinator import run_sweep
    from prunegpt.sweep.early_stop import open_early_stop
    from prunegpt.sweep.lock import coordinator, refusal
    from prunegpt.sweep.search.open import open_search

    plan = planner.plan
    where = plan.launcher.of(launcher) if launcher else plan.launcher
    for trial in plan.trials if launcher else ():  # without, what was planned for is where it runs
        there = resolved(str(trial.config.get("precision", "auto")), trial.device, where)
        if there != trial.precision:
            raise LaunchError(
                f"precision auto is decided when a trial is planned, and {trial.name} was planned in {trial.precision} "
                f"for launcher {plan.launcher.kind}, but {where.kind} would compute it in {there}. "
                f"Say in the spec which of the two is meant, or name the launcher there."
            )
    if coordinator(root) is not None:  # before a launcher has started anything
        raise LaunchError(refusal(root))
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(root))
        suggester = open_search(plan, store, planner) if plan.searches else None
        early_stopper = open_early_stop(plan, store) if plan.early_stop else None
        if plan.tracking.wandb.mode != "off":
            from prunegpt.tracking.tracker import WandbTracker

            stack.callback(WandbTracker(plan, root).close)
        return run_sweep(
            plan,
            root,
            store,
            open_launcher(where, root, slots=slots),  # last: run_sweep closes it
            only=only,
            on_event=on_event,
            suggester=suggester,
            early_stopper=early_stopper,
        )


def _row(result: TrialResult) -> dict[str, Any]:
    metrics, measured = result.metrics, result.evaluation
    return {
        "trial": result.name,
        "seed": result.seed,
        "state": result.state,
        **result.swept,
        **{name: metrics[name] for name in ("perplexity", "loss")},
        "protocol": measured.protocol if measured else None,
        "split": measured.split if measured else None,
        **{name: metrics[name] for name in ("sparsity", "sparsity_all", "coverage", "tokens", "seconds")},
        "reason": result.reason,
        "key": result.key,
    }


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise PruneGPTError("results as data frames need pandas. Install it: pip install 'prunegpt[pandas]'") from error
    return pandas
