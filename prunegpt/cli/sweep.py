"""prunegpt sweep: check and run; the rest is in `status`, `control` and `watch`."""

from contextlib import suppress
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.control import LauncherOption, OnlyOption, PriorityOption, SlotsOption, WaitOption, execute
from prunegpt.cli.options import ROOT, JsonOption, SetOption, goes_with, number, print_json, say, sweep_app
from prunegpt.errors import counted
from prunegpt.memory import without_collector
from prunegpt.root import Root
from prunegpt.spec.only import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prunegpt.errors import Problem
    from prunegpt.spec.outline import Coverage
    from prunegpt.spec.plan import TrialPlan
    from prunegpt.spec.search import SearchSpec

SpecArgument = Annotated[Path, typer.Argument(help="A sweep spec (YAML).", show_default=False)]


@sweep_app.command(epilog="Example: prunegpt sweep check study.yaml")
@without_collector()
def check(
    spec: SpecArgument,
    root: Root = ROOT,
    overrides: SetOption = None,
    only: OnlyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a spec and estimate its cost.

    Lists every problem with its line, else the trials, shared and cached stages, and tokens.

    Works offline; checks that need the hub are listed as "not checked".
    """
    from prunegpt.cli.costs import disk_needs, lost_zeros, text_columns
    from prunegpt.cli.tables import print_table
    from prunegpt.errors import SpecError, StoreError
    from prunegpt.planning.outlines import coverage_of, unbuilt
    from prunegpt.planning.resolve import Planner
    from prunegpt.planning.room import room_notes
    from prunegpt.running import chosen, searched
    from prunegpt.stages.counting import Counting
    from prunegpt.store import Store
    from prunegpt.sweep.curves import curves_in

    planner, counting = Planner(spec, overrides or [], root, curves_in(root)), Counting(root)

    def told(wrong: "list[tuple[TrialPlan, str, str]]", before: "Sequence[Problem]" = ()) -> SpecError:
        problems = [*before, *planner.problems(wrong)]
        return SpecError(sorted(problems, key=lambda problem: problem.line or 0), str(spec))

    try:
        plan = planner.plan
    except SpecError as error:  # the trials that are sound so far are counted too: all problems are reported in one run
        sound = [found.trial for found in planner.chains.values() if found]
        raise told(counting.problems(sound), error.problems) from error
    trials = chosen(plan, only)
    report = counting.costs(trials)
    examples = searched(planner, only)
    if wrong := counting.wrong(trials, examples.values()):
        raise told(wrong)
    unchecked = [*plan.unchecked, *report.unchecked]
    known = [(found.trial, found.facts) for found in planner.chains.values() if found]
    coverages = {trial.name: covered for trial, facts in known if (covered := coverage_of(trial, facts))}
    unchecked += dict.fromkeys(text for _, facts in known if (text := unbuilt(facts)))
    done = cache(root.is_published)
    disk = disk_needs(known, root, plan.keep, done)
    suggested = [chain.trial for found in planner.searched.values() for chain in found]
    asked = {trial.name for trial in trials}
    notes = [
        *lost_zeros(trials),
        *text_columns([*trials, *suggested]),
        *counting.own_texts(trials),
        *_uncovered(trials, coverages),
        *room_notes(
            [
                *(found for found in planner.chains.values() if found and found.trial.name in asked),
                *(one for search in plan.searches if search.name in examples for one in planner.searched[search.index]),
            ],
            plan.launcher,
            done,
        ),
    ]
    replaced = None
    with suppress(StoreError), Store.open(root, create=False) as store:  # a run says what is wrong with it
        replaced = store.replaced(plan)
    searches = {search.name: search.spec for search in plan.searches if search.name in examples}
    per_trial = {name: counting.per_trial(examples[name]) for name in searches}
    if plan.early_stop and (watched := counting.watched([*trials, *chain.from_iterable(examples.values())])):
        notes.append(f"early_stop: stages that train are evaluated up to {watched} times while they train")
        if plan.early_stop.method != "threshold" and any(len(search.objectives) > 1 for search in searches.values()):
            notes.append(
                f"early_stop: {plan.early_stop.method} compares {plan.early_stop.metric} alone, so trials that are "
                "better in the other objectives are stopped too; `threshold` stops only what is beyond its bound"
            )
    if as_json:
        print_json(
            {
                "name": plan.name,
                "trials": [_trial_json(trial, root, coverages.get(trial.name)) for trial in trials],
                **{name: value for name, value in vars(report).items() if name != "unchecked"},
                "searches": [
                    {
                        "name": name,
                        "trials": search.n_trials,
                        "sampler": search.sampler,
                        "space": {path: found.described for path, found in search.space.items()},
                        "train_tokens_per_trial": per_trial[name],
                    }
                    for name, search in searches.items()
                ],
                "disk": asdict(disk),
                "unchecked": unchecked,
                "notes": notes,
                "not_in_the_spec": list(replaced.trials) if replaced else [],
            }
        )
        return
    if trials:
        print_table(
            ["trial", "model", "stages", "covers", "waits for"],
            (
                [
                    trial.name,
                    trial.label,
                    _chain(trial, done),
                    f"{coverages[trial.name].share:.1%}" if trial.name in coverages else "",
                    ", ".join(trial.teachers.values()),
                ]
                for trial in trials
            ),
            title=f"{plan.title}: {counted(len(trials), 'trial')}",
            spare=("model", "covers"),
        )
        print(f"{counted(report.stages, 'stage')}, {report.shared} shared by several trials, ", end="")
        print(f"{report.cached} already cached (✓).")
        print(f"Tokens to train: {number(report.train_tokens_remaining)} of {number(report.train_tokens)}; ", end="")
        print(f"without sharing it would be {number(report.train_tokens_without_sharing)}.")
        print(f"Tokens to evaluate: about {number(report.evaluation_tokens)}.")
        print(f"Disk: {disk}")
    for name, search in searches.items():
        _print_search(name, search, per_trial[name], counting.shared(examples[name]))
    for text in unchecked:
        print(f"not checked: {text}")
    for text in notes:
        print(f"note: {text}")
    if replaced:
        print(f"note: {replaced}")


def _print_search(name: str, search: "SearchSpec", tokens: tuple[int, int] | None, shared: int) -> None:
    count, (low, high) = search.n_trials, [each - shared for each in tokens] if tokens else (None, None)
    wanted = ", ".join(f"{objective.wanted} {objective.metric}" for objective in search.objectives)
    many = "trials until its time or tokens are used" if count is None else counted(count, "trial")
    print(f"search {name}: {many} by {search.sampler}, to {wanted}" + "".join(f", {one}" for one in search.constraints))
    for path, dimension in search.space.items():
        print(f"  {path}: {dimension.described}")
    each = number(low) if low == high else f"{number(low)} to {number(high)}"
    print(f"  each of {each} tokens to train{f', and {number(shared)} that all share' if shared else ''}", end="")
    print("." if count is None or high is None else f"; at most about {number(count * high + shared)} in all.")


def _chain(trial: "TrialPlan", done: "Callable[[str], bool]") -> str:
    return " → ".join(f"{stage.kind}{'✓' if done(stage.key) else ''}" for stage in trial.stages)


def _uncovered(trials: "Sequence[TrialPlan]", coverages: "Mapping[str, Coverage]") -> list[str]:
    """What trials that name no tensors leave dense, each text with the trials that it is true of."""
    found: dict[str, list[str]] = {}
    for trial in trials:
        asked = any(stage.pruning.names_tensors for stage in trial.stages if stage.pruning)
        if trial.name in coverages and not asked and (note := coverages[trial.name].note):
            found.setdefault(note, []).append(trial.name)
    more = {note: f" and {len(names) - 1} more" if len(names) > 1 else "" for note, names in found.items()}
    return [f"{names[0]}{more[note]}: {note}" for note, names in found.items()]


def _trial_json(trial: "TrialPlan", root: Root, coverage: "Coverage | None") -> dict[str, Any]:
    return {
        "name": trial.name,
        "sweep": trial.sweep,
        "model": trial.model.source,
        "stages": [
            {"key": stage.key, "kind": stage.kind, "cached": root.is_published(stage.key)} for stage in trial.stages
        ],
        "needs": list(trial.needs),
        "coverage": coverage.share if coverage else None,
        "outside": dict(coverage.outside) if coverage else {},
    }


@sweep_app.command(epilog="Example: prunegpt sweep run study.yaml --only 'pruned*'")
def run(
    spec: SpecArgument,
    root: Root = ROOT,
    overrides: SetOption = None,
    only: OnlyOption = None,
    launcher: LauncherOption = None,
    slots: SlotsOption = None,
    priority: PriorityOption = 0,
    wait: WaitOption = True,
) -> None:
    """Run a sweep: every trial that is not finished yet.

    Then prints its tables. While another sweep of the root runs it waits in a queue, which `sweep status` shows.

    Ctrl-C, SIGTERM and SIGHUP let running stages write a checkpoint; a second Ctrl-C, a second or more after the
    first, stops at once. Run it again to resume.
    """
    from prunegpt.planning.resolve import Planner
    from prunegpt.sweep.coordinator import matching
    from prunegpt.sweep.curves import curves_in

    planner = Planner(spec, overrides or [], root, curves_in(root), strict=True)
    matching(planner.plan, only)  # a glob that matches nothing is an error before anything runs
    execute(planner, root, RunOptions(only, launcher, slots, priority, wait))


@sweep_app.command(epilog="Example: prunegpt sweep fields quickstart")
def fields(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A sweep that ran (default: spec fields).", show_default=False, autocompletion=complete.sweeps
        ),
    ] = None,
    update: Annotated[Path | None, typer.Option(help="Write the reference to this file instead.")] = None,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Print the fields of specs, or of a sweep's trials.

    Those of specs as Markdown. Those of trials are what --where, --columns, --sort and --group-by of `sweep status`
    take.
    """
    from prunegpt.root import write_text
    from prunegpt.spec.reference import reference

    if name is not None:
        goes_with("the fields of specs", update=update)
        _print_trial_fields(name, root, as_json)
        return
    goes_with("the name of a sweep", json=as_json)
    if update is None:
        print(reference(), end="")
        return
    write_text(update, reference())
    say(f"{update}: written")


def _print_trial_fields(name: str, root: Root, as_json: bool) -> None:
    from prunegpt.cli.tables import print_table
    from prunegpt.report.fields import TrialFields
    from prunegpt.store import Store
    from prunegpt.store.curves import Summaries

    with Store.open(root, create=False) as store:
        curves = Summaries(store, name)
        fields = TrialFields(store.results(name), notes=store.notes(), curves=lambda: curves)
        keys = ("name", "kind", "about")
        rows = [(one.name if fields.find(one.name) == one else one.key, one.kind, one.about) for one in fields]
    if as_json:
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table(["field", "values", "meaning"], map(list, rows))
