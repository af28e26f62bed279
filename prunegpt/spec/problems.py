"""What pydantic found wrong, in our words: rule, value, hint, and the line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from prunegpt.errors import Problem, counted, shown, unknown
from prunegpt.spec.part import REFERENCE
from prunegpt.spec.read import Document
from prunegpt.spec.training_arguments import DECISIVE, NEUTRAL

Path = tuple[str | int, ...]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # no text for a number, no truth value for one
_SHOWN = 80  # characters of a value in a message
_WORDS = (
    ("input should be", "must be"),
    ("a valid tuple", "a list"),
    ("a valid string", "text"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a valid boolean", "true or false"),
    (", unable to parse string as an integer", ""),
    (", unable to parse string as a number", ""),
    (", unable to interpret input", ""),
    (", got a number with a fractional part", ""),
)
_PATHS = {  # names that are written without a path -> theirs in a trial
    "lr": "train.learning_rate",
    **dict.fromkeys(("batch_size", "train_batch_size"), "train.per_device_train_batch_size"),
    **dict.fromkeys(("epochs", "num_epochs"), "train.num_train_epochs"),
    **dict.fromkeys(("steps", "max_train_steps"), "train.max_steps"),
    **dict.fromkeys(("block_size", "max_train_blocks"), "data.block_size"),
    **dict.fromkeys(("model_name_or_path", "model_name"), "model"),
    **dict.fromkeys(("hardness", "temperature", "loss"), "stages.N.distill.{}, N the place of the stage"),
    **dict.fromkeys(("sparsity", "method", "pattern"), "stages.N.prune.{}, N the place of the stage"),
}
_HINTS = {  # kind of pydantic's, or how its name begins -> what to do
    "greater_than_equal": "Set {ge} or more.",
    "greater_than": "Set a number above {gt}.",
    "less_than_equal": "Set {le} or less.",
    "less_than": "Set a number below {lt}.",
    "literal_error": "Choose one of them.",
    "int_from_float": "Leave out the fraction.",
    "int": "Write a number, without quotes.",
    "finite_number": "Write a finite number.",
    "float": "Write a number, without quotes.",
    "bool": "Write it without quotes.",
    "string_type": "Put it in quotes.",
    "string": "Rename it.",
    "tuple": "Write a list, such as [a, b].",
    "list": "Write a list, such as [a, b].",
    "too_short": "Add what is missing, or remove the key.",
    "too_long": "Remove what is too much.",
}
_ELSE = f"{REFERENCE} lists what it may be."
_MISMATCHES = ("_type", "_parsing", "literal_error", "_from_float")  # ends of the kinds that mean: not of this branch


def problems_of(
    error: ValidationError, model: type[BaseModel], document: Document, prefix: Sequence[str | int] = ()
) -> list[Problem]:
    """One problem an error, each with the path that `--set` takes and its line in the file.

    Args:
        document: holds, below `prefix`, the data that was validated.
    """
    data: Any = document.data
    for step in prefix:
        data = data[step]
    return [document.problem((*prefix, *path), message) for path, message in messages_of(error, model, data)]


def messages_of(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[Path, str]]:
    """Path and message of each error.

    A value that fits no branch of a union is one error, and where it fits one of them but for something inside, the
    others are not spoken of.
    """
    errors = error.errors(include_url=False)
    places = [tuple(item["loc"]) for item in errors]

    def emptied(place: Path) -> bool:
        """Whether a list is too short only because what is in it was refused."""
        return any(other[: len(place)] == place != other for other in places)

    items = [item for item in errors if item["type"] != "too_short" or not emptied(tuple(item["loc"]))]
    found = [_located(item, model, data) for item in items]
    unions: dict[Path, list[_Item]] = {}
    for item in found:
        for union in item.unions:
            unions.setdefault(union, []).append(item)
    told: list[tuple[Path, str]] = []
    for item in found:
        siblings = unions[item.unions[-1]] if item.unions else []
        if not item.mismatch or not siblings:
            told.append((item.path, item.message))
        elif all(other.mismatch and other.path == item.path for other in siblings) and item is siblings[0]:
            told.append((item.path, _joined(siblings)))
    return told


@dataclass(frozen=True)
class _Item:
    """One error of pydantic's, seen against the data."""

    path: Path
    unions: tuple[Path, ...]  # fields whose types are unions, outermost first, where the error is of one branch of each
    wants: str
    got: str  # empty where the message says it
    hint: str
    mismatch: bool  # the value is not of this branch at all

    @property
    def message(self) -> str:
        return f"{self.wants}, got {self.got}. {self.hint}" if self.got else self.wants


def _joined(branches: Sequence[_Item]) -> str:
    wanted = dict.fromkeys(item.wants.removeprefix("must be ") for item in branches)
    hints = dict.fromkeys(item.hint for item in branches)
    return f"must be {' or '.join(wanted)}, got {branches[0].got}. {hints.popitem()[0] if len(hints) == 1 else _ELSE}"


