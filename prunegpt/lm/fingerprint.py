"""What makes two tokenisers the same: that they give the same tokens for any text."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase


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
