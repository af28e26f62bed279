"""The dialect of SparseML 1.6 and later, and of llm-compressor: stages of `*_modifiers`, no tags."""

from collections.abc import Mapping
from typing import Any

from prunegpt.errors import Problem
from prunegpt.recipes.expressions import ExpressionError, substitute
from prunegpt.recipes.modifiers import Modifier, ParsedRecipe, Run, StageHeader
from prunegpt.recipes.source import Fields, Items, RecipeError, Scalar, Tree, plain

_STAGE_FIELDS = {"run_type", "args", "enabled", "exclude_default", "group", "index"}
_MAX_PASSES = 20  # variables that use variables


def parse_session(tree: Tree, source: str) -> ParsedRecipe:
    """The modifiers of a session recipe, in order of its stages.

    Args:
        tree: as :func:`prunegpt.recipes.source.parse` gives it.
        source: names the recipe in errors.

    Raises:
        RecipeError: no mapping, modifiers without a name, a run type that is none, or an expression without a value.
    """
    reader = _Reader()
    if not isinstance(tree, Fields):
        raise RecipeError([Problem("", "a recipe must be a mapping of stages or modifiers, but is a list.")], source)
    shared = reader.arguments(tree, {}, "")
    if any(_holds_modifiers(name) for name in tree.by_name):
        reader.stage("", tree.line, tree, shared)
    for name, line, value in tree.entries:
        if name.endswith("_stage"):
            reader.stages(name.removesuffix("_stage"), line, value, shared)
        elif name == "stages" and isinstance(value, Fields):
            for inner, at, stage in value.entries:
                reader.stages(inner.removesuffix("_stage"), at, stage, shared)
        elif isinstance(value, Fields) and not _holds_modifiers(name) and name not in {"args", "metadata"}:
            message = f"a mapping must be a stage (NAME_stage) or modifiers (NAME_modifiers), but {name} is neither."
            reader.problems.append(Problem(name, message, line))
    if reader.problems:
        raise RecipeError(reader.problems, source)
    headers = tuple(reader.headers) or (StageHeader("", tree.line, None),)
    return ParsedRecipe(source, "session", headers, tuple(reader.found), reader.values)


def _holds_modifiers(name: str) -> bool:
    return name == "modifiers" or name.endswith("_modifiers")


class _Reader:
    """Collects stages, modifiers, variables and problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.headers: list[StageHeader] = []
        self.found: list[Modifier] = []
        self.values: dict[str, Any] = {}

    def arguments(self, table: Fields, shared: Mapping[str, Any], stage: str) -> dict[str, Any]:
        """The variables of a table: its plain values, and those under `args`."""
        raw = {
            name: plain(value)
            for name, _, value in table.entries
            if not isinstance(value, Fields) and not _holds_modifiers(name) and name not in _STAGE_FIELDS
        }
        under = table.by_name.get("args")
        if isinstance(under, Fields):
            raw |= plain(under)
        known = {**shared, **raw}
        for _ in range(_MAX_PASSES):
            before = dict(known)
            for name in raw:
                known[name] = self._computed(known[name], before, name, table.line)
            if known == before or self.problems:
                break
        else:
            message = f"variables must not depend on each other in a circle, but {', '.join(raw)} do."
            self.problems.append(Problem(stage, message, table.line))
        own = {name: known[name] for name in raw}
        self.values.update({f"{stage}.{name}" if stage else name: value for name, value in own.items()})
        return own

    def stages(self, name: str, line: int, value: Tree, shared: Mapping[str, Any]) -> None:
        """A stage, or a list of stages of one name."""
        for part in value.items if isinstance(value, Items) else (value,):
            if isinstance(part, Fields):
                self.stage(name, line, part, {**shared, **self.arguments(part, shared, name)})
            else:
                self.problems.append(Problem(name, "a stage must be a mapping with *_modifiers, but is none.", line))

    def stage(self, name: str, line: int, table: Fields, variables: Mapping[str, Any]) -> None:
        self.headers.append(StageHeader(name, line, self._run(name, table)))
        for group, at, value in table.entries:
            if not _holds_modifiers(group):
                continue
            parts = value.items if isinstance(value, Items) else (value,)
            for part in parts:
                if isinstance(part, Fields):
                    for modifier, line_of, body in part.entries:
                        if modifier != "group":
                            self._modifier(modifier, line_of, body, variables, group, name)
                elif plain(part) is not None:
                    message = f"{group} must hold `ModifierName: {{fields}}`, but holds {str(plain(part))[:40]!r}."
                    self.problems.append(Problem(f"{name}.{group}" if name else group, message, at))

    def _run(self, name: str, table: Fields) -> Run | None:
        given = table.by_name.get("run_type")
        if given is not None:
            value = plain(given)
            if value == "train":
                return "train"
            if value == "oneshot":
                return "oneshot"
            message = f"run_type must be train or oneshot, but got {value!r}."
            self.problems.append(Problem(f"{name}.run_type" if name else "run_type", message, given.line))
        if "oneshot" in name:
            return "oneshot"
        return "train" if "train" in name else None

    def _modifier(self, name: str, line: int, body: Tree, variables: Mapping[str, Any], group: str, stage: str) -> None:
        if isinstance(body, Fields):
            fields = {
                key: self._computed(plain(value), variables, f"{name}.{key}", at) for key, at, value in body.entries
            }
            self.found.append(Modifier(name, fields, line, group, stage, dict(body.lines)))
        elif isinstance(body, Scalar) and body.value in (None, ""):
            self.found.append(Modifier(name, {}, line, group, stage))
        else:
            message = f"{name} must be followed by a mapping of fields, but is followed by {str(plain(body))[:40]!r}."
            self.problems.append(Problem(f"{stage}.{group}" if stage else group, message, line))

    def _computed(self, value: Any, variables: Mapping[str, Any], where: str, line: int) -> Any:
        if isinstance(value, list):
            return [self._computed(item, variables, where, line) for item in value]
        if isinstance(value, dict):
            return {key: self._computed(item, variables, where, line) for key, item in value.items()}
        if isinstance(value, str) and "eval(" in value:
            try:
                return substitute(value, variables)
            except ExpressionError as error:
                self.problems.append(Problem(where, str(error), line))
        return value
