"""Pages of a list, as GraphQL clients ask for them, and the ids of what they name."""

import base64
import binascii
import time
from collections.abc import Callable, Sequence
from typing import Any

from prunegpt.tracking.endpoint.intake import Rejected

_MOST = 10_000  # of one page

NodeFields = dict[
    str, Any
]  # what is answered of something, by the names of the schema; what is callable is computed on demand


def connection(
    items: Sequence[Any], node: Callable[[Any], Any], first: Any = None, after: Any = None
) -> dict[str, Any]:
    """One page of a list.

    Args:
        node: what an item is answered as.
        first: how many are wanted; all where there is none.
        after: the cursor of the last one of the page before.

    Raises:
        Rejected: a number that is none.
    """
    start = number(after, "after", 0)
    size = number(first, "first", _MOST)
    page = items[start : start + min(size, _MOST)]
    edges = [{"node": node(item), "cursor": str(start + place)} for place, item in enumerate(page, 1)]
    end = start + len(page)
    return {
        "edges": edges,
        "pageInfo": {
            "hasNextPage": end < len(items),
            "endCursor": str(end),
            "hasPreviousPage": start > 0,
            "startCursor": str(start),
        },
        "totalCount": len(items),
    }


def number(given: Any, name: str, otherwise: int) -> int:
    """A whole number from 0 on that a client gives as one or as its text.

    Raises:
        Rejected: it is none.
    """
    if given is None or given == "":
        return otherwise
    try:
        found = int(given)
    except (TypeError, ValueError) as error:
        raise Rejected(f"{name} must be a whole number, got {given!r:.40}.", 200) from error
    return max(found, 0)


def identifier(*parts: str) -> str:
    """An id from which its parts are read back."""
    return base64.b64encode(":".join(parts).encode()).decode()


def parts_of(found: str, kind: str) -> list[str]:
    """The three parts of an id behind its kind; none where it is no such id."""
    try:
        named, *parts = base64.b64decode(found, validate=True).decode().split(":")
    except (binascii.Error, ValueError):
        return []
    return parts if named == kind and len(parts) == 3 else []


def stamp(seconds: float | None) -> str | None:
    """A time as W&B writes it."""
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
