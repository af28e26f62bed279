"""PruneGPT from Python: what the command line does, in a notebook, with results as pandas.

from prunegpt import Sweep, run, table

sweep = run("study.yaml", slots=2)
sweep = Sweep("quickstart")         # the same later, by its name in the root
sweep.frame()                       # pandas: one row per trial
sweep.curves("pruned90", "loss")    # one row per point
sweep.figure("pareto")              # shown in a notebook; .save("pareto.pdf")
model, tokenizer = sweep.model("pruned90")
print(table("quickstart"))          # the declared tables, as Markdown
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegpt.errors import PruneGPTError, StoreError, unknown
from prunegpt.points import Point
from prunegpt.records import TrialResult
from prunegpt.registry import RENDERERS
from prunegpt.root import Root
from prunegpt.running import prepare, start
from prunegpt.spec.code import with_functions
from prunegpt.spec.only import Only, RunOptions
from prunegpt.spec.plan import SweepPlan
from prunegpt.store import Store
from prunegpt.sweep.curves import curves_in
from prunegpt.sweep.events import Event, SweepOutcome

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prunegpt.planning.resolve import Planner
    from prunegpt.report.archive import Archive
    from prunegpt.report.gallery import NamedFigure
    from prunegpt.report.material import Material
    from prunegpt.report.plots import Curve
    from prunegpt.spec.figures import FigureSpec
    from prunegpt.store.series import Series

_MANY = 200  # trials up to which intervals are computed by default


class Sweep:
    """One sweep: its spec, and its results so far.

    Args:
        spec: a spec file, the name of a sweep that is stored in the root, or a spec as plain data.
        root: the results directory; default PRUNEGPT_ROOT, else ./runs.
        overrides: PATH=VALUE, as `--set` takes them; of a spec, not of a stored sweep.

    Raises:
        SpecError: the spec cannot be read. Its other problems are reported by `plan`.
        StoreError: there is neither such a file nor such a sweep, or both.
    """

    def __init__(
        self, spec: str | Path | Mapping[str, Any], *, root: str | Path | None = None, overrides: Sequence[str] = ()
    ) -> None:
        self.root = Root.find(Path(root) if root is not None else None)
        source = spec_file(spec, self.root) if isinstance(spec, str) else spec
        self._name, self._planner = str(spec), None  # of a stored sweep
        if source is not None:
            from prunegpt.planning.resolve import Planner  # here and below: stored tables need no planning

            self._planner = Planner(with_functions(source), overrides, self.root, curves_in(self.root), strict=True)
        elif overrides:
            raise StoreError(f"overrides change a spec; {spec} is a stored sweep. Open its spec file instead.")

    @cached_property
    def plan(self) -> SweepPlan:
        """Every trial with its stages and their keys.

        Raises:
            SpecError: with every problem of the spec.
        """
        with self._planning() as planner:
            return planner.plan

    @property
    def name(self) -> str:
        return self._planner.name if self._planner else self._name

    @contextmanager
    def _planning(self) -> "Iterator[Planner]":
        """The planner, and of a stored sweep its folder while the block lasts."""
        if self._planner is not None:
            yield self._planner
            return
        from prunegpt.sweep.reopened import reopened

        with reopened(self.name, self.root) as planner:
            yield planner

    def run(
        self,
        *,
        slots: int | None = None,
        launcher: str | None = None,
        only: Only = None,
        priority: int = 0,
        wait: bool = True,
        on_event: Callable[[Event], None] | None = None,
        progress: bool | None = None,
    ) -> SweepOutcome:
        """Runs what is not finished yet, and waits for it; see `prunegpt sweep run`.

        Args:
            only: one glob or several; trials whose name one matches, and their teachers. Default: all.
            priority: in the queue while another sweep of the root runs; higher goes first.
            wait: for that sweep's end; without it, its being there is an error.
            on_event: is called with each event of `prunegpt.sweep.events`.
            progress: lines and bars as on the command line; default: without `on_event`, in a notebook or a terminal.
        """
        if progress is None:
            progress = on_event is None and ("ipykernel" in sys.modules or sys.stderr.isatty())
        with ExitStack() as stack:
            planner, hear = stack.enter_context(self._planning()), [on_event] if on_event else []
            asked = RunOptions(only, launcher, slots, priority, wait)
            prepare(planner, self.root, asked)
            if progress:
                from prunegpt.cli.progress import follow

                hear.insert(0, stack.enter_context(follow(planner.plan)))

            def tell(event: Event) -> None:
                for one in hear:
                    one(event)

            return start(planner, self.root, asked, tell)

    def results(self) -> list[TrialResult]:
        """The trials as stored, in spec order; none where nothing has run."""
        if not self.root.database.exists():
            return []
        with Store.open(self.root, create=False) as store:
            known = any(sweep.name == self.name for sweep in store.sweeps())
            return store.results(self.name) if known else []

    def frame(self, *, where: str = "", intervals: bool | None = None) -> "DataFrame":
        """One row per trial, with the fields of docs/how-to/filters.md and what was swept: group, method, ...

        Sparsities are 0 to 1; `perplexity_low` and `perplexity_high` are the ends of the 95% interval; `last.loss`,
        `min.eval_loss` and so on are what curves come to, but for those of single tensors and stages.

        Args:
            where: a filter, such as 'perplexity < 40 and method == "wanda"'; see docs/how-to/filters.md.
            intervals: whether to compute them, some milliseconds each; default: of up to 200 trials.

        Raises:
            QueryError: the filter is not understood.
        """
        from prunegpt.report.fields import TrialFields
        from prunegpt.report.frame import frame, rows
        from prunegpt.report.query import selected
        from prunegpt.store.curves import Summaries

        results = self.results()
        if not results:
            return frame(rows(selected([], where), None))
        with Store.open(self.root, create=False) as store:
            summaries = Summaries(store, self.name)
            results = selected(results, where, TrialFields(results, curves=lambda: summaries))
            measured = len(results) <= _MANY if intervals is None else intervals
            return frame(rows(results, self.root if measured else None, summaries))

    def curves(self, trial: str, name: str | None = None) -> "DataFrame":
        """The points of a trial, or of its curve of that name: stage, step, epoch, name, value, time, tokens.

        Raises:
            StoreError: there is no such trial, or it has no such curve; the nearest names are listed.
        """
        from prunegpt.report.frame import frame

        with Store.open(self.root, create=False) as store:
            reference = store.result(f"{self.name}/{trial}").id
            if name is not None and name not in (known := {curve.name: None for curve in store.curves(reference)}):
                raise StoreError(unknown(f"curve of {trial}", name, known))
            points = store.points(reference, name)
        return frame([point.model_dump() for point in points], list(Point.model_fields))

    def table(self, format: str = "md", **style: Any) -> str:
        """The declared tables; see `prunegpt.table`."""
        return table(self.name, format=format, root=self.root.path, **style)

    def figure(self, name: str) -> "NamedFigure":
        """A figure, which a notebook shows and `save` writes as .pdf, .svg or .png.

        Args:
            name: one of `figures`.

        Raises:
            ReportError: there is no such figure, or nothing yet to draw it from.
        """
        from prunegpt.report.gallery import figure_of

        for spec, found in declared(self.name, self.root):
            if spec.name == name:
                if isinstance(found, PruneGPTError):
                    raise found
                return found
        return figure_of(name, self._material, self.figures)

    @property
    def figures(self) -> list[str]:
        """The names of the figures: those that the spec declares, then those of every sweep."""
        from prunegpt.report.gallery import figure_names

        return list(
            dict.fromkeys([*(spec.name for spec, _ in declared(self.name, self.root)), *figure_names(self._material)])
        )

    @property
    def _material(self) -> "Material":
        """What figures are drawn from."""
        from prunegpt.report.material import LEADING, Material, stored_curves
        from prunegpt.report.measure import stored_windows

        def curves_of(trial: TrialResult) -> "Mapping[str, Curve]":
            with Store.open(self.root, create=False) as store:
                return stored_curves(store, stages)(trial)

        spec: Mapping[str, Any] = {}
        stages: set[str] = set()
        if results := self.results():
            with Store.open(self.root, create=False) as store:
                spec, stages = store.sweep(self.name).spec, store.stages_with(LEADING)
        return Material(results, stored_windows(self.root), curves_of, spec)

    def model(
        self, trial: str, *, device: str = "auto", trust_remote_code: bool = False
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model that a trial has published, pruned as it is, in float32 and evaluation mode, and its tokenizer.

        `prunegpt export SWEEP/TRIAL OUT` writes the same to a folder.

        Raises:
            PruneGPTError: there is no such trial, it has not finished, or it brings code that is not trusted here.
        """
        with Store.open(self.root, create=False) as store:
            address = store.result(f"{self.name}/{trial}").address
        from prunegpt.cli.measure import open_model

        state = open_model(address, self.root, device, trust_remote_code=trust_remote_code)
        return state.model.eval(), state.tokenizer

    def __repr__(self) -> str:
        return f"<Sweep {self._described()}>"

    def _described(self) -> str:
        """Its name and what has come of it, in words."""
        states = Counter(result.state for result in self.results())
        counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
        return f"{self.name} in {self.root.path}: {counts or 'nothing has run yet'}"

    def _repr_html_(self) -> str:
        """The states, and a table of all trials."""
        from prunegpt.report.measure import stored_windows
        from prunegpt.report.render.html import fragment
        from prunegpt.report.tables import build_table, usual_table

        head = f"<p>Sweep {escape(self._described())}</p>"
        if not (results := self.results()):
            return head
        windows = stored_windows(self.root) if len(results) <= _MANY else lambda _: None
        return head + str(fragment(build_table(usual_table(self.name, results), results, windows, sweep=self.name)))


