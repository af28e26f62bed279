"""Who may import whom, read from the source: every import counts, also one inside a function, but not one for types."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "prunegpt"
TOP = ""  # the package's own __init__, which every part may import


@dataclass(frozen=True)
class Import:
    """One import of a module of the package."""

    file: Path
    line: int
    module: str  # dotted name of the importing module
    target: str  # dotted name of what is imported: a module of the package

    @property
    def edge(self) -> tuple[str, str]:
        return part_of(self.module), part_of(self.target)


def part_of(module: str) -> str:
    """The part of the house a module belongs to: `lm` for prunegpt.lm.data."""
    steps = module.split(".")
    return steps[1] if len(steps) > 1 else TOP


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module below a package's folder."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        steps = [root.name, *file.relative_to(root).with_suffix("").parts]
        found[".".join(steps[:-1] if steps[-1] == "__init__" else steps)] = file
    return found


def imports(root: Path) -> list[Import]:
    """All imports inside the package."""
    known = modules(root)
    return [
        Import(file, node.lineno, module, _module(name, known))
        for module, file in known.items()
        for node in _run(ast.parse(file.read_text(encoding="utf-8")))
        for name in _targets(node, module, is_package=file.name == "__init__.py")
        if name.split(".")[0] == root.name
    ]


def _run(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that are executed: not those below `if TYPE_CHECKING:`."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and _names(node.test) == "TYPE_CHECKING":
        children = iter(node.orelse)
    for child in children:
        yield from _run(child)


def _names(test: ast.expr) -> str:
    return test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""


def _targets(node: ast.Import | ast.ImportFrom, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names that a statement imports; `from a import b` gives a.b, which may be a module or an attribute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    origin = node.module or ""
    if node.level:
        steps = module.split(".")
        above = steps[: len(steps) - node.level + is_package]
        origin = ".".join([*above, *([origin] if origin else [])])
    yield from (f"{origin}.{alias.name}" for alias in node.names)


def _module(name: str, known: Mapping[str, Path]) -> str:
    """The longest beginning of a dotted name that is a module."""
    steps = name.split(".")
    while len(steps) > 1 and ".".join(steps) not in known:
        steps.pop()
    return ".".join(steps)


def breaches(found: list[Import], allowed: Mapping[str, frozenset[str]]) -> list[str]:
    """Imports that the table does not allow, in words; a part that the table lacks may import nothing."""
    told = []
    for item in found:
        part, target = item.edge
        if target not in (part, TOP) and target not in allowed.get(part, frozenset()):
            told.append(f"{item.file.name}:{item.line}: {item.module} imports {item.target}")
    return told


def circles(found: list[Import]) -> list[list[str]]:
    """Modules that import one another, each circle once, beginning with its first name."""
    edges: dict[str, set[str]] = {}
    for item in found:
        if item.module != item.target:
            edges.setdefault(item.module, set()).add(item.target)
    done: set[str] = set()
    told: list[list[str]] = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            first = circle.index(min(circle))
            turned = [*circle[first:], *circle[:first]]
            if turned not in told:
                told.append(turned)
            return
        if module in done:
            return
        for target in sorted(edges.get(module, ())):
            visit(target, [*path, module])
        done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return told
