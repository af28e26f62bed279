"""Named parts: the built-in ones in the tables below, third-party ones by entry point under the same names.

A package adds a criterion with an entry point in the group `prunegpt.criterion`; its object is then found here like a
built-in one. What a plan has to know of a part (its options, what it uses, what it compares) is an :class:`Entry`:
of a built-in part it is in the tables, so that a spec is checked without torch; of a plug-in it is read from its
object, which is loaded for it.
"""

import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt

from prunegpt.errors import UnknownPartError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Scope = Literal["tensor", "row", "global"]

# What a method may ask to be given: activations and gradients on calibration data, or what training shows it.
INPUTS = frozenset({"input_norm", "input_mean", "input_variance", "gram"})
ACTIVATIONS = INPUTS | {"regional_gradient"}  # what a walk through the decoder layers shows
GRADIENTS = frozenset({"gradient", "squared_gradient", "gradients"})
GATHERED = frozenset({"gradient", "movement", "squared_gradient"})  # in training, over its optimizer steps
CRITERION_NEEDS = GATHERED | {"input_norm", "regional_gradient", "generator"}
SOLVER_NEEDS = frozenset({"gram", "gradients"})
ON_ACTIVATIONS = frozenset({"outlier_ratios", "median_scores"})  # of those of an allocation, below
# What an allocation may, each with the options that decide how it comes about.
ALLOCATION_NEEDS: Mapping[str, Mapping[str, Any]] = {
    "sparsities": {},  # pattern -> sparsity, as the spec writes them
    "blocks": {},  # parameter name -> index of its decoder layer
    # block -> share of outliers on calibration data
    "outlier_ratios": {"multiple": Annotated[float, Gt(0), Le(1e6), "The paper uses 5 to 10."]},
    "median_scores": {},  # block -> median of the scores on calibration data
    "curves": {"sweep": str},  # block -> measured losses, of the sweep of that name
}
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Entry:
    """What is known of a part before anything is computed with it.

    Attributes:
        loader: "module:attribute".
        options: the arguments that are the user's to choose: name -> type with its range and a hint.
        needs: what it is given beside its usual arguments, of those that `CRITERION_NEEDS` and its like list.
        scope: what scores are compared over; None where it does not say.
        block_size: tokens of a window where a spec does not say; None: those of its data.
        solver: whether it repairs what it prunes: such a method chooses weights within a tensor, singly or N:M.
        shards: of a mask mode: whether it works on parts of matrices (FSDP2); a plug-in declares `shards = True`.
    """

    loader: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    scope: Scope | None = None
    solver: bool = False
    shards: bool = True
    block_size: int | None = None

    @property
    def valid_options(self) -> Mapping[str, Any]:
        """Its options, and those of what it needs."""
        return {
            **self.options,
            **{name: kind for need in self.needs for name, kind in ALLOCATION_NEEDS.get(need, {}).items()},
        }

    def reads_text(self, *, training: bool) -> bool:
        """Whether it needs calibration data; in training, gradients exist without it."""
        read = (ACTIVATIONS | GRADIENTS | ON_ACTIVATIONS) - (GATHERED if training else frozenset())
        return bool(self.needs & read)

    @property
    def draws(self) -> bool:
        """Whether its result depends on a seed."""
        return "generator" in self.needs

    @property
    def only_in_training(self) -> bool:
        """Whether it uses weight movement."""
        return "movement" in self.needs


class Registry:
    """The parts of one kind.

    Args:
        kind: the word users know the kind by; the entry point group is `prunegpt.KIND`.
        builtin: name -> what is known of it, or "module:attribute" where that is all.
        function: attribute of a part that computes; empty where the part is that function.
        given: its arguments that are neither options nor needs.
        needs: names of arguments that are needs, for parts that do not name them.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, Entry | str],
        *,
        function: str = "",
        given: Container[str] = (),
        needs: Container[str] = (),
    ) -> None:
        self.kind = kind
        self._builtin = {name: Entry(item) if isinstance(item, str) else item for name, item in builtin.items()}
        self._function = function
        self._given = given
        self._needs = needs

    @cached_property
    def _plugins(self) -> "dict[str, list[EntryPoint]]":
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
            module, _, attribute = self._builtin[name].loader.partition(":")
            return getattr(import_module(module), attribute)
        point, *others = self._plugins[name]
        if others:
            values = ", ".join(sorted(entry.value for entry in (point, *others)))
            raise UnknownPartError(
                f"a {self.kind} must have one origin; {name!r} has: {values}. Uninstall all but one."
            )
        try:
            return point.load()
        except Exception as error:
            raise UnknownPartError(
                f"the {self.kind} plug-in {name!r} ({point.value}) cannot be imported: {error!r}. Fix or uninstall the "
                "package that declares it."
            ) from error

    def entry(self, name: str) -> Entry:
        """What is known of the part of that name.

        Raises:
            UnknownPartError: as :meth:`load`, which a plug-in needs.
        """
        known = self._builtin.get(name)
        return known if known is not None else self.read(self.load(name))

    def read(self, part: Any) -> Entry:
        """What a part's object says of itself: its attributes, and the arguments of its function."""
        parameters = _parameters(getattr(part, self._function) if self._function else part)
        needs = getattr(part, "needs", None)
        if needs is None:
            needs = frozenset(name for name in parameters if name in self._needs)
        return Entry(
            loader="",
            options={
                name: annotation
                for name, annotation in parameters.items()
                if name not in needs and name not in self._given
            },
            needs=frozenset(needs),
            scope="row" if getattr(part, "rowwise", False) else None,
            solver=self._function == "solve",
            shards=getattr(part, "shards", False) is True,
        )


