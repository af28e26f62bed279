"""Named parts: the built-in ones in the tables below, third-party ones by entry point under the same names.

A package adds a criterion with an entry point in the group `prunegpt.criterion`; its object is then found here like a
built-in one. Nothing is imported before it is asked for, so that names can be checked without torch.
"""

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from prunegpt.errors import UnknownPartError, unknown


class Registry:
    """The parts of one kind.

    Args:
        kind: the word users know the kind by; the entry point group is `prunegpt.KIND`.
        builtin: name -> "module:attribute".
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._builtin = dict(builtin)

    @cached_property
    def _plugins(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name. None takes the name of a built-in part: a spec means the same everywhere."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=f"prunegpt.{self.kind.replace(' ', '_')}"):
            if point.name not in self._builtin:
                found.setdefault(point.name, []).append(point)
        return found

    def names(self) -> list[str]:
        """All names of this kind, built-in ones first."""
        return [*self._builtin, *sorted(self._plugins)]

    def builtin_names(self) -> list[str]:
        """The names that are there without any plug-in."""
        return list(self._builtin)

    def __contains__(self, name: str) -> bool:
        return name in self._builtin or name in self._plugins

    def check(self, name: str) -> None:
        """Raises UnknownPartError, naming the nearest valid name, where `name` is not a part of this kind."""
        if name not in self:
            raise UnknownPartError(unknown(self.kind, name, self.names()))

    def load(self, name: str) -> Any:
        """The part of that name.

        Raises:
            UnknownPartError: no such name, or its plug-in fails to import (the plug-in is named), or two declare it.
        """
        self.check(name)
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return getattr(import_module(module), attribute)
        point, *others = self._plugins[name]
        if others:
            values = ", ".join(sorted(entry.value for entry in (point, *others)))
            raise UnknownPartError(
                f"a {self.kind} must have one origin, but {name!r} has: {values}. Uninstall all but one."
            )
        try:
            return point.load()
        except Exception as error:
            raise UnknownPartError(
                f"a {self.kind} must import, but the plug-in {name!r} ({point.value}) failed: {error!r}. "
                f"Mend or uninstall the package that declares it."
            ) from error


_CRITERIA = "prunegpt.pruning.criteria"
_SOLVERS = "prunegpt.pruning.solvers"

CRITERIA = Registry(
    "criterion",
    {
        "random": f"{_CRITERIA}.random:RANDOM",
        "magnitude": f"{_CRITERIA}.magnitude:MAGNITUDE",
        "wanda": f"{_CRITERIA}.wanda:WANDA",
        "movement": f"{_CRITERIA}.movement:MOVEMENT",
        "taylor": f"{_CRITERIA}.taylor:TAYLOR",
    },
)
SOLVERS = Registry(
    "solver",
    {
        "sparsegpt": f"{_SOLVERS}.sparsegpt:SPARSEGPT",
        "admm": f"{_SOLVERS}.admm:ADMM",
        "obert": f"{_SOLVERS}.obert:OBERT",
    },
)
SCHEDULES = Registry(
    "schedule",
    {
        "constant": "prunegpt.spec.schedules:constant",
        "linear": "prunegpt.spec.schedules:linear",
        "cubic": "prunegpt.spec.schedules:cubic",
        "inverse_cubic": "prunegpt.spec.schedules:inverse_cubic",
        "acdc": "prunegpt.spec.schedules:acdc",
    },
)
_ALLOCATIONS = "prunegpt.pruning.allocation"

ALLOCATIONS = Registry(
    "allocation",
    {
        "uniform": f"{_ALLOCATIONS}.uniform:uniform",
        "row": f"{_ALLOCATIONS}.uniform:uniform",  # the same, selected within each row
        "global": f"{_ALLOCATIONS}.uniform:uniform",  # the same, selected over all tensors at once
        "explicit": f"{_ALLOCATIONS}.explicit:explicit",
        "owl": f"{_ALLOCATIONS}.owl:owl",
        "sensitivity": f"{_ALLOCATIONS}.sensitivity:sensitivity",
    },
)
DISTILLATION_LOSSES = Registry(
    "distillation loss",
    {
        "forward_kl": "prunegpt.distill.losses.forward_kl:FORWARD_KL",
        "reverse_kl": "prunegpt.distill.losses.reverse_kl:REVERSE_KL",
        "jensen_shannon": "prunegpt.distill.losses.jensen_shannon:JENSEN_SHANNON",
        "top_k": "prunegpt.distill.losses.top_k:TOP_K",
    },
)
PROTOCOLS = Registry(
    "protocol",
    {
        "blocks": "prunegpt.lm.protocols:blocks",
        "stream": "prunegpt.lm.protocols:stream",
        "sliding": "prunegpt.lm.protocols:sliding",
    },
)
LAUNCHERS = Registry(
    "launcher",
    {
        "local": "prunegpt.launch.local:LocalLauncher",
        "slurm": "prunegpt.launch.slurm:SlurmLauncher",
        "ray": "prunegpt.launch.ray:RayLauncher",
    },
)
SAMPLERS = Registry(
    "sampler",
    {
        "tpe": "optuna.samplers:TPESampler",
        "gp": "optuna.samplers:GPSampler",
        "nsga2": "optuna.samplers:NSGAIISampler",
        "nsga3": "optuna.samplers:NSGAIIISampler",
        "qmc": "optuna.samplers:QMCSampler",
        "random": "optuna.samplers:RandomSampler",
        "cmaes": "optuna.samplers:CmaEsSampler",
    },
)
EARLY_STOPS = Registry(
    "early stop",
    {
        "median": "optuna.pruners:MedianPruner",
        "percentile": "optuna.pruners:PercentilePruner",
        "successive_halving": "optuna.pruners:SuccessiveHalvingPruner",
        "hyperband": "optuna.pruners:HyperbandPruner",
        "threshold": "optuna.pruners:ThresholdPruner",
        "patient": "optuna.pruners:PatientPruner",
        "wilcoxon": "optuna.pruners:WilcoxonPruner",
        "wandb_hyperband": "prunegpt.sweep.hyperband:WandbHyperband",
    },
)
RENDERERS = Registry(
    "table format",
    {
        "md": "prunegpt.report.render.markdown:render",
        "latex": "prunegpt.report.render.latex:render",
        "csv": "prunegpt.report.render.csv:render",
        "html": "prunegpt.report.render.html:render",
        "json": "prunegpt.report.render.json:render",
    },
)
