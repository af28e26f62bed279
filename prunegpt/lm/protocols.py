"""How a text becomes windows: the protocols under which perplexities are published.

Figures of different protocols are not comparable; each carries its protocol's id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prunegpt.errors import DataError
from prunegpt.lm.data import BLANK_LINE, ROWS_A_BATCH, Split, read_split, require_tokens
from prunegpt.lm.tokenizers import tokenizer_fingerprint
from prunegpt.lm.windows import Prepared, Tokens, Windows, cut, encode_rows, one_string
from prunegpt.registry import PROTOCOLS


@dataclass(frozen=True)
class Protocol:
    """A named way of cutting text into windows; a pure function that also says what text it takes.

    `cut(rows, tokenizer, block_size, stride)` gives the windows; stride is None for protocols that have none.
    """

    name: str
    by_row: bool  # takes the rows of the text (lines of a file); else its documents (a file whole)
    cut: Callable[[Sequence[str], PreTrainedTokenizerBase, int, int | None], Windows]

    def __call__(
        self,
        rows: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        stride: int | None = None,
        *,
        bos: bool = False,
    ) -> Windows:
        """The windows of a text.

        Args:
            rows: rows or documents, by `by_row`.
            tokenizer: the model's tokeniser.
            block_size: tokens per window, at least 2.
            stride: tokens between windows, where the protocol has one.
            bos: the first token of each window is the tokeniser's bos; it puts no other special tokens.

        Raises:
            DataError: the text is too short for one window, the window or stride is out of its range, or there is no
                bos token.
        """
        if block_size < 2:
            raise DataError(f"a window must have at least 2 tokens; block_size is {block_size}. Use 2 or more.")
        if not len(rows):
            raise DataError("the dataset has no row. Give another split or file.")
        if bos:
            rows = with_bos(rows, tokenizer)
        return self.cut(rows, tokenizer, block_size - bos, stride)


def with_bos(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """The same rows, whose windows begin with the tokeniser's bos.

    Raises:
        DataError: it has none.
    """
    if tokenizer.bos_token_id is None:
        raise DataError(
            "bos: true needs a tokeniser with a bos token; this one has none: its model was trained without. Remove it."
        )
    prepared = rows if isinstance(rows, Prepared) else Prepared(rows)
    return replace(prepared, bos=int(tokenizer.bos_token_id))


def evaluation_windows(
    protocol: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str,
    block_size: int,
    stride: int | None = None,
    max_windows: int | None = None,
    bos: bool = False,
    **source: Any,
) -> Windows:
    """Reads a split in the form that a protocol takes, and cuts it into windows.

    Args:
        protocol: name of a registered protocol.
        tokenizer: the model's tokeniser.
        split, source: the text, as `prunegpt.lm.data.read_split` takes it.
        block_size: tokens per window.
        stride: tokens between windows, where the protocol has one.
        max_windows: use only the first N.
        bos: each window begins with the tokeniser's bos.

    Raises:
        UnknownPartError: no such protocol.
        DataError: the text cannot be read or is too short.
    """
    chosen: Protocol = PROTOCOLS.load(protocol)
    read = read_split(split=split, whole=not chosen.by_row, **source)
    return windows_of(read, protocol, tokenizer, block_size=block_size, stride=stride, max_windows=max_windows, bos=bos)


def windows_of(
    read: Split,
    protocol: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int,
    stride: int | None = None,
    max_windows: int | None = None,
    bos: bool = False,
) -> Windows:
    """The windows of a split that was read; arguments are those of :func:`evaluation_windows`."""
    chosen: Protocol = PROTOCOLS.load(protocol)
    windows = chosen(read.rows, tokenizer, block_size, stride, bos=bos)
    if read.column:  # nobody named it, or it holds messages: what it was is part of the figure
        windows = replace(windows, protocol=f"{windows.protocol}/column-{read.column}")
    return windows.first(max_windows)


def _blocks(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, _stride: int | None) -> Windows:
    """The evaluation of transformers' causal-language-modelling example, examples/pytorch/language-modeling/run_clm.py.

    Each row is tokenised with the tokeniser's own special tokens. Within each batch of 1,000 rows the tokens are
    concatenated and cut into blocks, and what is left of the batch is dropped. All blocks have one size, so that the
    mean over tokens is the example's mean over blocks.
    """
    kept: list[Tokens] = []
    longest = 0
    for start in range(0, len(rows), ROWS_A_BATCH):
        batch = encode_rows(rows[start : start + ROWS_A_BATCH], tokenizer)
        longest = max(longest, len(batch.ids))
        kept.append(batch.first(len(batch.ids) // block_size * block_size))
    require_tokens(longest, block_size, f"a block of {block_size} tokens in one batch of {ROWS_A_BATCH} rows")
    tokens = Tokens.join(kept)
    special = "special-none" if isinstance(rows, Prepared) else "special-each"
    return _side_by_side(tokens, tokenizer, block_size, _identity("blocks", tokenizer, str(block_size), special))


def _strings(name: str, between: str, documents: int | None = None, windows: int | None = None) -> Protocol:
    """A protocol that makes one string of its rows: windows side by side, what is left dropped.

    The tokeniser adds its special tokens once; a single row, such as a text file whole, is taken as it is, without.

    Args:
        between: joins the rows.
        documents: only the first N rows are read.
        windows: only the first N windows are used.
    """

    def cut_rows(
        rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, _stride: int | None
    ) -> Windows:
        tokens, special = _tokens_of(rows[:documents], tokenizer, between)
        require_tokens(len(tokens.ids), block_size, f"a window of {block_size} tokens")
        tokens = tokens.first(min(len(tokens.ids) // block_size, windows or len(tokens.ids)) * block_size)
        return _side_by_side(tokens, tokenizer, block_size, _identity(name, tokenizer, str(block_size), special))

    return Protocol(name, by_row=False, cut=cut_rows)


def _sliding(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, stride: int | None) -> Windows:
    """The strided evaluation of transformers' perplexity guide: windows overlap and only new tokens count.

    The text is one string as in `stream`. Every token but the first counts once (where the stride is a whole window,
    every token but the first of each window), the last window may be shorter, and nothing is dropped. The guide weights
    each later window by one token less than it scores; here every token weighs the same.
    """
    step = max(1, block_size // 2) if stride is None else stride
    if not 1 <= step <= block_size:
        raise DataError(f"stride must be from 1 to the window's {block_size} tokens, got {step}. Use half a window.")
    tokens, special = _tokens_of(rows, tokenizer, BLANK_LINE)
    count = len(tokens.ids)
    require_tokens(count, 2, "a window")
    starts = np.arange(0, max(count - block_size, 0) + step, step)  # [windows]
    ends = np.minimum(starts + block_size, count)  # [windows]
    new_from = np.concatenate([[0], ends[:-1]])  # [windows], first token that no earlier window scored
    first_scored = np.maximum(new_from - starts, 1)  # [windows]
    some = ends - starts > first_scored  # [windows]; a last window of a single token scores none
    return cut(
        tokens,
        tokenizer,
        starts=starts[some],
        lengths=(ends - starts)[some],
        first_scored=first_scored[some],
        protocol=_identity("sliding", tokenizer, str(block_size), f"stride-{step}", special),
    )


def _tokens_of(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, between: str) -> tuple[Tokens, str]:
    """The rows as one string of tokens, and how special tokens were added, for the protocol's id."""
    text = [one_string(rows, between)]
    if isinstance(rows, Prepared):
        return encode_rows(replace(rows, rows=text), tokenizer), "special-none"
    many = len(rows) > 1
    return encode_rows(text, tokenizer, special=many), "special-once" if many else "special-none"


def _side_by_side(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, block_size: int, protocol: str) -> Windows:
    starts = np.arange(0, len(tokens.ids), block_size)  # [windows]
    return cut(
        tokens,
        tokenizer,
        starts=starts,
        lengths=np.full_like(starts, block_size),
        first_scored=np.ones_like(starts),
        protocol=protocol,
    )


def _identity(name: str, tokenizer: PreTrainedTokenizerBase, *pieces: str) -> str:
    return "/".join([name, *pieces, f"tokeniser-{tokenizer_fingerprint(tokenizer)}", "token-mean"])


blocks = Protocol("blocks", by_row=True, cut=_blocks)
stream = _strings("stream", BLANK_LINE)
ptb_sparsegpt = _strings("ptb-sparsegpt", " ")
c4_sparsegpt = _strings("c4-sparsegpt", " ", documents=1100, windows=256)
sliding = Protocol("sliding", by_row=False, cut=_sliding)