def _located(item: Any, model: type[BaseModel], data: Any) -> _Item:
    """Leaves out of the path what pydantic adds for the branches of unions."""
    annotation, node = model, data
    path: list[str | int] = []
    unions: list[Path] = []
    for step in item["loc"]:
        below = _step(annotation, step, node)
        inside = isinstance(node, Mapping) and step in node
        if below is None and not inside:
            unions.append(tuple(path))
            continue
        path.append(step)
        annotation, node = below, _child(node, step)
    wants, got = _words(item, model, data)
    mismatch = unions[-1:] == [tuple(path)] and item["type"].endswith(_MISMATCHES)
    return _Item(tuple(path), tuple(dict.fromkeys(unions)), wants, got, hint_of(item), mismatch)


def _words(item: Any, model: type[BaseModel], data: Any) -> tuple[str, str]:
    kind, last = item["type"], item["loc"][-1] if item["loc"] else ""
    if kind == "extra_forbidden":
        fields = _fields_at(item["loc"][:-1], model, data)
        inside = _fields_at(("base",), model, data) if "base" in fields else []
        hint = f" Write base.{last}." if last in inside else _elsewhere(str(last), fields)
        return unknown("key", str(last), fields, REFERENCE) + hint, ""
    if kind == "missing":
        return f"{last} is required. Add it.", ""
    if kind == "value_error":
        return str(item["ctx"]["error"]), ""
    if kind == "string_pattern_mismatch":
        return "a name holds letters, digits and ._=+,@-, a letter or digit first", shown(item["input"], _SHOWN)
    if kind in ("too_short", "too_long"):
        end, many = ("min_length", "least") if kind == "too_short" else ("max_length", "most")
        return f"must have at {many} {counted(item['ctx'][end], 'value')}", shown(item["input"], _SHOWN)
    if kind in ("model_type", "dict_type", "mapping_type"):
        return "must be a mapping", shown(item["input"], _SHOWN)
    return in_words(item["msg"]), shown(item["input"], _SHOWN)


def hint_of(item: Any) -> str:
    """What to do about an error of pydantic's: the end of its message."""
    kind = item["type"]
    if kind == "too_short" and not item["input"]:
        return "Fill it or remove the key."
    found = next((hint for name, hint in _HINTS.items() if kind.startswith(name)), _ELSE)
    return found.format(**item.get("ctx", {}))


def _elsewhere(name: str, fields: Sequence[str]) -> str:
    """The end of a message: the path of a name that W&B sweeps and training scripts write without one."""
    if "stages" not in fields:
        return ""
    path = f"train.{name}" if name in DECISIVE | NEUTRAL else _PATHS.get(name, "").format(name)
    return f" Write {path}." if path else ""


def in_words(message: str) -> str:
    """What pydantic says, as we say it: `must be ...`."""
    text = message[0].lower() + message[1:]
    for theirs, ours in _WORDS:
        text = text.replace(theirs, ours)
    return text.rstrip(".")


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation with Annotated and unions taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _parts(inner)
    else:
        yield annotation


def _step(annotation: Any, step: str | int, node: Any) -> Any:
    """The annotation one step down, or None where the types have no such step."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel) and step in part.model_fields:
            return part.model_fields[str(step)].rebuild_annotation()
        origin, args = get_origin(part), get_args(part)
        if origin is tuple and isinstance(step, int):
            return args[0]
        is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
        if is_mapping and isinstance(node, Mapping) and step in node:
            return args[1]
    return None


def _child(node: Any, step: str | int) -> Any:
    try:
        return node[step]
    except (KeyError, IndexError, TypeError):
        return None


def _fields_at(path: Sequence[str | int], model: Any, data: Any) -> list[str]:
    annotation, node = model, data
    for step in path:
        below = _step(annotation, step, node)
        if below is not None:
            annotation, node = below, _child(node, step)
    return [
        name
        for part in _parts(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
        for name in part.model_fields
    ]


def option_problems(part: str, given: Mapping[str, Any], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with options, each with its name.

    Args:
        part: what messages call the part, or the parts that share the options.
        given: the options of a spec.
        valid: name -> type with its range, of all that the parts take.
    """
    for name, value in given.items():
        if name not in valid:
            yield name, unknown(f"option of {part}", name, valid)
        elif message := value_problem(value, valid[name]):
            yield name, f"option {name} of {part} {message}"


def value_problem(value: Any, kind: Any) -> str | None:
    """Why a value is not of a type and in its range, with the hint that the type carries; None where it is."""
    try:
        TypeAdapter(kind, config=_STRICT).validate_python(value)
    except ValidationError as error:
        rules = dict.fromkeys(in_words(item["msg"]).removeprefix("must be ") for item in error.errors())
        hints = [item for item in get_args(kind)[1:] if isinstance(item, str)] or [hint_of(error.errors()[0])]
        return " ".join([f"must be {' or '.join(rules)}, got {value!r}.", *hints])
    return None
