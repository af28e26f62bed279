"""What peers are given: the model and text of the options, or tiny ones where it has to be quick."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunegpt.builtin.text import rows
from prunegpt.lm.models import save_model
from prunegpt.lm.tokenizers import load_tokenizer
from tests.bench.harness import Settings
from tests.bench.peers.environments import Unavailable


def needs_text(settings: Settings) -> tuple[Path, Path]:
    """The folders of --model and --text, whole paths.

    Raises:
        Unavailable: they were not given.
    """
    if settings.model is None or settings.text is None:
        raise Unavailable("needs --model FOLDER and --text FOLDER, of a model and of validation.txt and test.txt.")
    return settings.model.resolve(), settings.text.resolve()


def tiny(work: Path) -> tuple[Path, Path]:
    """A folder with a model of two narrow decoder layers, and one with a little text."""
    tokenizer = load_tokenizer("builtin:tiny-gpt2")
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config = LlamaConfig(**shape, **heads, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True)
    model, text = work / "tiny", work / "text"
    save_model(LlamaForCausalLM(config), tokenizer, model)
    text.mkdir()
    for split in ("validation", "test"):
        (text / f"{split}.txt").write_text("".join(rows("validation"))[:8000], encoding="utf-8")
    return model, text
