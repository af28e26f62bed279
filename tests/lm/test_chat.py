"""Chat messages: rendered by the template, responses found in them, packed, and cut into windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunegpt.errors import DataError
from prunegpt.lm.blocks import Blocks, collate
from prunegpt.lm.calibration import calibration_windows
from prunegpt.lm.chat import rendered, responses
from prunegpt.lm.data import pack_training_blocks, read_conversations
from prunegpt.registry import CALIBRATION_MODES, PROTOCOLS
from tests.support.chats import CHATS, MARKED, TEMPLATE, chat_file, chat_tokenizer, say

TEXT, MARKS = ("".join(parts) for parts in zip(*map(say, CHATS), strict=True))


def test_messages_are_read_and_rendered(tmp_path: Path) -> None:
    rows = read_conversations(chat_file(tmp_path / "train.jsonl", copies=2), messages="messages", split="train")
    assert list(rendered(rows, chat_tokenizer())) == [say(messages)[0] for messages in CHATS * 2]


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prompt", "marked"])
def test_a_response_is_what_an_assistant_says_and_the_end_of_its_turn(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    texts = rendered(CHATS, tokenizer)
    found = responses(CHATS, texts, tokenizer)
    assert [[text[slice(*span)] for span in spans] for text, spans in zip(texts, found, strict=True)] == [
        ["four|"],
        ["red|", "blue, or so |"],
        [],
    ]


@pytest.mark.parametrize("size", [8, 13, 30])
def test_packing_marks_the_tokens_of_responses(size: int, tmp_path: Path) -> None:
    """Conversations one behind another; blocks without a response are dropped, and first tokens never count."""
    tokenizer = chat_tokenizer()
    texts = rendered(CHATS * 3, tokenizer)
    spans = responses(CHATS * 3, texts, tokenizer)
    packed = pack_training_blocks(texts, tokenizer, size, spans=spans, folder=tmp_path)
    expected = []
    for start in range(0, len(TEXT * 3) - size + 1, size):
        marks = " " + (MARKS * 3)[start + 1 : start + size]
        if "x" in marks:
            expected.append(((TEXT * 3)[start : start + size], marks))
    assert packed.counted is not None
    found = [
        ("".join(map(chr, tokens)), "".join("x" if mark else " " for mark in marks))
        for tokens, marks in zip(packed.tokens, packed.counted, strict=True)
    ]
    assert found == expected
    assert len(found) > 2
    again = pack_training_blocks(texts, tokenizer, size, spans=spans, folder=tmp_path)
    assert np.array_equal(again.counted, packed.counted)  # type: ignore[arg-type]
    assert pack_training_blocks(texts, tokenizer, size, folder=tmp_path).counted is None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_batch_says_what_is_trained_on() -> None:
    tokens = np.arange(12).reshape(3, 4)
    counted = np.array([[0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]], dtype=bool)
    blocks = Blocks(tokens, counted, limit=2)
    batch = collate([blocks[0], blocks[1]])
    assert batch["labels"].tolist() == [[-100, 1, -100, -100], [-100, -100, 6, 7]]
    assert batch["input_ids"].tolist() == tokens[:2].tolist()
    assert "responses" in batch
    assert blocks.notes == ("loss on responses: 37.5% of the 8 tokens of 2 sequences; others are context",)
    assert "responses" not in collate([Blocks(tokens)[0]])


@pytest.mark.parametrize("name", PROTOCOLS.builtin_names())
def test_protocols_put_nothing_between_conversations(name: str) -> None:
    windows = PROTOCOLS.load(name)(rendered(CHATS * 3, chat_tokenizer()), chat_tokenizer(), 16)
    assert "special-none" in windows.protocol
    assert "".join(map(chr, windows.tokens)) == (TEXT * 3)[: len(windows.tokens)]


@pytest.mark.parametrize("mode", CALIBRATION_MODES.builtin_names())
def test_calibration_windows_are_parts_of_conversations(mode: str) -> None:
    texts = rendered(CHATS * 3, chat_tokenizer())
    for window in calibration_windows(texts, chat_tokenizer(), windows=4, length=20, mode=mode):
        assert "".join(map(chr, window)).strip() in TEXT * 3 + " " + " ".join(texts)


REFUSED: dict[str, tuple[list[Any], str | None, str]] = {
    "no template": (CHATS, None, r"chat messages need a tokeniser with a chat template; this one has none"),
    "no messages": ([[{"text": "a"}]], TEMPLATE, r"conversation 1 fails: .*a list of \{role, content\}"),
    "a refusal of the template": (
        [CHATS[0], CHATS[1]],
        "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}x",
        r"conversation 2 fails: too long\.",
    ),
}


@pytest.mark.parametrize(("chats", "template", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_rendered(chats: list[Any], template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rendered(chats, chat_tokenizer(template))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """As those of thinking models, which leave out what was thought before."""
    dot = "('.' if m['role'] == 'assistant' and not loop.last else '')"
    forgetful = f"{{% for m in messages %}}{{{{ m['role'] + {dot} + m['content'] }}}}{{% endfor %}}"
    tokenizer = chat_tokenizer(forgetful)
    texts = rendered(CHATS, tokenizer)
    with pytest.raises(DataError, match=r"of conversation 2 it renders message 3 otherwise.*\{% generation %\}"):
        responses(CHATS[:2], texts[:2], tokenizer)


def test_columns_that_hold_no_messages(tmp_path: Path) -> None:
    file = chat_file(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"unknown column of messages 'message'\. Did you mean 'messages'"):
        read_conversations(file, messages="message", split="train")
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"holds lists of \{role, content\}; text of .* holds strings"):
        read_conversations(tmp_path / "test.jsonl", messages="text", split="test")
    (tmp_path / "plain.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"read from \.jsonl, \.json or \.parquet files; .*plain\.txt is plain text"):
        read_conversations(tmp_path / "plain.txt", messages="text", split="train")
