"""Text as the windows that perplexity is measured on: which tokens a model sees, and which of them count."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Prepared(Sequence[str]):
    """Rows that are tokenised without the tokeniser's own special tokens: they hold theirs, or each window gets one.

    Attributes:
        rows: the text.
        between: what joins them where they become one string; None: what the protocol joins rows by.
        bos: the token that is put before each window; None: none is.
    """

    rows: Sequence[str]
    between: str | None = None
    bos: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> str | Self:
        return replace(self, rows=self.rows[index]) if isinstance(index, slice) else self.rows[index]


def one_string(rows: Sequence[str], between: str) -> str:
    """Rows joined: by `between`, unless they say themselves by what."""
    own = rows.between if isinstance(rows, Prepared) else None
    return (between if own is None else own).join(rows)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows over one run of tokens. Window i is `tokens[starts[i] : starts[i] + lengths[i]]`, behind `bos` if any.

    The token at position p of a window is predicted from those before it in the window, and counts where p is at
    least `first_scored[i]`; the first token of a window counts where there is a `bos` before it.
    """

    tokens: NDArray[np.int64]  # [tokens]
    starts: NDArray[np.int64]  # [windows]
    lengths: NDArray[np.int64]  # [windows]
    first_scored: NDArray[np.int64]  # [windows], at least 1; with a bos at least 0
    scored_bytes: NDArray[np.int64]  # [windows], UTF-8 bytes of the text that the counting tokens stand for
    scored_words: NDArray[np.int64]  # [windows], words of that text
    protocol: str  # all that the result depends on besides the text and the model
    bos: int | None = None  # token that the model sees before each window

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def scored_tokens(self) -> NDArray[np.int64]:
        """Tokens that count, [windows]."""
        return self.lengths - self.first_scored

    def first(self, count: int | None) -> "Windows":
        """The first N windows, with a protocol id of their own; all if None or more than there are."""
        if count is None or count >= len(self):
            return self
        names = ("starts", "lengths", "first_scored", "scored_bytes", "scored_words")
        parts = {name: getattr(self, name)[:count] for name in names}
        return replace(self, protocol=f"{self.protocol}/first-{count}", **parts)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens, and how much of the text each stands for."""

    ids: NDArray[np.int64]  # [tokens]
    text: NDArray[np.int64] | None  # [tokens, 2], bytes and words; None where the tokeniser cannot map tokens to text
    bos: int | None = None  # token that goes before each window

    def first(self, count: int) -> "Tokens":
        return replace(self, ids=self.ids[:count], text=None if self.text is None else self.text[:count])

    @staticmethod
    def join(parts: Sequence["Tokens"]) -> "Tokens":
        texts = [part.text for part in parts if part.text is not None]
        ids = np.concatenate([part.ids for part in parts])  # [tokens]
        return Tokens(ids, np.concatenate(texts) if len(texts) == len(parts) else None, parts[0].bos)


def encode_rows(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool = True) -> Tokens:
    """The tokens of rows, one row after another, each tokenised by itself.

    Every byte of the text belongs to one token: to the one whose span covers it, or, where none does (white space that
    a tokeniser drops), to the next one, and at the end of a row to the row's last. A character that several tokens
    share belongs to the first of them. A word, a run of signs that are not white space, belongs to the token that
    holds its first sign, and ends with its row.

    Args:
        rows: the text.
        tokenizer: fast ones give offsets; for others `text` is None.
        special: add the tokeniser's own special tokens to each row, unless it is prepared; they stand for no text.
    """
    bos = rows.bos if isinstance(rows, Prepared) else None
    special = special and not isinstance(rows, Prepared)
    encoded = tokenizer(list(rows), add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    per_row = [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
    ids = np.concatenate(per_row)  # [tokens]
    if not tokenizer.is_fast:
        return Tokens(ids, None, bos)
    row_starts = np.cumsum([0, *(len(row) for row in rows)])  # [rows + 1], in characters of all rows together
    ends = np.concatenate([_ends(spans, row_starts[i : i + 2]) for i, spans in enumerate(encoded["offset_mapping"])])
    ends = np.maximum.accumulate(ends)  # [tokens]
    begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends  # [tokens]
    before = _running_counts(rows, row_starts)  # [characters + 1, 2]
    return Tokens(ids, before[ends] - before[begins], bos)


def cut(
    encoded: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    *,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    first_scored: NDArray[np.int64],
    protocol: str,
) -> Windows:
    """Windows over tokens, with the bytes and words of what counts in each.

    With a bos before it, the first token of a window counts too, unless an earlier window holds it.

    Where the tokeniser gives no offsets, the counting tokens of each window are decoded and the text counted.
    """
    if encoded.bos is not None:
        new = starts >= np.concatenate([[0], (starts + lengths)[:-1]])  # [windows]
        first_scored = np.where(new, 0, first_scored)
        protocol += "/bos"
    scored = [slice(*edges) for edges in zip(starts + first_scored, starts + lengths, strict=True)]
    if encoded.text is None:
        texts = [tokenizer.decode(encoded.ids[part], skip_special_tokens=True) for part in scored]
        counts = [(len(text.encode()), len(text.split())) for text in texts]
    else:
        counts = [tuple(encoded.text[part].sum(axis=0)) for part in scored]
    scored_bytes, scored_words = np.asarray(counts, dtype=np.int64).reshape(-1, 2).T  # [windows] each
    return Windows(encoded.ids, starts, lengths, first_scored, scored_bytes, scored_words, protocol, encoded.bos)


def _ends(spans: Any, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ends of a row's tokens in characters of all rows together, [tokens]; the last one reaches the end of the row."""
    ends: NDArray[np.int64] = np.asarray([end for _, end in spans], dtype=np.int64) + row[0]  # [tokens]
    if len(ends):
        ends[-1] = row[1]
    return ends


def _running_counts(rows: Sequence[str], row_starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """UTF-8 bytes, and words begun, before each character of all rows together, [characters + 1, 2]."""
    points = np.frombuffer("".join(rows).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)  # [characters]
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)  # [characters], bytes of each in UTF-8
    known, which = np.unique(points, return_inverse=True)
    blank = np.asarray([chr(point).isspace() for point in known], dtype=bool)[which]  # [characters]
    after_blank = np.roll(blank, 1)  # [characters]
    after_blank[row_starts[:-1][row_starts[:-1] < len(points)]] = True
    counts = np.stack([sizes, ~blank & after_blank], axis=1)  # [characters, 2]
    before = np.zeros((len(points) + 1, 2), dtype=np.int64)  # [characters + 1, 2]
    np.cumsum(counts, axis=0, out=before[1:])
    return before
