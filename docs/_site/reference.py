"""The generated parts of the reference: each function gives Markdown, made from the code that it describes.

A page of the site has the line <!-- generated: NAME --> where the part belongs; `hooks.py` puts it there.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer

import prunegpt
from prunegpt import registry
from prunegpt.cli import app
from prunegpt.recipes.catalogue import reference as recipe_fields
from prunegpt.spec.execution import RETRIES
from prunegpt.spec.reference import reference as spec_fields
from prunegpt.web.api import document

PACKAGE = Path(prunegpt.__file__).parent


def cell(text: object) -> str:
    """Text of one cell of a table."""
    return code(text).replace("<", "&lt;").replace("[", "\\[")


def code(text: object) -> str:
    """The same between backticks."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(head: str, rows: list[tuple[str, ...]]) -> str:
    names = [name.strip() for name in head.split("|")]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def without_title(text: str) -> str:
    return text.partition("\n")[2].strip("\n") + "\n"


# Commands


def commands(group: Any = None, parent: Any = None) -> Iterator[tuple[Any, typer.Context]]:
    """Every command of the command line, with the context that has its words."""
    group = group or typer.main.get_command(app)
    parent = parent or typer.Context(group, info_name="prunegpt")
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=name, parent=parent)
        if hasattr(command, "commands"):
            yield from commands(command, context)
        elif not command.hidden:
            yield command, context


def cli() -> str:
    return "\n".join(_command(command, context) for command, context in commands())


def _command(command: Any, context: typer.Context) -> str:
    records = [found for one in command.params if (found := one.get_help_record(context))]
    usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    example = [command.epilog.removeprefix("Example: ")] if command.epilog else []
    return "\n".join(
        [
            f"## {context.command_path}",
            "",
            (command.help or "").replace("\f", ""),
            "",
            *("```sh", f"# {usage}", *example, "```", ""),
            table("argument or option | meaning", [(f"`{code(name)}`", cell(about)) for name, about in records]),
        ]
    )


# The JSON API


def api() -> str:
    found = document()
    parts = [
        _operation(method.upper(), path, operation)
        for path, operations in found["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = [_schema(name, schema) for name, schema in sorted(found["components"]["schemas"].items())]
    return "\n".join([*parts, "## Schemas\n", *schemas])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    shown = path.replace("{", "&#123;").replace("}", "&#125;")
    rows = [
        (f"`{one['name']}`", one["in"], _kind(one["schema"]), cell(one.get("description", "")))
        for one in operation["parameters"]
    ]
    answer = ", ".join(
        _kind(content["schema"]) if media == "application/json" and content["schema"] else f"`{media}`"
        for media, content in operation["responses"]["200"]["content"].items()
    )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    parts = [f"## {method} {shown}", "", cell(operation["summary"]), ""]
    parts += [table("parameter | in | value | meaning", rows)] if rows else []
    parts += [f"Body: {_kind(body)}.", ""] if body else []
    return "\n".join([*parts, f"Answer: {answer}.", ""])


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    rows = [
        (f"`{field}`", _kind(given), cell(given.get("description", "")))
        for field, given in schema.get("properties", {}).items()
    ]
    about = cell(schema.get("description", ""))
    inner = table("field | value | meaning", rows) if rows else f"{_kind(schema)}\n"
    return f"### {name}\n\n{about}\n\n{inner}"


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("enum"):
        return ", ".join(f"`{one}`" for one in choices)
    if "const" in schema:
        return f"`{schema['const']}`"
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(one) for one in several))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"text → {_kind(schema['additionalProperties'])}"
    return {"null": "nothing", "string": "text", "boolean": "yes or no"}.get(
        schema.get("type", ""), schema.get("type", "any")
    )


# Errors


def classes_of_errors() -> list[tuple[str, str, str]]:
    """Name, base and meaning of every error whose message is meant for the user, bases first."""
    known, found = {"PruneGPTError"}, [("PruneGPTError", "Exception", prunegpt.errors.PruneGPTError.__doc__ or "")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in range(4):  # as deep as errors are derived from each other
        for node in nodes:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            if node.name not in known and (base := next((name for name in bases if name in known), None)):
                known.add(node.name)
                found.append((node.name, base, ast.get_docstring(node) or ""))
    return found


def errors() -> str:
    rows = [(f"`{name}`", f"`{base}`", cell(about.partition("\n\n")[0])) for name, base, about in classes_of_errors()]
    reasons = [(f"`{reason}`", str(count)) for reason, count in RETRIES.items()]
    return "\n".join(
        [
            "## Errors\n",
            table("error | is a | raised for", rows),
            "## Reasons of failed attempts\n",
            table("reason | retries by default", reasons),
        ]
    )


# Methods and other named parts


def registries() -> list[registry.Registry]:
    return [value for value in vars(registry).values() if isinstance(value, registry.Registry)]


def methods() -> str:
    chapters = []
    for one in registries():
        rows = [(f"`{name}`", _about(one.entry(name).loader), _options(one, name)) for name in one.builtin_names()]
        group = one.kind.replace(" ", "_")
        chapters.append(f"## {one.kind.capitalize()}\n\nEntry points: `prunegpt.{group}`.\n")
        chapters.append(table("name | what it is | options", rows))
    return "\n".join(chapters)


def _about(loader: str) -> str:
    """The first sentence that the code of a part says of itself."""
    module, _, attribute = loader.partition(":")
    path = PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        path = PACKAGE.parent / Path(*module.split(".")) / "__init__.py"
    if not path.is_file():
        return f"`{module}.{attribute}`"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == attribute]
    text = next((found for node in [*named, tree] if (found := ast.get_docstring(node))), "")
    return cell(text.partition("\n\n")[0])


def _options(kind: registry.Registry, name: str) -> str:
    options = kind.entry(name).options
    return "<br>".join(f"`{option}` {_range(given)}".strip() for option, given in options.items())


def _range(given: Any) -> str:
    first, *limits = get_args(given) or (given,)
    words = [getattr(first, "__name__", str(first))]
    for limit in limits:
        signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        shown = [f"{sign} {getattr(limit, name)}" for name, sign in signs if hasattr(limit, name)]
        words += shown or [str(limit)]
    return cell(", ".join(words).replace(", It", ". It"))


GENERATED: Mapping[str, Callable[[], str]] = {
    "spec": lambda: without_title(spec_fields()),
    "recipes": lambda: without_title(recipe_fields()),
    "cli": cli,
    "api": api,
    "errors": errors,
    "methods": methods,
}
