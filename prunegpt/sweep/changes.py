"""Why a finished trial is to be computed or measured again: what has changed since, in words."""

from collections.abc import Iterable, Mapping

from prunegpt.errors import listed
from prunegpt.planning.fingerprint import versions
from prunegpt.records import TrialResult
from prunegpt.spec.plan import TrialPlan
from prunegpt.store import Store

_LISTED = 4


def reasons(store: Store, name: str, outdated: Iterable[str], planned: Mapping[str, TrialPlan]) -> tuple[str, ...]:
    """What has changed of any of these trials, each once.

    Args:
        name: the sweep, as stored.
        outdated: its finished trials whose keys are planned otherwise now.
        planned: the trials as they are planned now, by name.
    """
    results = {result.name: result for result in store.results(name, shown=None)} if outdated else {}
    return tuple(dict.fromkeys(reason for trial in outdated for reason in changes(results[trial], planned[trial])))


def changes(before: TrialResult, now: TrialPlan) -> list[str]:
    """What decides a trial and is not as it was when it ran."""
    computed = {package: version for stage in before.stages for package, version in stage.versions.items()}
    found = [
        f"{package} {computed[package]} is now {version}"
        for package, version in versions().items()
        if computed.get(package, version) != version
    ]
    was, plan = before.plan.inputs, before.plan
    found += [f"{path} has changed" for path in sorted(was.keys() & now.inputs) if was[path] != now.inputs[path]]
    if was and (other := sorted(now.inputs.keys() - was)):
        found.append(f"other files are read: {listed(other, _LISTED)}")
    fields = {key: (plan.config.get(key), now.config.get(key)) for key in {*plan.config, *now.config}}
    if differs := sorted(key for key, (old, new) in fields.items() if old != new):
        found.append(f"the spec has another {listed(differs)}")
    decided = (("seed", plan.seed, now.seed), ("precision", plan.precision, now.precision))
    found += [f"{name} {old} is now {new}" for name, old, new in decided if old != new]
    return found or ["a teacher, a hub model or dataset, or PruneGPT's stage format has changed"]
