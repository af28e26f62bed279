"""Both dialects of SparseML as a list of modifiers.

Legacy (0.x to 1.x): lists of `!Modifier` objects, variables, and `eval(...)` as whole values. Session (1.6 and later,
and llm-compressor): stages of `*_modifiers`, no tags, and `eval(...)` anywhere in a text.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunegpt.errors import Problem, nearest
from prunegpt.recipes.expressions import computed, resolve_variables, substitute, whole_value
from prunegpt.recipes.source import Map, RecipeError, line_of, tag_of, tags
from prunegpt.spec.arithmetic import ExpressionError

Dialect = Literal["legacy", "session", "own"]
RunMode = Literal["train", "oneshot"]

SECTIONS = ("train", "prune", "distill", "learning_rate")  # of our own dialect

_NO_VARIABLES = {
    "legacy": {"version", "__metadata__", "recipe_type", "log_types"},
    "session": {"run_type", "args", "enabled", "exclude_default", "group", "index"},
}
_COMPUTE: Mapping[str, Callable[[str, Mapping[str, Any]], Any]] = {"legacy": whole_value, "session": substitute}


@dataclass(frozen=True)
class Modifier:
    """One modifier, its expressions computed.

    Attributes:
        name: `GMPruningModifier`, without a framework before it.
        fields: name -> plain value.
        line: of the modifier in the file, counted from 1.
        group: the list that contains it: `modifiers`, `pruning_modifiers`.
        stage: empty where the recipe has no stages.
        lines: name of a field -> its line.
    """

    name: str
    fields: Mapping[str, Any]
    line: int
    group: str
    stage: str
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeStage:
    """A stage as it was written: its name, empty where there is none; its line; whether it trains, if specified."""

    name: str
    line: int
    run: RunMode | None
    modifiers: list[Modifier] = field(default_factory=list)


def dialect_of(data: Any, source: str) -> Dialect:
    """The dialect of a recipe: tags mean legacy, stages or modifiers without tags session, our sections own.

    Raises:
        RecipeError: none of them.
    """
    if next(tags(data), None) is not None:
        return "legacy"
    if isinstance(data, list) and data and all(isinstance(item, Map) for item in data):
        return "session"
    if not isinstance(data, Map):
        message = "a recipe must be a mapping or a list of modifiers; it is neither."
        raise RecipeError([Problem("", message, line_of(data, 1))], source)
    if any(name == "stages" or name.endswith("_stage") for name in data):
        return "session"
    lists = [value for name, value in data.items() if _is_group(name)]
    if lists:
        return "session" if any(isinstance(value, Map) or value for value in lists) else "legacy"
    if data.keys() & set(SECTIONS):
        return "own"
    close = nearest(next(iter(data)), SECTIONS)[:1] if data else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    message = (
        f"a recipe must hold {', '.join(SECTIONS)}, or the modifiers of SparseML; it holds "
        f"{', '.join(sorted(data)[:8]) or 'nothing'}.{hint}"
    )
    raise RecipeError([Problem("", message, data.line)], source)


def parse_recipe(data: Any, source: str, dialect: Dialect) -> tuple[list[RecipeStage], dict[str, Any]]:
    """The stages of a SparseML recipe with their modifiers, at least one, and the recipe's variables.

    A variable of a stage has the stage's name and a dot before its own; expressions are computed.

    Args:
        data: as :func:`prunegpt.recipes.source.parse` gives it.
        source: names the recipe in errors.
        dialect: `legacy` or `session`.

    Raises:
        RecipeError: modifiers elsewhere or have no name, a run type that is none, or an expression without
            a value; all of them.
    """
    reader = _Reader(dialect)
    reader.recipe(data)
    if reader.problems:
        raise RecipeError(reader.problems, source)
    run: RunMode | None = "train" if dialect == "legacy" else None
    return reader.stages or [RecipeStage("", line_of(data, 1), run)], reader.values


def _is_group(name: str) -> bool:
    return "modifiers" in name


class _Reader:
    """Collects stages, modifiers, variables and problems."""

    def __init__(self, dialect: Dialect) -> None:
        self.problems: list[Problem] = []
        self.stages: list[RecipeStage] = []
        self.values: dict[str, Any] = {}
        self._legacy = dialect == "legacy"
        self._no_variables, self._compute = _NO_VARIABLES[dialect], _COMPUTE[dialect]

    def recipe(self, data: Any) -> None:
        if not isinstance(data, Map) or data.tag is not None:  # a bare list, or one object alone
            bare = isinstance(data, list) and tag_of(data) is None
            self.stages.append(RecipeStage("", line_of(data, 1), "train" if self._legacy else None))
            self._group("modifiers", line_of(data, 1), data if bare else [data], {}, "")
            return
        stages = list(self._stages(data))
        shared = self._variables(data, {}, "", {name for name, _, _ in stages})
        if any(_is_group(name) for name in data):
            self._stage("", data.line, data, shared)
        for name, line, table in stages:
            self._stage(name, line, table, {**shared, **self._variables(table, shared, name, set())})

    def _stages(self, data: Map) -> Iterator[tuple[str, int, Map]]:
        for name, value in data.items():
            line = data.lines[name]
            if self._legacy:
                if isinstance(value, Map) and any(map(_is_group, value)):
                    yield name, line, value
                elif isinstance(value, list) and not _is_group(name):
                    self._objects_elsewhere(name, value, line)
            elif name.endswith("_stage"):
                yield from self._listed(name, line, value)
            elif name == "stages" and isinstance(value, Map):
                for inner, stage in value.items():
                    yield from self._listed(inner, value.lines[inner], stage)
            elif isinstance(value, Map) and not _is_group(name) and name not in {"args", "metadata"}:
                message = f"a mapping must be a stage (NAME_stage) or modifiers (NAME_modifiers); {name} is neither."
                self.problems.append(Problem(name, message, line))

    def _listed(self, name: str, line: int, value: Any) -> Iterator[tuple[str, int, Map]]:
        """A stage of the session dialect, or a list of stages of one name."""
        name = name.removesuffix("_stage")
        for part in value if isinstance(value, list) else (value,):
            if isinstance(part, Map):
                yield name, line, part
            else:
                self.problems.append(Problem(name, "a stage must be a mapping with *_modifiers; it is none.", line))

    def _objects_elsewhere(self, name: str, value: list[Any], line: int) -> None:
        for item in value:
            if (tag := tag_of(item)) is not None:
                message = (
                    f"modifiers must be in a list whose name contains `modifiers`; !{tag} is in {name}. Rename the "
                    f"list, such as {name}_modifiers."
                )
                self.problems.append(Problem(name, message, line_of(item, line)))

    def _variables(self, table: Map, shared: Mapping[str, Any], stage: str, stages: set[str]) -> dict[str, Any]:
        """The variables of a table, and under `args`; they may use those of the whole recipe."""
        raw = {
            name: value
            for name, value in table.items()
            if not _is_group(name)
            and name not in self._no_variables | stages
            and (self._legacy or not isinstance(value, Map))
        }
        under = table.get("args")
        if isinstance(under, Map) and not self._legacy:
            raw |= under
        try:
            resolved = resolve_variables(raw, self._compute, shared)
        except ExpressionError as error:
            self.problems.append(Problem(stage, str(error), table.line))
            return raw
        self.values.update({f"{stage}.{name}" if stage else name: value for name, value in resolved.items()})
        return resolved

    def _stage(self, name: str, line: int, table: Map, variables: Mapping[str, Any]) -> None:
        self.stages.append(RecipeStage(name, line, "train" if self._legacy else self._run(name, table)))
        for group, value in table.items():
            if _is_group(group) and not (self._legacy and any(map(_is_group, value if isinstance(value, Map) else ()))):
                self._group(group, table.lines[group], value, variables, name)

    def _run(self, name: str, table: Map) -> RunMode | None:
        value = table.get("run_type")
        if value == "train":
            return "train"
        if value == "oneshot":
            return "oneshot"
        if value is not None:
            message = f"run_type must be train or oneshot, got {value!r}."
            self.problems.append(Problem(f"{name}.run_type" if name else "run_type", message, table.lines["run_type"]))
        if "oneshot" in name:
            return "oneshot"
        return "train" if "train" in name else None

    def _group(self, group: str, line: int, value: Any, variables: Mapping[str, Any], stage: str) -> None:
        """All modifiers of one list; in the session dialect also of one mapping."""
        where = f"{stage}.{group}" if stage else group
        if self._legacy and value is not None and (not isinstance(value, list) or tag_of(value)):
            message = f"{group} must be a list of modifiers, each as `- !Modifier`; it is no list."
            self.problems.append(Problem(group, message, line))
            return
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            at = line_of(item, line)
            if self._legacy and tag_of(item) is None:
                message = "an item of a list of modifiers must have a tag, such as `- !GMPruningModifier`; it has none."
                self.problems.append(Problem(where, message, at))
            elif self._legacy:
                self._modifier(str(tag_of(item)).rsplit(".", 1)[-1], at, item, variables, group, stage)
            elif isinstance(item, Map):
                for name, body in item.items():
                    if name != "group":
                        self._modifier(name, item.lines[name], body, variables, group, stage)
            elif item is not None:
                message = f"{group} must hold `ModifierName: {{fields}}`; it holds {str(item)[:40]!r}."
                self.problems.append(Problem(where, message, at))

    def _modifier(self, name: str, line: int, body: Any, variables: Mapping[str, Any], group: str, stage: str) -> None:
        if isinstance(body, Map):
            fields = {key: self._computed(value, variables, name, key, body) for key, value in body.items()}
            self.stages[-1].modifiers.append(Modifier(name, fields, line, group, stage, dict(body.lines)))
        elif not body and body is not False and body != 0:
            self.stages[-1].modifiers.append(Modifier(name, {}, line, group, stage))
        else:
            shown = ", ".join(map(str, body)) if isinstance(body, list) else str(body)
            what = (
                f"!{tag_of(body)} must be followed by fields"
                if self._legacy
                else f"{name} must be followed by a mapping of fields"
            )
            message = f"{what}; it is followed by {shown[:40]!r}."
            self.problems.append(Problem(f"{stage}.{group}" if stage else group, message, line))

    def _computed(self, value: Any, variables: Mapping[str, Any], name: str, key: str, body: Map) -> Any:
        try:
            return computed(value, variables, self._compute)
        except ExpressionError as error:
            self.problems.append(Problem(f"{name}.{key}", str(error), body.lines[key]))
            return None
