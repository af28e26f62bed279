"""Agents of a sweep on this machine, and what the run of one means: its arguments name one trial of a spec."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from prunegpt.errors import Problem, SpecError, StoreError, listed, nearest
from prunegpt.launch.local import cuda_devices, slot_environment
from prunegpt.planning.resolve import Planner
from prunegpt.records import leaves
from prunegpt.root import Root, read_json, write_json
from prunegpt.signals import on_stop_signals
from prunegpt.spec.plan import SearchPlan, TrialPlan
from prunegpt.spec.read import bounded_value
from prunegpt.spec.search import Dimension
from prunegpt.spec.space import chosen_of
from prunegpt.spec.wandb import TRIAL
from prunegpt.spec.wandb_config import SEED
from prunegpt.spec.wandb_parameters import canonical
from prunegpt.store import Store

PARAMETERS = "WANDB_SWEEP_PARAM_PATH"  # names the file in which an agent hands over a run's arguments
_PATIENT = {
    "WANDB_AGENT_DISABLE_FLAPPING": "true",  # three failures in a minute are no reason to stop
    "WANDB_AGENT_MAX_INITIAL_FAILURES": "1000000",
    "WANDB_ERROR_REPORTING": "false",
}


def run_agents(
    sweep: str, *, slots: int | None = None, count: int | None = None, say: Callable[[str], None] = print
) -> int:
    """Runs `wandb agent SWEEP` once a slot until all have ended; gives the largest of their exit codes.

    Args:
        sweep: ENTITY/PROJECT/ID.
        slots: agents; default one per GPU.
        count: runs of each agent.
    """
    devices = cuda_devices()
    wanted = slots or max(len(devices), 1)
    command = [sys.executable, "-P", "-m", "wandb", "agent", *(["--count", str(count)] if count else []), sweep]
    agents = [subprocess.Popen(command, env=agent_environment(index, wanted, devices)) for index in range(wanted)]
    say(f"{wanted} agents of {sweep} run; Ctrl-C lets their trials end, and a second one stops them.")

    def pass_on(_: int) -> None:
        for agent in agents:  # which pass it on to their runs
            agent.terminate()

    with on_stop_signals(pass_on):
        codes = [_wait(agent) for agent in agents]
    return max((code if code >= 0 else 128 - code for code in codes), default=0)


def agent_environment(index: int, slots: int, devices: list[str]) -> Mapping[str, str]:
    """The environment of one agent: the user's own, its share of the machine, and patience."""
    environment = {**_PATIENT, **slot_environment(index, slots, devices)}
    binaries = str(Path(sys.executable).parent)  # agents start `python`, which should be this one
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
    return environment


def _wait(agent: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            return agent.wait()
        except KeyboardInterrupt:
            continue  # the terminal has signalled the agents as well


def read_arguments(path: Path) -> dict[str, Any]:
    """A run's arguments, from the JSON of `${args_json_file}` or the YAML that WANDB_SWEEP_PARAM_PATH names.

    Raises:
        SpecError: the file cannot be read, or holds no arguments.
    """
    try:
        found = bounded_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(f"an agent's arguments must be a readable JSON or YAML file; {path}: {error}.") from error
    if not isinstance(found, dict):
        raise _refused(f"an agent's arguments must be a mapping; {path} holds none.")
    if "wandb_version" in found:
        return {name: item["value"] for name, item in found.items() if isinstance(item, dict) and "value" in item}
    return found


def trial_of(planner: Planner, arguments: Mapping[str, Any], root: Root) -> TrialPlan:
    """The trial of a spec that a run's arguments mean: one of its plan, or one that a search could suggest.

    Raises:
        SpecError: there is none.
    """
    plan = planner.plan
    own = [trial for trial in plan.trials if trial.sweep == plan.name and not trial.implicit]
    if TRIAL in arguments:
        names = listed(nearest(str(arguments[TRIAL]), (trial.name for trial in own)), 8)
        own = [trial for trial in own if arguments[TRIAL] in (trial.name, trial.group)]
        if not own:
            raise _refused(
                f"the parameter trial must name one of the spec's, got {arguments[TRIAL]!r}. Nearest: {names}."
            )
    spaces = [search.spec.space for search in plan.searches]
    known = {path for trial in own for path in trial.swept}.union(*spaces, {TRIAL, SEED})
    values = dict(leaves(arguments, whole=known))
    values.pop(TRIAL, None)
    for search in plan.searches:
        searched = {path: value for path, value in values.items() if path in search.spec.space}
        if searched:
            return _suggested(planner, search, searched, root)
    found = [trial for trial in own if _means(trial, values, named=trial.name == arguments.get(TRIAL))]
    if len(found) == 1:
        return found[0]
    wanted = ", ".join(f"{path}={value}" for path, value in values.items())
    raise _refused(
        f"a run's arguments must mean one trial; {wanted or 'no argument'} means {len(found)} of the {len(own)} of "
        f"{plan.name}. Vary what the spec varies, or name one as the parameter `trial`."
    )


def _means(trial: TrialPlan, values: Mapping[str, Any], *, named: bool) -> bool:
    """Whether no value contradicts a trial, and all that it varies is given: one by one, or by its full name."""
    told = {**trial.swept, **({} if SEED in trial.swept else {SEED: trial.seed})}
    return all(canonical(told[path]) == canonical(value) for path, value in values.items() if path in told) and all(
        named or path in values for path in trial.swept
    )


def _suggested(planner: Planner, search: SearchPlan, values: Mapping[str, Any], root: Root) -> TrialPlan:
    space = search.spec.space
    typed = {path: _typed(space[path], value) for path, value in values.items()}
    try:
        chosen = chosen_of(space, typed)
    except ValueError as error:
        raise _refused(str(error)) from error
    return planner.suggested(search, typed, number_of(root, planner.plan.name, search.name, chosen))


def _typed(dimension: Dimension, value: Any) -> Any:
    """A number as the range has it: W&B turns 1.0 into 1."""
    whole = dimension.is_integer or isinstance(dimension.quantum, int)
    if dimension.values is None and not whole and type(value) is int:
        return float(value)
    if whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def number_of(root: Root, sweep: str, search: str, chosen: Mapping[str, Any]) -> int:
    """The number of a suggestion: the same for the same values, whatever agent asks; a new one for new values.

    Numbers that `sweep run` has given in that search are left free.
    """
    file = root.path / "wandb" / "numbers" / f"{sweep}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        known: dict[str, dict[str, int]] = read_json(file) if file.exists() else {}
        numbers = known.setdefault(search, {})
        key = canonical(dict(chosen))
        if key not in numbers:
            given = []
            with suppress(StoreError), Store.open(root, create=False) as store:
                plans = [result.plan for result in store.results(sweep, shown=None)]
                given = [plan.number for plan in plans if plan.search == search]
            numbers[key] = max([*numbers.values(), *given], default=0) + 1
            write_json(file, known)
        return numbers[key]


def _refused(message: str) -> SpecError:
    return SpecError([Problem("", message)], "the run's arguments")
