"""What the mutations of artifacts take of clients, checked."""

from collections.abc import Mapping
from typing import Any

from prunegpt.tracking.endpoint.intake import Rejected


def aliases_of(asked: Mapping[str, Any]) -> list[str]:
    """The aliases of an input, each given as a text or as an input that names it."""
    return [str(one.get("alias") if isinstance(one, Mapping) else one) for one in asked.get("aliases") or []]


def tags_of(given: Any) -> list[str]:
    """The names of tags."""
    return [text_of(one, "tagName") for one in given or []]


def refuse_unsupported(asked: Mapping[str, Any]) -> None:
    """Refuses what would be dropped.

    Raises:
        Rejected: a time to live, a region, or labels.
    """
    if asked.get("labels") not in (None, "", "{}"):
        raise Rejected("artifacts have tags and metadata here, and no labels.", 200)
    if isinstance(seconds := asked.get("ttlDurationSeconds"), int) and seconds > 0:
        raise Rejected("artifacts have no time to live here. Delete the version when it is not needed.", 200)
    if asked.get("storageRegion") not in (None, "", "default"):
        raise Rejected(
            f"this server has one place for artifacts, got {asked['storageRegion']!r:.80}. Leave the region out.", 200
        )


def input_of(given: Any) -> Mapping[str, Any]:
    """The input of a mutation.

    Raises:
        Rejected: it is no mapping.
    """
    if not isinstance(given, Mapping):
        raise Rejected("an input must be a mapping.", 200)
    return given


def text_of(asked: Any, name: str) -> str:
    """A text of an input; empty where it is not given.

    Raises:
        Rejected: it is something else, or too long.
    """
    value = asked.get(name) if isinstance(asked, Mapping) else None
    if value is not None and (not isinstance(value, str) or len(value) > 1000):
        raise Rejected(f"{name} must be a text, got {value!r:.80}.", 200)
    return value or ""