def entry_points(*, group: str) -> "Iterable[EntryPoint]":
    """What installed packages declare."""
    from importlib import metadata  # here: the command line starts without it

    return metadata.entry_points(group=group)


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a function that have a name, each with its type: what YAML has one for, else any of those."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, TypeError, SyntaxError):  # an annotation that is imported for type checkers alone
        signature = inspect.signature(function)
    named = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    scalar = bool | int | float | str
    return {name: kind if set(get_args(kind) or (kind,)) <= set(_SCALARS) else scalar for name, kind in named.items()}


_Damping = Annotated[float, Ge(0), Le(1), "It is a share of the mean diagonal; 0.01 is usual."]
_Count = Annotated[int, Ge(1), Le(1_000_000)]
_Steps = Annotated[int, Ge(0), Le(1_000_000)]
_CRITERIA, _SOLVERS = "prunegpt.pruning.criteria", "prunegpt.pruning.solvers"

CRITERIA = Registry(
    "criterion",
    {
        "random": Entry(f"{_CRITERIA}.random:RANDOM", needs=frozenset({"generator"})),
        "magnitude": Entry(f"{_CRITERIA}.magnitude:MAGNITUDE"),
        "wanda": Entry(f"{_CRITERIA}.wanda:WANDA", needs=frozenset({"input_norm"}), scope="row"),
        "wanda++": Entry(
            f"{_CRITERIA}.wandapp:WANDAPP",
            options={"alpha": Annotated[float, Ge(0), Le(1e6), "The paper uses 100; 0 is wanda."]},
            needs=frozenset({"input_norm", "regional_gradient"}),
            scope="row",
        ),
        "movement": Entry(f"{_CRITERIA}.movement:MOVEMENT", needs=frozenset({"movement"})),
        "taylor": Entry(f"{_CRITERIA}.taylor:TAYLOR", needs=frozenset({"squared_gradient"})),
    },
    function="score",
    given=frozenset({"weight"}),
)
SOLVERS = Registry(
    "solver",
    {
        "sparsegpt": Entry(
            f"{_SOLVERS}.sparsegpt:SPARSEGPT",
            options={"damping": _Damping, "block_size": _Count},
            needs=frozenset({"gram"}),
            solver=True,
        ),
        "admm": Entry(
            f"{_SOLVERS}.admm:ADMM",
            options={
                "damping": _Damping,
                "penalty": Annotated[float, Ge(1e-6), Le(1e6), "0.1 is usual."],
                "iterations": _Count,
                "refine_iterations": _Steps,
                "refine_tolerance": Annotated[float, Ge(0), Le(1), "It is a relative residual; 1e-4 is usual."],
            },
            needs=frozenset({"gram"}),
            solver=True,
        ),
        "obert": Entry(
            f"{_SOLVERS}.obert:OBERT",
            options={"damping": _Damping, "fisher_block": _Count},
            needs=frozenset({"gradients"}),
            solver=True,
        ),
    },
    function="solve",
    given=frozenset({"weight", "sparsity", "pattern", "mask", "factor"}) | SOLVER_NEEDS,
)
_REFINING = "prunegpt.pruning.refining"
REFINEMENTS = Registry(
    "refinement",
    {
        "dsnot": Entry(f"{_REFINING}.dsnot:dsnot", options={"cycles": _Count}, needs=INPUTS - {"gram"}),
        "swaps": Entry(f"{_REFINING}.swaps:swaps", options={"max_swaps": _Count}, needs=frozenset({"gram"})),
    },
    given=frozenset({"weight", "mask", "group", "held"}),
    needs=INPUTS,
)
SCHEDULES = Registry(
    "schedule",
    {name: f"prunegpt.spec.schedules:{name}" for name in ("constant", "linear", "cubic", "inverse_cubic", "acdc")},
)
_Share = Annotated[float, Ge(0), Le(1), "It is a share of the way from start to end of pruning; AST has 0.25."]
MASK_MODES = Registry(
    "mask mode",
    {
        "projected": "prunegpt.pruning.enforce:Enforcer",
        "live": Entry(
            "prunegpt.pruning.modes.live:Live",
            options={"decay": Annotated[float, Ge(0), Le(1), "SR-STE has 0.0002."], "ramp": _Share},
        ),
        "rigl": Entry(
            "prunegpt.pruning.modes.rigl:Rigl",
            options={"fraction": Annotated[float, Ge(0), Le(1), "It is a share of the kept weights; 0.3 is usual."]},
            needs=frozenset({"gradient"}),
        ),
        "elsa": Entry(
            "prunegpt.pruning.modes.elsa:Elsa",
            options={"penalty": Annotated[float, Gt(0), Le(10), "The paper has 0.01."], "ramp": _Share},
        ),
    },
    given=frozenset({"views", "masks", "moving"}),
)
_ALLOCATIONS = "prunegpt.pruning.allocation"

