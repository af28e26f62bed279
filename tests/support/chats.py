"""Chat messages, and tokenisers with a chat template."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '|\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '|' }}{% endgeneration %}{% else %}{{ m['content'] + '|' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}"
)
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}],
    [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "name a colour"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "and another"},
        {"role": "assistant", "content": "blue, or so "},
    ],
    [{"role": "user", "content": "nobody answers this one"}],
]


def chat_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A token per character."""
    tokenizer = Tokenizer(WordLevel({chr(i): i for i in range(128)}, unk_token=chr(1)))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=chr(1), chat_template=template)


def chat_file(path: Path, copies: int = 20) -> Path:
    """The conversations over and over, as a jsonl file."""
    rows = [{"messages": messages} for messages in CHATS] * copies
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def say(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """What TEMPLATE renders, and under it an x for each character of a response."""
    text = marks = ""
    for message in messages:
        head, body = f"<{message['role']}>", f"{message['content']}|"
        text += f"{head}{body}\n"
        marks += " " * len(head) + ("x" if message["role"] == "assistant" else " ") * len(body) + " "
    return text, marks
