"""The part of the W&B protocol that agents and runs use, answered from a root: no cloud, no account."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import Route

    from prunegpt.root import Root


def routes(root: "Root") -> "list[Route]":
    """The routes that answer clients of W&B from a root; see `endpoint.app`."""
    from prunegpt.tracking.endpoint.app import routes as made

    return made(root)