ALLOCATIONS = Registry(
    "allocation",
    {
        "uniform": Entry(f"{_ALLOCATIONS}.uniform:uniform", scope="tensor"),
        "row": Entry(f"{_ALLOCATIONS}.uniform:uniform", scope="row"),
        "global": Entry(f"{_ALLOCATIONS}.uniform:uniform", scope="global"),
        "explicit": Entry(f"{_ALLOCATIONS}.explicit:explicit", needs=frozenset({"sparsities"})),
        "owl": Entry(
            f"{_ALLOCATIONS}.owl:owl",
            options={"limit": Annotated[float, Ge(0), Le(1), "The paper uses 0.08."]},
            needs=frozenset({"outlier_ratios", "blocks"}),
        ),
        "dlp": Entry(
            f"{_ALLOCATIONS}.dlp:dlp",
            options={"limit": Annotated[float, Ge(0), Le(1), "The paper uses 0.15."]},
            needs=frozenset({"median_scores", "blocks"}),
        ),
        "arithmetic": Entry(
            f"{_ALLOCATIONS}.arithmetic:arithmetic",
            options={"step": Annotated[float, Gt(-1), Lt(1), "It is added per layer; try 0.002 to 0.01."]},
            needs=frozenset({"blocks"}),
        ),
        "sensitivity": Entry(f"{_ALLOCATIONS}.sensitivity:sensitivity", needs=frozenset({"curves", "blocks"})),
    },
    given=frozenset({"sizes", "sparsity"}),
    needs=ALLOCATION_NEEDS,
)
# explicit is written as a mapping, and not named
NAMED_ALLOCATIONS = tuple(name for name in ALLOCATIONS.builtin_names() if name != "explicit")
DISTILLATION_LOSSES = Registry(
    "distillation loss",
    {
        "forward_kl": "prunegpt.distill.losses.forward_kl:FORWARD_KL",
        "reverse_kl": "prunegpt.distill.losses.reverse_kl:REVERSE_KL",
        "jensen_shannon": Entry(
            "prunegpt.distill.losses.jensen_shannon:JENSEN_SHANNON",
            options={
                "weight": Annotated[
                    float, Gt(0), Lt(1), "Towards 0 it is like forward_kl, towards 1 like reverse_kl: use those."
                ]
            },
        ),
        "top_k": Entry(
            "prunegpt.distill.losses.top_k:TOP_K",
            options={
                "k": Annotated[int, Ge(1), Le(1_000_000), "It counts the teacher's tokens that are kept; try 64."]
            },
        ),
    },
    function="divergence",
    given=frozenset({"student_logits", "teacher_logits", "temperature"}),
)
LAYER_CHOICES = Registry(
    "layer choice",
    {
        "influence": "prunegpt.shrinking.depth:influence",
        "perplexity": "prunegpt.shrinking.depth:perplexity",
        "taylor": "prunegpt.shrinking.depth:taylor",
    },
)
IMPORTANCES = Registry(
    "importance",
    {
        "activation": "prunegpt.shrinking.width:activation_importance",
        "taylor": "prunegpt.shrinking.width:taylor_importance",
    },
)
EXPERT_CHOICES = Registry(
    "expert choice",
    {"reap": "prunegpt.shrinking.experts:reap", "frequency": "prunegpt.shrinking.experts:frequency"},
)
PROTOCOLS = Registry(
    "protocol",
    {
        "blocks": "prunegpt.lm.protocols:blocks",
        "stream": "prunegpt.lm.protocols:stream",
        "sliding": "prunegpt.lm.protocols:sliding",
        "ptb-sparsegpt": "prunegpt.lm.protocols:ptb_sparsegpt",
        "c4-sparsegpt": "prunegpt.lm.protocols:c4_sparsegpt",
        "llm-pruner": Entry("prunegpt.lm.protocols:stream", block_size=128),
    },
)
CALIBRATION_MODES = Registry(
    "calibration mode",
    {
        name: f"prunegpt.lm.calibration:{name}_windows"
        for name in ("random", "first", "shuffled", "document", "joined", "distinct")
    },
)
LAUNCHERS = Registry(
    "launcher",
    {
        "local": "prunegpt.launch.choose:local",
        "slurm": "prunegpt.launch.choose:slurm",
        "ray": "prunegpt.launch.choose:ray",
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
EXPORT_FORMATS = Registry(
    "export format",
    {
        "folder": "prunegpt.exporting.folder:FOLDER",
        "gguf": "prunegpt.exporting.gguf:GGUF",
        "packed": "prunegpt.exporting.packed:PACKED_FOLDER",
    },
)
