"""A criterion in a file of one's own: `method: ./mine.py:score`.

    def score(weight, input_norm, power: float = 2.0):   # [out, in] -> [out, in], higher is more important
        return weight.abs() * input_norm**power

Its arguments beside the weight are what it needs (`registry.CRITERION_NEEDS`), and else its options. They are read from
the source: planning runs nothing. A plan names the file with the hash of its content, which is in stage keys; a file
with another content is not run. It may import what is installed, and nothing beside itself.
"""

import ast
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunegpt.errors import PruneGPTError, UnknownPartError, listed, unknown
from prunegpt.registry import CRITERION_NEEDS, Entry

_NAMED = re.compile(r"(?P<path>[^#]+\.py):(?P<name>[A-Za-z_]\w*)(?:#(?P<digest>[0-9a-f]{64}))?")
_TYPES: Mapping[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
_LARGEST = 1 << 20  # bytes of a file


@dataclass(frozen=True)
class CodePart:
    """A function in a file, which is a criterion."""

    path: str
    name: str
    digest: str | None = None  # SHA-256 of the file it was planned with

    @classmethod
    def of(cls, method: object) -> "CodePart | None":
        """The part that a method names; None where it is the name of a registered one."""
        found = _NAMED.fullmatch(method) if isinstance(method, str) else None
        return cls(**found.groupdict()) if found else None

    @classmethod
    def of_function(cls, function: Callable[..., Any]) -> "CodePart":
        """A function of this process, where its file has it under that name.

        Raises:
            PruneGPTError: it has no source file, such as one that was typed into a notebook, or is inside something.
        """
        name = getattr(function, "__qualname__", "")
        try:
            file = inspect.getsourcefile(function)
        except TypeError:
            file = None
        if file is None or not Path(file).is_file() or not name.isidentifier():
            raise PruneGPTError(
                f"a criterion is a function at the top of a file, got {name or function!r}: workers are other "
                "processes, and stage keys hold its source. In a notebook begin the cell with `%%writefile mine.py`, "
                f"then say method: ./mine.py:{name if name.isidentifier() else 'score'}."
            )
        return cls(str(Path(file).absolute()), name)

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" + (f"#{self.digest}" if self.digest else "")

    @property
    def label(self) -> str:
        """What tables call it: the file without its folder, and the function."""
        return f"{Path(self.path).name}:{self.name}"

    @property
    def decisive(self) -> str:
        """What stands for it in a key."""
        return f"{self.name}#{self.digest}"

    def read(self) -> bytes:
        """The source, checked against the plan.

        Raises:
            UnknownPartError: there is no such file, it is too large, or it has another content than planned.
        """
        try:
            with open(self.path, "rb") as file:
                source = file.read(_LARGEST + 1)
        except OSError as error:
            raise UnknownPartError(f"criterion {self.label}: {self.path} cannot be read ({error.strerror}).") from error
        if len(source) > _LARGEST:
            raise UnknownPartError(
                f"criterion {self.label}: a file has at most {_LARGEST:,} bytes; {self.path} has more."
            )
        if self.digest and hashlib.sha256(source).hexdigest() != self.digest:
            raise UnknownPartError(
                f"criterion {self.label}: a file must stay as it was when the trial was planned; {self.path} has "
                "another content now. Run the sweep again, which plans with the file as it is."
            )
        return source

    def entry(self) -> Entry:
        """What its arguments say, without running it.

        Raises:
            UnknownPartError: the file is no Python, has no such function, or that does not begin with `weight`.
        """
        try:
            tree = ast.parse(self.read(), self.path)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UnknownPartError(f"criterion {self.label}: {self.path} is no Python: {error}.") from error
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if self.name not in functions:
            raise UnknownPartError(f"criterion {self.label}: {unknown('function', self.name, functions)}")
        given = functions[self.name].args
        first, *others = [*given.posonlyargs, *given.args, *given.kwonlyargs] or [ast.arg("")]
        if first.arg != "weight":
            raise UnknownPartError(
                f"criterion {self.label}: its first argument is `weight` [out, in], got {first.arg or 'none'!r}. It "
                f"may take beside it {listed(sorted(CRITERION_NEEDS))}, and options of its own."
            )
        needs = frozenset(one.arg for one in others if one.arg in CRITERION_NEEDS)
        options = {
            one.arg: _TYPES.get(ast.unparse(one.annotation) if one.annotation else "", bool | int | float | str)
            for one in others
            if one.arg not in needs
        }
        return Entry(loader="", options=options, needs=needs)

    def function(self) -> Callable[..., Any]:
        """The function, from the source that was planned, run in this process.

        Raises:
            UnknownPartError: the source differs from the plan, or it cannot be run.
        """
        scope: dict[str, Any] = {"__name__": f"criterion_{Path(self.path).stem}", "__file__": self.path}
        source = self.read()
        try:
            exec(compile(source, self.path, "exec"), scope)
            found: Callable[..., Any] = scope[self.name]
        except Exception as error:
            raise UnknownPartError(f"criterion {self.label}: {self.path} cannot be run: {error!r}.") from error
        return found


def method_label(method: str) -> str:
    """What tables call a method."""
    part = CodePart.of(method)
    return part.label if part else method


def with_functions(spec: Any) -> Any:
    """Plain data in which functions are replaced by the names of their files, as YAML would give them."""
    if isinstance(spec, Mapping):
        return {key: with_functions(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [with_functions(value) for value in spec]
    return str(CodePart.of_function(spec)) if callable(spec) else spec
