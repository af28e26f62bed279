"""A sweep from the spec that its root keeps: planned again where it was run, and refused where it would differ."""

from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path

from prunegpt.errors import SpecError, StoreError, untrusted
from prunegpt.planning.resolve import Planner
from prunegpt.records import TrialResult
from prunegpt.root import Root
from prunegpt.spec.code import CodePart
from prunegpt.store import Store
from prunegpt.store.rows import SweepRow
from prunegpt.sweep.curves import curves_in
from prunegpt.sweep.states import SETTLED


@contextmanager
def reopened(name: str, root: Root, *, trust_remote_code: bool = False) -> Iterator[Planner]:
    """The planner of a stored sweep, and while the block lasts the folder that it was run in.

    Raises:
        StoreError: it was not run itself, or its folder is gone and something that it reads would differ.
        SpecError: with every problem of its spec.
        PruneGPTError: it trusts code, and nobody does here.
    """
    with Store.open(root, create=False) as store:
        known, before = store.sweep(name), store.results(name)
    if not known.spec:
        raise StoreError(
            f"a sweep must have been run before it is resumed; {name} only has trials that taught those of others. Run "
            "its spec with `prunegpt sweep run`."
        )
    same_place = Path(known.folder).is_absolute() and Path(known.folder).is_dir()
    with chdir(known.folder) if same_place else nullcontext():  # where relative paths of the spec begin
        path = Path(known.source) if known.source else None
        planner = Planner(known.spec, root=root, curves=curves_in(root), strict=True, path=path)
        try:
            plan = planner.plan
        except SpecError as error:
            if same_place:
                raise
            raise StoreError(f"{error}\n{_elsewhere(known)}") from error
        trusted = sorted({source for trial in plan.trials for source in trial.trusts})
        if not trust_remote_code and (trusted or trusting(known.spec)):
            raise untrusted(f"the spec of {name} that is stored in {root.path}", trusted or ["its searches"])
        comparable = [one for one in before if known.folder or one.plan.inputs]
        if not same_place and (changed := _changed(planner, comparable)):
            raise StoreError(
                f"a sweep is resumed with what it was run with; {changed} would now compute something else. "
                f"{_elsewhere(known)}"
            )
        yield planner


def has_ended(name: str, root: Root) -> bool:
    """Whether no trial of a stored sweep is left to run, nor one that a search might still suggest.

    Raises:
        StoreError: there is no such sweep.
    """
    with Store.open(root, create=False) as store:
        spec, results = store.sweep(name).spec, store.results(name)
    searches = any("search" in trial for trial in spec.get("trials", ()))
    return bool(spec and results) and not searches and all(result.state in SETTLED for result in results)


def _elsewhere(sweep: SweepRow) -> str:
    """The hint where the folder that a sweep was run in is gone or not known."""
    ran = f"it was run in {sweep.folder}, which is gone" if sweep.folder else "the folder it was run in is not known"
    return (
        f"Relative paths of {sweep.name} may lead elsewhere from here: {ran}. "
        f"Run `prunegpt sweep run {sweep.source or 'SPEC'}` from the folder where its files are now."
    )


def _changed(planner: Planner, before: list[TrialResult]) -> str:
    """The first trial of a stored sweep whose keys, or of a search whose files, are planned otherwise now; or none."""
    plan = planner.plan
    planned = {trial.name: trial for trial in plan.trials if trial.sweep == plan.name}
    for result in before:
        now = planned.get(result.name)
        if now and (now.key, now.measured_by) != (result.plan.key, result.plan.measured_by):
            return result.name
    for search in plan.searches:
        files = {digest for chain in planner.searched.get(search.index, ()) for digest in chain.trial.inputs.values()}
        ran = [result for result in before if result.plan.search == search.name]
        if any(not files.issuperset(result.plan.inputs.values()) for result in ran):
            return search.name
    return ""


def trusting(node: object, key: str = "") -> bool:
    """Whether a spec says trust_remote_code or names a file of code, in searches and what is varied too."""
    if CodePart.of(node):
        return True
    if key.rpartition(".")[2] == "trust_remote_code":
        return node is not False
    if isinstance(node, dict):
        return any(trusting(value, name) for name, value in node.items())
    return isinstance(node, list) and any(trusting(value) for value in node)
