"""The tokeniser of the built-in model: byte-level BPE with a vocabulary of 1,024, trained on the built-in text."""

from functools import cache as once
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import PreTrainedTokenizerFast

from prunegpt.builtin import BUILTIN_MODELS
from prunegpt.builtin.text import rows
from prunegpt.errors import ModelError, unknown
from prunegpt.root import publishing, seal, whole

END_OF_TEXT = "<|endoftext|>"
_FOLDER = "builtin-tokeniser-2"  # name in the cache; to be changed with the text or the training


def tokenizer(name: str = "builtin:tiny-gpt2", *, cache: Path | None = None) -> PreTrainedTokenizerFast:
    """The tokeniser of a built-in model; the same one on every machine.

    Args:
        name: a built-in model.
        cache: folder in which it is kept as an ordinary tokeniser folder; default: trained in memory (seconds).

    Raises:
        ModelError: no such built-in model.
    """
    if name not in BUILTIN_MODELS:
        raise ModelError(unknown("built-in model", name, BUILTIN_MODELS))
    if cache is None:
        return _train(name)
    folder = cache / _FOLDER
    if not whole(folder, deep=True):
        with publishing(folder) as temporary:
            _train(name).save_pretrained(temporary)
            seal(temporary)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _train(name: str) -> PreTrainedTokenizerFast:
    model = BUILTIN_MODELS[name]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(model.vocabulary)),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=model.positions,
    )


@once
def _trained(vocabulary: int) -> str:
    """The trained tokeniser as JSON; a process trains it once."""
    bpe = ByteLevelBPETokenizer()
    text = [*rows("pretrain"), *rows("train")]
    bpe.train_from_iterator(text, vocab_size=vocabulary, special_tokens=[END_OF_TEXT], show_progress=False)
    found: str = bpe.to_str()
    return found
