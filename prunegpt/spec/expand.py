"""`base` and each trial merged, `vary` and `seeds` multiplied out: a list of single configurations."""

import copy
import itertools
import json
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prunegpt.errors import Problem
from prunegpt.spec.problems import problems_of
from prunegpt.spec.read import Document, set_path
from prunegpt.spec.schema import TrialSpec

MAX_TRIALS = 100_000
_SOURCE_KEYS = ("path", "files", "name", "revision", "text_column")


@dataclass(frozen=True)
class Configuration:
    """One point of a sweep."""

    index: int  # of the trial in the spec, for error messages
    group: str
    name: str
    seed: int
    spec: TrialSpec
    merged: Mapping[str, Any]  # the same as plain data
    swept: Mapping[str, Any]


def expand(document: Document, skip: Container[int] = ()) -> tuple[list[Configuration], list[Problem]]:
    """All configurations, in spec order, the last varied key fastest; and what is wrong with them.

    Args:
        skip: indices of trials that are known to be malformed.
    """
    base = document.data.get("base") or {}
    found: list[Configuration] = []
    problems: list[Problem] = []
    for index, raw in enumerate(document.data.get("trials") or []):
        if index in skip:
            continue
        merged = merge(base, raw)
        vary = merged.pop("vary", None) or {}
        for swept in itertools.islice(_product(vary), MAX_TRIALS):
            if not _expand_one(index, merged, swept, document, found, problems):
                break
    problems += _duplicates(found, document)
    return found, problems


def _expand_one(
    index: int,
    merged: dict[str, Any],
    swept: Mapping[str, Any],
    document: Document,
    found: list[Configuration],
    problems: list[Problem],
) -> bool:
    """Appends one configuration a seed; False where a problem was found, which its siblings would only repeat."""
    here = ("trials", index)
    data = copy.deepcopy(merged)
    try:
        for path, value in swept.items():
            set_path(data, path.split("."), copy.deepcopy(value))
        data["name"] = group = _name(str(data.get("name")), swept)
        spec = TrialSpec.model_validate(data)
    except ValidationError as error:
        problems.extend(problems_of(error, TrialSpec, document, here))
        return False
    except ValueError as error:
        problems.append(document.problem((*here, "vary"), str(error)))
        return False
    for seed in spec.seeds:
        name = group if len(spec.seeds) == 1 else f"{group}@{seed}"
        found.append(Configuration(index, group, name, seed, spec, {**data, "seeds": [seed]}, dict(swept)))
    return True


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mappings key by key; data that names its source keeps nothing of the base's source."""
    merged = dict(copy.deepcopy(base))
    for key, value in over.items():
        below = merged.get(key)
        if key == "model" and isinstance(value, str):
            merged[key] = value
        elif isinstance(below, Mapping) and isinstance(value, Mapping):
            if key == "data" and ("path" in value or "files" in value):
                below = {name: item for name, item in below.items() if name not in _SOURCE_KEYS}
            merged[key] = merge(below, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _product(vary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = [values if isinstance(values, list) else [values] for values in vary.values()]
    for values in itertools.product(*lists):
        yield dict(zip(vary, values, strict=True))


def _name(template: str, swept: Mapping[str, Any]) -> str:
    """`layer-{layers}` filled in, or `-key=value` appended for each varied key."""
    short = {path.rsplit(".", 1)[-1]: slug(value) for path, value in swept.items()}
    if "{" in template:
        try:
            return template.format_map(short)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"a name may hold {{KEY}} of a varied key ({', '.join(short) or 'none here'}), but got {template!r}."
            ) from error
    return template + "".join(f"-{key}={value}" for key, value in short.items())


def slug(value: Any) -> str:
    """A value as part of a name: letters, digits and ._=+,- only."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^A-Za-z0-9._=+,-]+", "_", text).strip("_") or "empty"


def _duplicates(found: list[Configuration], document: Document) -> list[Problem]:
    seen: dict[str, int] = {}
    problems = []
    for item in found:
        if item.name in seen:
            problems.append(
                document.problem(
                    ("trials", item.index),
                    f"trial names must differ, but {item.name!r} is also trials.{seen[item.name]}. Rename one.",
                )
            )
        seen.setdefault(item.name, item.index)
    return problems
