import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prunegpt.builtin import BUILTIN_MODELS
from prunegpt.builtin.text import rows
from prunegpt.builtin.tokenizer import END_OF_TEXT, tokenizer
from prunegpt.errors import ModelError
from prunegpt.lm.tokenizers import load_tokenizer, tokenizer_fingerprint


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return tokenizer()


def test_text_comes_back_whole(trained: PreTrainedTokenizerFast) -> None:
    for text in (*rows("validation")[:5], "naïve 漢字 🙂 \n  x"):
        assert trained.decode(trained(text).input_ids) == text


def test_vocabulary_is_full_and_used(trained: PreTrainedTokenizerFast) -> None:
    assert len(trained) == BUILTIN_MODELS["builtin:tiny-gpt2"].vocabulary
    assert trained.convert_tokens_to_ids(END_OF_TEXT) == trained.eos_token_id == trained.bos_token_id == 0
    text = "".join(rows("train"))
    ids = trained(text, verbose=False).input_ids
    assert len(set(ids)) > 800
    assert len(text) / len(ids) > 2.5
    assert 0 not in ids


def test_held_out_text_has_enough_tokens(trained: PreTrainedTokenizerFast) -> None:
    assert sum(map(len, trained(rows("validation"), verbose=False).input_ids)) >= 30_000


def test_another_process_trains_the_same_tokeniser(trained: PreTrainedTokenizerFast) -> None:
    code = (
        "from prunegpt.builtin.tokenizer import tokenizer; from prunegpt.lm.tokenizers import tokenizer_fingerprint;"
        "print(tokenizer_fingerprint(tokenizer()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == tokenizer_fingerprint(trained)


def test_it_is_kept_as_an_ordinary_folder(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    kept = load_tokenizer("builtin:tiny-gpt2", cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "tokenizer.json").stat().st_mtime_ns
    again = load_tokenizer("builtin:tiny-gpt2", cache=tmp_path)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == stamp
    ordinary = AutoTokenizer.from_pretrained(folder)
    assert len({tokenizer_fingerprint(one) for one in (trained, kept, again, ordinary)}) == 1
    assert again.model_max_length == ordinary.model_max_length == 128
    assert again.eos_token == END_OF_TEXT


def test_unknown_model() -> None:
    with pytest.raises(ModelError, match=r"unknown built-in model 'builtin:gpt'\..*Valid: builtin:tiny-gpt2"):
        tokenizer("builtin:gpt")
