"""Text that fits on one line."""

import re

_NOT_SHOWN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def one_line(text: str) -> str:
    """Line breaks, control characters and lone surrogates become single spaces; none at the ends."""
    return _NOT_SHOWN.sub(" ", text).strip()
