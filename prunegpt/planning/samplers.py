"""Optuna's parts by their registered names, made with the options of a spec. Optuna is imported here, at use."""

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunegpt.errors import MissingPackageError, PruneGPTError, listed
from prunegpt.registry import EARLY_STOPS, SAMPLERS, Registry
from prunegpt.spec.search import EarlyStopSpec, SearchSpec

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

_NEEDS = {"cmaes": "cmaes"}  # sampler -> package that Optuna asks for when it is first used
_SEEDS = 2**32
# What we say ourselves where it matters; and a wrapped rule is none by default.
_DEFAULTS: Mapping[str, Any] = {
    "warn_independent_sampling": False,
    "warn_asynchronous_seeding": False,
    "wrapped_pruner": None,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Optuna below errors; restores its settings afterwards."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"optuna\b.*")
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def sampler_of(spec: SearchSpec, study: int = 0) -> "BaseSampler":
    """The sampler of a search.

    Args:
        spec: the search.
        study: counts its studies from 0; a later one draws other numbers, for the first ones were drawn already.

    Raises:
        PruneGPTError: it does not take these options, or not several objectives.
        MissingPackageError: a package that it needs is not installed.
    """
    needed = _NEEDS.get(spec.sampler)
    if needed:
        try:
            __import__(needed)
        except ImportError as error:
            raise MissingPackageError(
                f"sampler {spec.sampler} needs the package {needed}, which is not installed. Run: pip install {needed}"
            ) from error
    if spec.sampler == "cmaes" and len(spec.objectives) > 1:
        raise PruneGPTError(
            f"sampler cmaes takes one objective; there are {len(spec.objectives)}. Use tpe, gp or nsga2."
        )
    made: BaseSampler = _made(SAMPLERS, spec.sampler, spec.sampler_options, {"seed": (spec.seed + study) % _SEEDS})
    return made


def early_stop_of(spec: EarlyStopSpec) -> "BasePruner":
    """The early-stopping rule.

    Raises:
        PruneGPTError: it does not take these options.
    """
    made: BasePruner = _made(EARLY_STOPS, spec.method, spec.options, {})
    return made


def _made(registry: Registry, name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    part = registry.load(name)
    known = inspect.signature(part).parameters
    defaults = {key: value for key, value in {**_DEFAULTS, **given}.items() if key in known}
    with quiet():
        try:
            return part(**{**defaults, **options})
        except (TypeError, ValueError, AssertionError) as error:
            told = re.sub(r"^\w*\.?__init__\(\) ", "", str(error)) or type(error).__name__
            taken = [key for key in known if key not in ("self", "constraints_func")]
            raise PruneGPTError(
                f"{registry.kind} {name} does not take the options {dict(options)}: {told}. Options: {listed(taken)}."
            ) from error
