"""Windows of calibration data: how each mode draws them from the documents of a dataset."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prunegpt.errors import DataError
from prunegpt.lm.data import BLANK_LINE, require_tokens
from prunegpt.lm.windows import Prepared, one_string
from prunegpt.registry import CALIBRATION_MODES

CALIBRATION_CHARACTERS = 32_000_000  # of more text than this, `random` and `first` tokenise a part

_SHORTER = "a smaller calibration.length (by default block_size)"


def calibration_windows(
    rows: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    windows: int,
    length: int,
    seed: int = 0,
    mode: str = "random",
) -> NDArray[np.int64]:
    """Calibration windows for activation-aware pruning.

    Args:
        rows: documents, as `read_documents` gives them. Prepared ones are tokenised without special tokens, and with a
            bos each window begins with it.
        tokenizer: the model's tokeniser.
        windows: how many.
        length: tokens per window.
        seed: draws the windows.
        mode: name of a registered calibration mode.

    Returns:
        Tokens, [windows, length].

    Raises:
        DataError: the dataset has too few tokens, or no document that is long enough.
        UnknownPartError: there is no such mode.
    """
    bos = rows.bos if isinstance(rows, Prepared) else None
    own = length - (bos is not None)
    found = CALIBRATION_MODES.load(mode)(rows, tokenizer, windows=windows, length=own, seed=seed)
    drawn: NDArray[np.int64] = np.asarray(found, dtype=np.int64)  # [windows, own]
    return drawn if bos is None else np.pad(drawn, ((0, 0), (1, 0)), constant_values=bos)  # [windows, length]


def random_windows(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, seed: int
) -> NDArray[np.int64]:
    """Windows that start anywhere in the rows joined by a blank line, so that they may overlap.

    A single row (a text file whole) is taken as it is. Of more than 32 million characters a run of that size is used,
    from a row that the seed draws.
    """
    generator = np.random.default_rng(seed)
    tokens = _joined(_excerpt(rows, generator), tokenizer, BLANK_LINE)  # [tokens]
    require_tokens(len(tokens), length, f"a calibration window of {length} tokens", _SHORTER)
    starts = generator.integers(0, len(tokens) - length, size=windows, endpoint=True)  # [windows]
    drawn: NDArray[np.int64] = tokens[starts[:, None] + np.arange(length)]  # [windows, length]
    return drawn


def first_windows(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, seed: int
) -> NDArray[np.int64]:
    """Windows one after another from the start of the rows joined by a blank line."""
    tokens = _joined(_excerpt(rows, None), tokenizer, BLANK_LINE)  # [tokens]
    require_tokens(
        len(tokens),
        windows * length,
        f"{windows} calibration windows of {length} tokens",
        f"fewer windows, or {_SHORTER}",
    )
    return tokens[: windows * length].reshape(windows, length)  # [windows, length]


def shuffled_windows(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, seed: int
) -> NDArray[np.int64]:
    """The windows of :func:`first_windows` in an order that the seed draws.

    Sums over the windows then differ by their rounding alone: what several seeds differ in is the spread of rounding.
    """
    found = first_windows(rows, tokenizer, windows=windows, length=length, seed=seed)
    return np.random.default_rng(seed).permutation(found)  # [windows, length]


def document_windows(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, seed: int
) -> NDArray[np.int64]:
    """The calibration of SparseGPT and Wanda on C4: each window is inside one document that is longer than it.

    get_c4 of SparseGPT's datautils.py and Wanda's lib/data.py. Python's generator draws a document until one is longer
    than the window, then the start; a document may be drawn again, and its last possible start never is. (SparseGPT
    itself stops with an error where it draws a document of exactly the window's length; Wanda passes it over.)
    """
    draw = random.Random(seed)
    found = _LongDocuments(rows, tokenizer, length + 1)
    drawn = []
    for _ in range(windows):
        tokens = found.draw(draw)
        start = draw.randint(0, len(tokens) - length - 1)
        drawn.append(tokens[start : start + length])
    return np.stack(drawn)  # [windows, length]


def joined_windows(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, seed: int
) -> NDArray[np.int64]:
    """The calibration of SparseGPT and Wanda on WikiText-2 and PTB: anywhere in the rows joined by spaces.

    get_wikitext2 and get_ptb of the files that :func:`document_windows` names.
    """
    tokens = _joined(rows, tokenizer, " ")  # [tokens]
    require_tokens(len(tokens), length + 1, f"calibration windows of {length} tokens and one more", _SHORTER)
    draw = random.Random(seed)
    starts = [draw.randint(0, len(tokens) - length - 1) for _ in range(windows)]
    return np.stack([tokens[start : start + length] for start in starts])  # [windows, length]


def distinct_windows(
    rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, seed: int
) -> NDArray[np.int64]:
    """The calibration of LLM-Pruner: each window is inside a document of its own, at least as long as it.

    get_bookcorpus and get_c4 of its datasets/example_samples.py.
    """
    draw = random.Random(seed)
    found = _LongDocuments(rows, tokenizer, length, once=True)
    drawn = []
    for _ in range(windows):
        tokens = found.draw(draw)
        start = draw.randint(0, len(tokens) - length)
        drawn.append(tokens[start : start + length])
    return np.stack(drawn)  # [windows, length]


class _LongDocuments:
    """Draws documents until one is long enough, tokenising none twice.

    Args:
        least: tokens that it must have.
        once: no document is drawn twice.
    """

    def __init__(
        self, rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, least: int, *, once: bool = False
    ) -> None:
        self._rows = rows
        self._tokenizer = tokenizer
        self._least = least
        self._once = once
        self._special = not isinstance(rows, Prepared)
        self._passed: set[int] = set()  # too short, or drawn before
        self._kept: dict[int, NDArray[np.int64]] = {}  # tokens of those drawn, which may be drawn again

    def draw(self, generator: random.Random) -> NDArray[np.int64]:
        """The tokens of the next one, [tokens].

        Raises:
            DataError: none is left.
        """
        while len(self._passed) < len(self._rows):
            place = generator.randint(0, len(self._rows) - 1)
            if place in self._passed:
                continue
            if place in self._kept:
                return self._kept[place]
            ids = self._tokenizer(self._rows[place], add_special_tokens=self._special, verbose=False)["input_ids"]
            if len(ids) < self._least:
                self._passed.add(place)
                continue
            tokens = np.asarray(ids, dtype=np.int64)  # [tokens]
            if self._once:
                self._passed.add(place)
            else:
                self._kept[place] = tokens
            return tokens
        raise DataError(
            f"calibration windows of this mode must each be inside one document of at least {self._least} tokens; of "
            f"{len(self._rows)} documents {'too few have' if self._once else 'none has'} that many. Use a smaller "
            "length, longer documents, or mode: random."
        )


def _joined(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, between: str) -> NDArray[np.int64]:
    """Rows as one string of tokens, [tokens]; of a single one as it is, see `prunegpt.lm.protocols`."""
    special = len(rows) > 1 and not isinstance(rows, Prepared)
    ids = tokenizer(one_string(rows, between), add_special_tokens=special, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int64)  # [tokens]


def _excerpt(rows: Sequence[str], generator: np.random.Generator | None) -> Sequence[str]:
    """All rows, or a run of them where they are too many to tokenise."""
    size = 0
    for row in rows:
        size += len(row) + 2
        if size > CALIBRATION_CHARACTERS:
            break
    else:
        return rows
    first = int(generator.integers(len(rows))) if generator is not None else 0
    run: list[str] = []
    size = 0
    for step in range(len(rows)):
        row = rows[(first + step) % len(rows)][:CALIBRATION_CHARACTERS]
        run.append(row)
        size += len(row) + 2
        if size > CALIBRATION_CHARACTERS:
            break
    return Prepared(run, rows.between, rows.bos) if isinstance(rows, Prepared) else run
