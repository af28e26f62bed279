"""The model and the text that need no download. Names and figures only: nothing here imports torch."""

PREFIX = "builtin:"


def is_builtin(source: str) -> bool:
    """Whether a source names a built-in part, such as builtin:text."""
    return source.startswith(PREFIX)
