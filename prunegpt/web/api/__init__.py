"""The JSON API, one file a resource. Every entry is listed in `endpoints`, from which its reference is made too."""

from collections.abc import Sequence

from prunegpt.web.api import sweeps
from prunegpt.web.endpoint import Endpoint


def endpoints() -> Sequence[Endpoint]:
    """Every entry, in the order of the reference."""
    return (*sweeps.ENDPOINTS,)
