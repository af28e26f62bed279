"""A tokenizer in the terms of GGUF: tokens, their kinds, merges or scores, and the name of how text is split.

llama.cpp has no tokenizer.json: it knows two kinds of byte-pair encoding, `gpt2` (byte level, with a named
pre-tokenizer) and `llama` (SentencePiece, with a score per token). What a tokenizer does decides which one it is, never
the name of its model; what neither expresses is refused.
"""

import json
from collections.abc import Mapping
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from prunegpt.exporting.base import ExportError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Regular expression of a `Split` before a `ByteLevel` that splits no further, and whether whole words of the vocabulary
# are taken before merges are: the name that llama.cpp has for both (llama-vocab.cpp).
_SPLITS: Mapping[tuple[str, bool], str] = {
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}", False): "dbrx",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_TAIL}", False): "qwen2",
    (_CASED % ("", "", ""), True): "tekken",
    (_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", "{1,3}"), False): "gpt-4o",
}
_SPACE = "▁"
_UNUSED = "[PAD{}]"  # a row of the embedding that no token has
_UNSCORED = -1e3


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Adds the tokenizer of a model.

    Args:
        rows: of the embedding; those beyond the vocabulary get tokens that no text has.

    Raises:
        ExportError: llama.cpp has no such tokenizer.
    """
    kind, pre = tokenizer_kind(tokenizer)
    content = _content(tokenizer)
    model = content["model"]
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {item["id"]: item for item in content["added_tokens"]}
    if max(vocabulary) >= rows:
        raise ExportError(f"a vocabulary must fit its embedding; token {max(vocabulary)} has no row of {rows}.")
    unknown = tokenizer.unk_token_id if kind == "llama" else None
    tokens, kinds = [], []
    for index in range(rows):
        token = vocabulary.get(index, _UNUSED.format(index))
        kinds.append(_kind(index, token, index in vocabulary, added.get(index), unknown, bytes_=kind == "llama"))
        tokens.append(token.replace(_SPACE, " ") if kinds[-1] == TokenType.USER_DEFINED else token)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if kind == "llama":
        writer.add_token_scores(_scores(model["merges"], tokens))
        writer.add_add_space_prefix(_adds_space(content))
    else:
        writer.add_token_merges([" ".join(_pair(merge)) for merge in model["merges"]])
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    writer.add_add_bos_token(len(ids) > len(plain) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > len(plain) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def tokenizer_kind(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What llama.cpp calls a tokenizer and its pre-tokenizer.

    Raises:
        ExportError: it has none like it.
    """
    content = _content(tokenizer)
    model = content["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"a tokenizer must be a byte-pair encoding for GGUF, got {model['type']}. Export a folder instead."
        )
    if model.get("byte_fallback"):
        return "llama", "default"
    if (normalizer := content["normalizer"]) is not None and normalizer["type"] != "NFC":
        raise _no_name(f"its normalizer is {normalizer['type']}")
    steps = content["pre_tokenizer"] or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise _no_name(f"it ends in {json.dumps(last)}")
    before, whole = steps[:-1], bool(model.get("ignore_merges"))
    if last["use_regex"] and not whole:
        if not before:
            return "gpt2", "gpt-2"
        if before == [{"type": "Digits", "individual_digits": True}]:
            return "gpt2", "smollm"
    elif len(before) == 1 and before[0]["type"] == "Split" and before[0]["behavior"].lower() == "isolated":
        pattern = next(iter(before[0]["pattern"].values()))
        if (pattern, whole) in _SPLITS and not before[0]["invert"]:
            return "gpt2", _SPLITS[pattern, whole]
    raise _no_name(f"it splits text by {json.dumps(steps, ensure_ascii=False)}")


def _no_name(why: str) -> ExportError:
    return ExportError(f"a tokenizer must split text as one that llama.cpp knows; {why}. Export a folder instead.")


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """tokenizer.json."""
    if not tokenizer.is_fast:
        raise ExportError(
            f"a tokenizer must be stored as tokenizer.json for GGUF; {type(tokenizer).__name__} is none of the "
            "tokenizers library. Save it as one, or export a folder."
        )
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return content


def _kind(
    index: int, token: str, known: bool, added: Mapping[str, Any] | None, unknown: int | None, *, bytes_: bool
) -> gguf.TokenType:
    if not known:
        return TokenType.UNUSED
    if index == unknown:
        return TokenType.UNKNOWN
    if added is not None:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if bytes_ and len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _scores(merges: list[Any], tokens: list[str]) -> list[float]:
    """SentencePiece merges the pair whose token has the highest score: that of the first merge, counted down."""
    first: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        first.setdefault("".join(_pair(merge)), -float(rank))
    return [first.get(token, _UNSCORED if len(token) > 1 else 0.0) for token in tokens]


def _pair(merge: Any) -> tuple[str, str]:
    """A merge of tokenizer.json, which earlier versions wrote as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _adds_space(content: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text."""
    text = json.dumps([content["normalizer"], content["pre_tokenizer"]])
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text or '"prepend_scheme": "first"' in text
