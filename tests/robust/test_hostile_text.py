"""Text that is none, or that is made to take long."""

import time
from pathlib import Path

import numpy as np
import pytest

from prunegpt.errors import DataError
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.data import pack_training_blocks, read_documents, read_rows
from prunegpt.lm.tokenizers import load_tokenizer

READERS = [read_rows, read_documents]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data file .* is empty"),
        (b" \n\t\r\n", "data file .* is empty"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0", "NUL bytes"),
        (b"\x89PNG\r\n\x1a\n", "text file .* is not UTF-8 at byte 0"),
        (b"good text\n\xff\xfe bad", "text file .* is not UTF-8 at byte 10"),
        ("Grüße".encode("utf-16"), "is not UTF-8 at byte"),
        ("Grüße".encode("latin-1"), "text file .* is not UTF-8 at byte 2"),
        (b"\xed\xa0\x80", "is not UTF-8 at byte"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, read: object, content: bytes, message: str) -> None:
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, split="train")  # type: ignore[operator]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("content", [b"{", b"\0" * 100, b"PAR1" + b"\xff" * 60 + b"PAR1", b'{"text": 3}', b"[" * 5000])
def test_damaged_tables_of_text_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"train{suffix}").write_bytes(content)
    with pytest.raises(DataError):
        read_rows(tmp_path, split="train")


def test_a_giant_line_takes_time_in_proportion(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("builtin:tiny-gpt2")
    spent = []
    for size in (100_000, 400_000):
        (tmp_path / "train.txt").write_text("In the beginning God created. " * (size // 30))
        begun = time.process_time()
        blocks = pack_training_blocks(read_rows(tmp_path, split="train"), tokenizer, 64).tokens
        spent.append(time.process_time() - begun)
        assert blocks.shape[1] == 64
        assert len(blocks) > size / 64 / 10
    assert spent[1] < 4 * spent[0] * 4 + 2  # quadratic would be sixteen times, and then some


def test_calibration_looks_at_a_part_of_a_giant_line() -> None:
    tokenizer = load_tokenizer("builtin:tiny-gpt2")
    windows = calibration_windows(["In the beginning " * 20_000], tokenizer, windows=3, length=16, seed=1)
    assert windows.shape == (3, 16)
    assert windows.dtype == np.int64


def test_odd_but_legal_text_is_read_as_it_is(tmp_path: Path) -> None:
    text = "\u202eright to left\u2028 \ufeff emoji 👩‍👩‍👧 \x0b\x1b[31mred\nlast line without end"
    (tmp_path / "train.txt").write_bytes(text.encode())
    assert "".join(read_rows(tmp_path, split="train")) == text