def run(
    spec: str | Path | Mapping[str, Any],
    *,
    root: str | Path | None = None,
    overrides: Sequence[str] = (),
    slots: int | None = None,
    launcher: str | None = None,
    only: Only = None,
    priority: int = 0,
    wait: bool = True,
    on_event: Callable[[Event], None] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Runs a sweep to its end and gives it; see `Sweep.run`.

    Raises:
        SpecError: with every problem of the spec, before anything runs.
        LaunchError: another sweep runs in the root and `wait` is off, or no worker can be started.
    """
    sweep = Sweep(spec, root=root, overrides=overrides)
    sweep.run(
        slots=slots, launcher=launcher, only=only, priority=priority, wait=wait, on_event=on_event, progress=progress
    )
    return sweep


def table(
    sweep: str, *, format: str = "md", root: str | Path | None = None, only: str | Sequence[str] = (), **style: Any
) -> str:
    """The tables of a stored sweep, or of a spec file: md, latex, csv, html or json.

    Args:
        only: the names of the tables that are wanted; default all.
        style: decimals, caption, provenance, in place of what the spec says.

    Raises:
        StoreError: there is no such sweep.
        ReportError: there is no such table.
    """
    from prunegpt.report.declared import tables_of

    found = stored(sweep, Root.find(Path(root) if root is not None else None))
    text: str = RENDERERS.load(format)(tables_of(found, (only,) if isinstance(only, str) else only, **style))
    return text


def spec_file(reference: str, root: Root) -> Path | None:
    """The spec file that a reference means; None where it is the name of a stored sweep.

    What ends in .yaml or .yml, or has a folder, is a file.

    Raises:
        StoreError: it is both, or neither.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path
    try:
        with Store.open(root, create=False) as store:
            names = [sweep.name for sweep in store.sweeps()]
    except StoreError as error:
        if path.is_file():
            return path
        raise StoreError(f"{reference!r} is no spec file here, and no stored sweep: {error}") from error
    if path.is_file() and reference in names:
        raise StoreError(f"{reference!r} is a file here and a stored sweep: write ./{reference} for the file.")
    if not path.is_file() and reference not in names:
        raise StoreError(f"{reference!r} is no spec file here, and {unknown('sweep', reference, names)}")
    return None if reference in names else path


def stored(sweep: str, root: Root, overrides: Sequence[str] = ()) -> "Archive":
    """What the store has of a sweep, by its name or its spec.

    A spec's tables are those it declares now, and its trials are there whether they were run or not.
    """
    from prunegpt.report.archive import Archive
    from prunegpt.report.curve_fields import with_curves
    from prunegpt.report.measure import stored_windows
    from prunegpt.report.provenance import spec_commit
    from prunegpt.report.rows import other_sweeps, with_planned
    from prunegpt.report.scores import stored_documents
    from prunegpt.store.curves import Summaries

    path, plan = spec_file(sweep, root), None
    if path is None and overrides:
        raise StoreError(f"overrides change a spec; {sweep} is a stored sweep. Name its spec file instead.")
    if path is not None:
        from prunegpt.planning.resolve import plan_file

        plan = plan_file(path, overrides, root=root, curves=curves_in(root))
    name = plan.name if plan else sweep
    try:
        with Store.open(root, create=False) as store:
            source = store.sweep(name).source
            tables = plan.tables if plan else store.tables(name)
            others = [one.name for one in store.sweeps() if one.name in other_sweeps(tables, name)]
            found = chain.from_iterable(map(store.results, (name, *others)))
            results = tuple(with_curves(found, lambda: Summaries(store, None if others else name), tables))
    except StoreError:
        if path is None or plan is None:
            raise
        return Archive(name, spec_commit(path), plan.tables, with_planned((), plan), lambda _: None)
    commit = spec_commit(Path(source)) if source else None
    results = with_planned(results, plan) if plan else results
    return Archive(name, commit, tables, results, stored_windows(root), stored_documents(root))


def declared(sweep: str, root: Root) -> "Iterator[tuple[FigureSpec, NamedFigure | PruneGPTError]]":
    """The figures that a stored sweep declares, each as far as there is something to draw it from."""
    from prunegpt.report.curve_fields import with_curves
    from prunegpt.report.declared import SpecFigures, figures_in
    from prunegpt.report.measure import stored_windows
    from prunegpt.store.curves import Summaries

    with Store.open(root, create=False) as store:

        def series_of(trial: TrialResult, name: str) -> "Sequence[Series]":
            return store.series(trial.id, lambda _, other: other == name)

        if (spec := store.sweep(sweep).spec).get("figures"):
            results = with_curves(store.results(sweep), lambda: Summaries(store, sweep), figures=figures_in(spec))
            yield from SpecFigures(spec, results, stored_windows(root), series_of)
