"""The filters and orders by which `wandb.Api` asks for runs: the part of MongoDB's language that it documents."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunegpt.tracking.endpoint.intake import Rejected, parsed_object

_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$in": lambda found, wanted: found in wanted,
    "$nin": lambda found, wanted: found not in wanted,
    "$regex": lambda found, wanted: re.search(wanted, str(found)) is not None,
}
_LONGEST = 200  # characters of a regular expression

RunFields = Mapping[str, Any]  # of one run: its fields by W&B's names; `config` and `summary_metrics` are mappings


def selected(items: Iterable[dict[str, Any]], filters: Any, order: Any = None) -> list[dict[str, Any]]:
    """What a filter asks for, given as a mapping or as its JSON, in an order.

    Raises:
        Rejected: the filter is none.
    """
    query = parsed_object(filters, "filters") if isinstance(filters, str) else filters or {}
    found = [one for one in items if matches(one, query)]
    return ordered(found, str(order)) if order else found


def matches(fields: RunFields, query: Any) -> bool:
    """Whether a run is what a filter asks for.

    Raises:
        Rejected: the filter has an operator that is none here.
    """
    if not isinstance(query, Mapping):
        raise Rejected(f"a filter must be a mapping, got {query!r:.80}.", 200)
    return all(_holds(fields, name, wanted) for name, wanted in query.items())


def ordered(runs: Sequence[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """Runs by a field, `-` before it for the greatest first; those without a value come last."""
    path, descending = order.lstrip("+-"), order.startswith("-")
    found = [(value, run) for run in runs if (value := _value(run, path)) is not None]
    missing = [run for run in runs if _value(run, path) is None]
    try:
        found.sort(key=lambda pair: pair[0], reverse=descending)
    except TypeError:
        found.sort(key=lambda pair: str(pair[0]), reverse=descending)
    return [run for _, run in found] + missing


def _holds(fields: RunFields, name: str, wanted: Any) -> bool:
    if name in ("$and", "$or", "$nor"):
        results = [matches(fields, one) for one in wanted]
        return all(results) if name == "$and" else any(results) is (name == "$or")
    if name == "$not":
        return not matches(fields, wanted)
    if name.startswith("$"):
        raise Rejected(f"filters here know {', '.join(_COMPARED)}, $and, $or and $not, got {name}.", 200)
    found = _value(fields, name)
    if not (isinstance(wanted, Mapping) and any(key.startswith("$") for key in wanted)):
        return bool(found == wanted or (isinstance(found, (list, tuple)) and wanted in found))
    return all(_compares(found, how, value) for how, value in wanted.items())


def _compares(found: Any, how: str, wanted: Any) -> bool:
    if how == "$exists":
        return (found is not None) is bool(wanted)
    if how == "$not":
        return not all(_compares(found, one, value) for one, value in wanted.items())
    if how not in _COMPARED:
        raise Rejected(f"filters here know {', '.join(_COMPARED)}, $exists and $not, got {how}.", 200)
    if how == "$regex" and len(str(wanted)) > _LONGEST:
        raise Rejected(f"a $regex may have {_LONGEST} characters.", 200)
    if isinstance(found, (list, tuple)) and how in ("$eq", "$in", "$nin"):
        several = wanted if isinstance(wanted, list) else [wanted]
        return any(one in several for one in found) is (how != "$nin")
    try:
        return bool(_COMPARED[how](found, wanted))
    except (TypeError, re.error):
        return how in ("$ne", "$nin")


def _value(fields: RunFields, path: str) -> Any:
    """What a path such as config.lr.value, summary_metrics.loss or display_name means."""
    name = re.sub("(?<!^)([A-Z])", r"_\1", path.partition(".")[0]).lower()
    rest = path.partition(".")[2]
    found = fields.get(name)
    if not rest or not isinstance(found, Mapping):
        return found
    for key in (rest, rest.removesuffix(".value")):
        if key in found:
            return found[key]
    node: Any = found
    for step in rest.removesuffix(".value").split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node
