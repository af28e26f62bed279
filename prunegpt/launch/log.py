"""The log of an attempt."""

from pathlib import Path

from prunegpt.redact import redact

LOG = "log.txt"
_LINE = 400  # bytes a line, when guessing how much of a file to read


def last_lines(path: Path, lines: int = 20) -> str:
    """The last lines of a text file, without secrets; empty where it cannot be read. Reads its end only."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - lines * _LINE))
            data = file.read()
    except OSError:
        return ""
    return redact("\n".join(data.decode("utf-8", errors="replace").splitlines()[-lines:]))


def append(path: Path, text: str) -> None:
    """Adds lines to a log."""
    if text:
        with path.open("a", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
