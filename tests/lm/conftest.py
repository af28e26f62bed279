"""A tokeniser of one token a character, for the tiny models of 128 tokens, and some text."""

import random
from collections.abc import Iterator

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def characters() -> PreTrainedTokenizerFast:
    """Token i is the character chr(i); anything else is chr(1)."""
    tokenizer = Tokenizer(WordLevel({chr(i): i for i in range(128)}, unk_token=chr(1)))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=chr(1))


@pytest.fixture(scope="session")
def rows() -> list[str]:
    """Rows of words, some of them empty, as WikiText has them."""
    generator = random.Random(0)
    words = ["and", "the", "weights", "of", "a", "layer", "go", "to", "zero", "in", "steps", "one", "by"]
    return [" ".join(generator.choices(words, k=generator.choice((0, 3, 9, 20)))) for _ in range(24)]
