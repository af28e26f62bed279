"""The dialect of SparseML 0.x to 1.x: lists of `!Modifier` objects, variables, and `eval(...)` as whole values."""

from collections.abc import Mapping
from typing import Any

from prunegpt.errors import Problem
from prunegpt.recipes.expressions import ExpressionError, is_whole, resolve_variables, whole_value
from prunegpt.recipes.modifiers import Modifier, ParsedRecipe, StageHeader
from prunegpt.recipes.source import Fields, Items, RecipeError, Tree, plain

_METADATA = {"version", "__metadata__", "recipe_type", "log_types"}


def parse_legacy(tree: Tree, source: str) -> ParsedRecipe:
    """The modifiers of a legacy recipe, in order.

    Args:
        tree: as :func:`prunegpt.recipes.source.parse` gives it.
        source: names the recipe in errors.

    Raises:
        RecipeError: an object outside a list of modifiers, or an expression without a value; all of them.
    """
    reader = _Reader()
    if isinstance(tree, Fields) and tree.tag is None:
        stages = [
            (name, line, value)
            for name, line, value in tree.entries
            if isinstance(value, Fields) and any("modifiers" in inner for inner in value.by_name)
        ]
        names = {name for name, _, _ in stages}
        shared = reader.variables(tree, {}, "", names)
        headers = [StageHeader(name, line, "train") for name, line, _ in stages]
        if any("modifiers" in name for name in tree.by_name if name not in names):
            headers.insert(0, StageHeader("", tree.line, "train"))
        reader.table(tree, shared, "", names)
        for name, _, stage in stages:
            own = reader.variables(stage, shared, name, set())
            reader.table(stage, {**shared, **own}, name, set())
        headers = headers or [StageHeader("", tree.line, "train")]
    else:  # a bare list, or one object alone
        items = tree.items if isinstance(tree, Items) and tree.tag is None else (tree,)
        reader.modifiers(items, {}, "modifiers", "")
        headers = [StageHeader("", tree.line, "train")]
    if reader.problems:
        raise RecipeError(reader.problems, source)
    return ParsedRecipe(source, "legacy", tuple(headers), tuple(reader.found), reader.values)


class _Reader:
    """Collects modifiers, variables and problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.found: list[Modifier] = []
        self.values: dict[str, Any] = {}

    def variables(self, table: Fields, shared: Mapping[str, Any], stage: str, stages: set[str]) -> dict[str, Any]:
        """The variables of a table; they may use those of the whole recipe."""
        raw = {
            name: plain(value)
            for name, _, value in table.entries
            if "modifiers" not in name and name not in stages and name not in _METADATA
        }
        try:
            resolved = resolve_variables({**shared, **raw})
        except ExpressionError as error:
            self.problems.append(Problem(stage, str(error), table.line))
            return raw
        own = {name: resolved[name] for name in raw}
        self.values.update({f"{stage}.{name}" if stage else name: value for name, value in own.items()})
        return own

    def table(self, table: Fields, variables: Mapping[str, Any], stage: str, stages: set[str]) -> None:
        """The modifiers of all `*modifiers*` lists of a table."""
        for name, line, value in table.entries:
            if name in stages:
                continue
            if "modifiers" in name:
                if isinstance(value, Items):
                    self.modifiers(value.items, variables, name, stage)
                elif plain(value) is not None:
                    message = f"{name} must be a list of modifiers, each as `- !Modifier`, but is no list."
                    self.problems.append(Problem(name, message, line))
            elif isinstance(value, Items):
                self._objects_elsewhere(name, value)

    def _objects_elsewhere(self, name: str, value: Items) -> None:
        for item in value.items:
            if item.tag is not None:
                message = (
                    f"modifiers must stand in a list whose name contains `modifiers`, but !{item.tag} stands in "
                    f"{name}. Rename the list, such as {name}_modifiers."
                )
                self.problems.append(Problem(name, message, item.line))

    def modifiers(self, items: tuple[Tree, ...], variables: Mapping[str, Any], group: str, stage: str) -> None:
        for item in items:
            where = f"{stage}.{group}" if stage else group
            if item.tag is None:
                message = (
                    "an item of a list of modifiers must have a tag, such as `- !GMPruningModifier`, but has none."
                )
                self.problems.append(Problem(where, message, item.line))
            elif isinstance(item, Fields):
                self._modifier(item, variables, group, stage)
            elif plain(item) in (None, []):
                self.found.append(Modifier(_bare(item.tag), {}, item.line, group, stage))
            else:
                message = f"!{item.tag} must be followed by fields, but is followed by {str(plain(item))[:40]!r}."
                self.problems.append(Problem(where, message, item.line))

    def _modifier(self, item: Fields, variables: Mapping[str, Any], group: str, stage: str) -> None:
        name = _bare(item.tag or "")
        fields = {
            key: self._computed(plain(value), variables, f"{name}.{key}", line) for key, line, value in item.entries
        }
        self.found.append(Modifier(name, fields, item.line, group, stage, dict(item.lines)))

    def _computed(self, value: Any, variables: Mapping[str, Any], where: str, line: int) -> Any:
        if isinstance(value, list):
            return [self._computed(item, variables, where, line) for item in value]
        if isinstance(value, dict):
            return {key: self._computed(item, variables, where, line) for key, item in value.items()}
        if isinstance(value, str) and is_whole(value):
            try:
                return whole_value(value, variables)
            except ExpressionError as error:
                self.problems.append(Problem(where, str(error), line))
                return None
        return value


def _bare(tag: str) -> str:
    """`GMPruningModifier` of `pytorch.GMPruningModifier`."""
    return tag.rsplit(".", 1)[-1]
