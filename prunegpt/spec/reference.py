"""The reference of a spec's fields, as Markdown, made from the schema: what it says is what is checked."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from prunegpt.registry import (
    ALLOCATIONS,
    CALIBRATION_MODES,
    CRITERIA,
    DISTILLATION_LOSSES,
    EARLY_STOPS,
    EXPERT_CHOICES,
    IMPORTANCES,
    LAUNCHERS,
    LAYER_CHOICES,
    MASK_MODES,
    PROTOCOLS,
    REFINEMENTS,
    RENDERERS,
    SAMPLERS,
    SCHEDULES,
    SOLVERS,
)
from prunegpt.spec.columns import COLUMNS, CONFIG, CURVE, EVALUATED, LOGGED
from prunegpt.spec.figures import KINDS
from prunegpt.spec.metrics import MEAN, SPEEDS, TASK
from prunegpt.spec.part import Part
from prunegpt.spec.schema import Settings, Spec
from prunegpt.spec.training_arguments import DECISIVE, NEUTRAL

_REGISTRIES = (
    *(CRITERIA, SOLVERS, REFINEMENTS, SCHEDULES, MASK_MODES, ALLOCATIONS, DISTILLATION_LOSSES, PROTOCOLS),
    *(CALIBRATION_MODES, LAYER_CHOICES, IMPORTANCES, EXPERT_CHOICES, SAMPLERS, EARLY_STOPS, LAUNCHERS, RENDERERS),
)
_PLAIN: Mapping[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "yes or no",
    Any: "any",
    type(None): "nothing",
}


def reference() -> str:
    """All parts of a spec, outermost first, each with its fields; then the names that registries know, and columns."""
    chapters = [
        "# Fields of a sweep spec\n\nMade by `prunegpt sweep fields`; do not edit.\n",
        *(_chapter(part) for part in parts()),
        _arguments(),
        _names(),
        _columns(),
        _figures(),
    ]
    return "\n".join(chapters)


def parts() -> Iterator[type[Part]]:
    """A spec and the parts inside it, each once and before what is inside it in turn."""
    queue: list[type[Part]] = [Spec]
    seen = {*queue}
    while queue:
        current = queue.pop(0)
        yield current
        inner = [one for field in current.model_fields.values() for one in _inside(field.annotation)]
        for one in inner:
            if one not in seen:
                seen.add(one)
                queue.append(one)


def _inside(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def _title(part: type[Part]) -> str:
    return part.__name__.removesuffix("Spec") or part.__name__


def _chapter(part: type[Part]) -> str:
    about = " ".join(str(part.__doc__).split())
    own = dict(part.model_fields)
    if issubclass(part, Settings) and part is not Settings:
        own = {name: field for name, field in own.items() if name not in Settings.model_fields}
        about += f" Beside what [{_title(Settings)}](#{_title(Settings).lower()}) say:"
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {_cell(field.description or '')} |"
        for name, field in own.items()
    ]
    head = ["| field | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {_title(part)}", "", about, "", *head, *rows, ""])


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments if one is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}" if arguments else "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        title = _title(annotation)
        return f"[{title}](#{title.lower()})"
    return _PLAIN.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, Part):
        return "its defaults"
    if isinstance(value, tuple):
        return ", ".join(f"`{getattr(one, 'metric', one)}`" for one in value)
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _arguments() -> str:
    taken = ", ".join(f"`{name}`" for name in sorted(DECISIVE | NEUTRAL))
    about = "Those of transformers' TrainingArguments. Others are refused with the reason."
    return "\n".join(["## Training arguments", "", about, "", f"{taken}.", ""])


def _names() -> str:
    rows = [
        f"| {registry.kind} | {', '.join(f'`{name}`' for name in registry.builtin_names())} |"
        for registry in _REGISTRIES
    ]
    return "\n".join(["## Names", "", "| of a | built in |", "|---|---|", *rows, ""])


def _columns() -> str:
    rows = [f"| `{name}` | {_cell(about)} |" for name, about in COLUMNS.items()]
    named = ", ".join(f"`{name}:EVALUATION`" for name in (*EVALUATED, *SPEEDS))
    rows.append(f"| {named} | the same of an evaluation by its name, where there are several |")
    rows.append(
        f"| `{TASK}:NAME`, `{TASK}:NAME/METRIC` | score of a task or group, percent: accuracy, else its first |"
    )
    rows.append(f"| `{MEAN}` | mean of the tasks and groups that were asked for, each of them once |")
    rows.append(f"| `{LOGGED}METRIC` | the last value that a W&B run has logged, such as `{LOGGED}eval/loss` |")
    rows.append(
        f"| `{CURVE}last.NAME`, `{CURVE}min.NAME`, `{CURVE}max.NAME` | last, least or greatest value of a curve, such "
        f"as `{CURVE}last.grad_norm`, in the last stage that has it; of one stage `{CURVE}stages.N.last.NAME` |"
    )
    rows.append(f"| `{CONFIG}PATH` | any value of the resolved configuration, such as `{CONFIG}train.learning_rate` |")
    return "\n".join(["## Columns of a table", "", "| name | meaning |", "|---|---|", *rows, ""])


def _figures() -> str:
    rows = [f"| `{name}` | {_cell(about)} |" for name, about in KINDS.items()]
    return "\n".join(["## Kinds of figures", "", "| name | meaning |", "|---|---|", *rows, ""])
