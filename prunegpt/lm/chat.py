"""Chat messages as text: a tokeniser's chat template renders them, and says which part of it is a response."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from prunegpt.errors import DataError
from prunegpt.lm.data import Spans
from prunegpt.lm.windows import Prepared

RESPONSE = "assistant"  # the role whose messages are responses
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def rendered(conversations: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Each conversation as the text that the model sees; its special tokens are in it, and nothing goes between two.

    Args:
        conversations: lists of {role, content}, as `read_conversations` gives them.

    Raises:
        DataError: the tokeniser has no chat template, or it refuses a conversation.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "chat messages need a tokeniser with a chat template; this one has none. Name that of a chat model of the "
            "family as model.tokenizer, or put a chat_template.jinja beside this one."
        )
    texts = [
        _rendered(messages, tokenizer, f"conversation {number}") for number, messages in enumerate(conversations, 1)
    ]
    return Prepared(texts, between="")


def prompts_of(conversations: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each conversation up to its last response, with the generation prompt behind it.

    Raises:
        DataError: as :func:`rendered`.
    """
    rendered(conversations[:1], tokenizer)
    found = []
    for number, messages in enumerate(conversations, 1):
        asked = list(messages)
        while asked and asked[-1].get("role") == RESPONSE:
            asked.pop()
        found.append(_rendered(asked, tokenizer, f"conversation {number}", add_generation_prompt=True))
    return found


def responses(conversations: Sequence[Any], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Spans]:
    """The parts of each rendered conversation that are responses, in characters.

    A response is what a template marks with {% generation %}. Where it marks nothing it is what an assistant's message
    adds behind the generation prompt: the content and the end of the turn, without white space behind that.

    Raises:
        DataError: tokens cannot be mapped to text, or the template renders the beginning of a conversation in another
            way by itself than within the whole.
    """
    if not tokenizer.is_fast:
        raise DataError(
            "loss_on: responses needs a fast tokeniser, which maps tokens to text; this one is not. Save it once as "
            "tokenizer.json, or use loss_on: all."
        )
    template = tokenizer.get_chat_template()
    if _GENERATION.search(template):
        found = render_jinja_template(
            conversations=[_plain(messages) for messages in conversations],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        return [list(spans) for spans in found[1]]
    pairs = enumerate(zip(conversations, texts, strict=True), 1)
    return [_behind_prompts(_plain(messages), text, tokenizer, number) for number, (messages, text) in pairs]


def _behind_prompts(
    messages: Sequence[Mapping[str, Any]], text: str, tokenizer: PreTrainedTokenizerBase, number: int
) -> Spans:
    spans = []
    what = f"conversation {number}"
    for place, message in enumerate(messages):
        if message.get("role") != RESPONSE:
            continue
        before = _rendered(messages[:place], tokenizer, what, add_generation_prompt=True)
        through = _rendered(messages[: place + 1], tokenizer, what)
        if not (through.startswith(before) and text.startswith(through)):
            raise DataError(
                f"loss_on: responses needs a chat template that renders the beginning of a conversation as it does "
                f"within the whole; of {what} it renders message {place + 1} otherwise. Use a template that marks "
                f"responses with {{% generation %}}, conversations of one turn that begin with a user's message, or "
                f"loss_on: all."
            )
        spans.append((len(before), len(through.rstrip())))
    return spans


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Messages without the fields that only others of their dataset have."""
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _rendered(messages: Any, tokenizer: PreTrainedTokenizerBase, what: str, **options: Any) -> str:
    try:
        text = tokenizer.apply_chat_template(_plain(messages), tokenize=False, **options)
    except (TemplateError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the chat template must render every conversation; {what} fails: {' '.join(str(error).split())}. Each is "
            f"a list of {{role, content}}; correct or remove it."
        ) from error
    return str(text)
