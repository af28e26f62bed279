"""Tokenisers: from a hub id, a folder, a GGUF file or the built-in model, checked before a text goes through them."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prunegpt.builtin import is_builtin
from prunegpt.errors import ModelError
from prunegpt.lm.located import explained, locate
from prunegpt.planning.sources import TOKENIZER, has_tokenizer, no_tokenizer, tokenizer_files
from prunegpt.root import read_json

_SPECIAL = 64  # tokens that a tokeniser may put around every text
_GROWTH = 1024  # signs that its normaliser may make of one
# Names of pre-tokenizers in GGUF that split digits before they split words (llama.cpp, llama-vocab.cpp).
_SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
_PLACES = frozenset({"name_or_path", "tokenizer_file", "vocab_file", "merges_file"})  # where a tokeniser came from
_TOKENIZERS: dict[tuple[str, str, str], PreTrainedTokenizerBase] = {}  # class, content, settings


def load_tokenizer(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    cache: Path | None = None,
) -> PreTrainedTokenizerBase:
    """The tokeniser of a model: one object for all that are alike in a process, so do not change what you get.

    Args:
        source: hub id, local folder, path of a .gguf file, or builtin:NAME.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: let the repository run its own code.
        code_revision: branch, tag or commit of that code, where it is in another repository.
        cache: folder in which the built-in tokeniser is kept once trained; default: trained in memory.

    Raises:
        ModelError: the source is missing or has no tokeniser.
    """
    if is_builtin(str(source)):
        from prunegpt.builtin.tokenizer import tokenizer

        return _shared(tokenizer(str(source), cache=cache))
    name, options = locate(source, revision, trust_remote_code, weights=False)
    if trust_remote_code and code_revision:
        options["code_revision"] = code_revision
    with explained(source, "tokeniser"):
        _check_place(source, Path(name))
    local = Path(name) if Path(name).is_dir() and "gguf_file" not in options else None
    if local and not trust_remote_code and not has_tokenizer(tokenizer_files(local, code=False)):
        raise ModelError(no_tokenizer(source))
    with explained(source, "tokeniser"), _its_package(source, local):
        found = AutoTokenizer.from_pretrained(name, **options)
        if "gguf_file" in options:
            _split_digits(found, Path(name) / options["gguf_file"])
        found = _shared(found)
        _check_growth(source, found)
        tokens = found("some text", add_special_tokens=False)["input_ids"]
    if not tokens:  # what transformers makes up without any file
        raise ModelError(no_tokenizer(source))
    return found


def _split_digits(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Splits numbers where a GGUF file asks for it: transformers reads these names as GPT-2's pre-tokenizer."""
    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SPLIT_DIGITS:
        digits, words = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, words])


@contextmanager
def _its_package(source: str | Path, folder: Path | None) -> Iterator[None]:
    """Explains what fails where a vocabulary is stored in the format of a package, such as sentencepiece."""
    try:
        yield
    except Exception as error:  # transformers tries several packages, and raises what the last one did
        if folder is None or (folder / TOKENIZER).is_file() or isinstance(error, ModelError):
            raise
        told = str(error).strip().splitlines()
        raise ModelError(
            f"a tokeniser must be stored as {TOKENIZER}, or in a format whose package is installed; that of {source} "
            f"is neither: {told[0].rstrip('.') if told else type(error).__name__}. Save it once where its package is "
            f"installed: AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW) writes {TOKENIZER}."
        ) from error


def _check_place(source: str | Path, place: Path) -> None:
    """A vocabulary that tokenizer_config.json takes from another folder is in no key, and may change unseen."""
    config = place / "tokenizer_config.json"
    given = read_json(config) if config.is_file() else {}
    for name in ("vocab", "merges"):
        if isinstance(file := given.get(name), str):
            raise ModelError(
                f"a tokeniser must be stored in one folder; tokenizer_config.json of {source} takes its {name} from "
                f"{file}. Copy that file into the folder and remove the entry."
            )


def _check_growth(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokeniser gives about as many tokens as a text has signs: rules that multiply them would fill the memory.

    Those are special tokens around every document, and text that its normaliser inserts.
    """
    special = tokenizer.num_special_tokens_to_add()
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    rules = json.loads(normalizer.__getstate__()) if normalizer is not None else {}
    growth = math.prod(max(1, len(text)) for text in _inserted(rules))
    for what, count, most in (("special tokens around a text", special, _SPECIAL), ("signs for one", growth, _GROWTH)):
        if count > most:
            raise ModelError(
                f"a tokeniser must give about as many tokens as a text has signs; that of {source} puts in up to "
                f"{count:,} {what}, and {most} are allowed. Take the tokeniser from where the model was trained."
            )


def _inserted(rule: Any) -> Iterator[str]:
    """The strings that a normaliser, or one of a sequence, inserts."""
    if isinstance(rule, dict):
        yield from (rule[name] for name in ("content", "prepend") if isinstance(rule.get(name), str))
        for each in rule.get("normalizers") or ():
            yield from _inserted(each)


def _shared(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The first tokeniser of this process that is like this one.

    The tokenizers library keeps the words that each object has split, in every thread, beyond the object's life: a
    worker that loads a tokeniser for each of its trials would grow with every one of them.
    """
    if not tokenizer.is_fast:
        return tokenizer
    content = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _PLACES}
    alike = type(tokenizer).__name__, content, repr([*sorted(settings.items()), tokenizer.chat_template])
    return _TOKENIZERS.setdefault(alike, tokenizer)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Twelve hexadecimal digits of a hash of all that decides a tokeniser's output.

    A tokeniser that is saved and loaded again keeps its fingerprint; padding and truncation, which a call can set,
    do not count.
    """
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
        content["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        content["ends"] = tokenizer("a")["input_ids"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
