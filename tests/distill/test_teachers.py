import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)

from prunegpt.distill.head import OWN_LOGITS, Head, head_of, usable_head
from prunegpt.distill.states import run, unwrap
from prunegpt.distill.teachers import Teacher, check_tokenizers, freeze
from prunegpt.errors import DistillationError
from tests.support.toys import hooked

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])))


def test_equal_tokenizers_share_all_tokens() -> None:
    assert check_tokenizers(tokenizer("u", "a", "b"), tokenizer("u", "a", "b")) == 3


def test_the_first_difference_is_named() -> None:
    with pytest.raises(DistillationError, match=r"id 1 is 'a' to the student and 'b' to the teacher"):
        check_tokenizers(tokenizer("u", "a", "b"), tokenizer("u", "b", "a"))


@pytest.mark.parametrize(("longer", "who"), [(0, "student"), (1, "teacher")])
def test_a_longer_vocabulary_is_named(longer: int, who: str) -> None:
    pair = [tokenizer("u", "a"), tokenizer("u", "a")]
    pair[longer] = tokenizer("u", "a", "extra")
    with pytest.raises(
        DistillationError, match=rf"have {len(pair[0])} and {len(pair[1])} tokens: id 2 is 'extra' to the {who}"
    ):
        check_tokenizers(pair[0], pair[1])


def test_a_frozen_model_is_in_evaluation_mode_and_takes_no_gradient(tiny_gpt2: GPT2LMHeadModel) -> None:
    frozen = freeze(tiny_gpt2.train(), torch.bfloat16)
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_states_and_head_give_the_models_logits(family: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    tokens = torch.randint(128, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    whole = model(**inputs, output_hidden_states=True)
    states = run(model, inputs, hidden=True)
    torch.testing.assert_close(head_of(model).logits(states.last), whole.logits)
    torch.testing.assert_close(states.logits, whole.logits[:, -1])
    torch.testing.assert_close(states.hidden, whole.hidden_states)
    assert states.attentions == ()
    assert run(model, inputs).hidden == ()
    assert not hooked(model.get_decoder())


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**SMALL, final_logit_softcapping=0.5)),
        (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.25)),
        (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=8.0)),
    ],
)
def test_scaled_and_capped_logits(model_class: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = model_class(config).eval()
    tokens = torch.randint(64, (1, 5))
    states = run(model, {"input_ids": tokens})
    torch.testing.assert_close(head_of(model).logits(states.last), model(tokens).logits)
    plain = Head(model.get_output_embeddings().weight)
    assert not torch.allclose(plain.logits(states.last), model(tokens).logits, rtol=0.01)


def test_logits_that_are_made_otherwise_are_the_models_own(tiny_gpt2: GPT2LMHeadModel) -> None:
    class Odd(GPT2LMHeadModel):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            outputs = super().forward(*arguments, **options)
            outputs.logits = outputs.logits * 1.5
            return outputs

    inputs = {"input_ids": torch.tensor([[1, 2], [3, 4]])}
    teacher = Teacher(Odd(tiny_gpt2.config))
    states = teacher.run(inputs)
    assert teacher.head is OWN_LOGITS
    torch.testing.assert_close(states.last, teacher.model(**inputs).logits)
    torch.testing.assert_close(teacher.common_head.logits(states.last), states.last)
    ours = Teacher(tiny_gpt2)
    assert ours.run(inputs).last.shape == (2, 2, 32)
    assert ours.head.weight is not None


def test_logits_that_are_not_finite_are_left_to_the_guard(tiny_gpt2: GPT2LMHeadModel) -> None:
    model = copy.deepcopy(tiny_gpt2)
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    assert usable_head(model, {"input_ids": torch.tensor([[1, 2]])}).weight is not None


def test_a_teacher_runs_without_gradients_and_counts_its_tokens(tiny_gpt2: GPT2LMHeadModel) -> None:
    teacher = Teacher(tiny_gpt2.train(), dtype=torch.bfloat16, vocabulary=100)
    assert teacher.blocks == 2
    states = teacher.run({"input_ids": torch.tensor([[1, 2, 3]])}, hidden=True)
    assert not states.last.requires_grad
    assert not states.last.is_inference()  # a hidden term has to save it for backward
    assert states.last.dtype == torch.bfloat16
    assert teacher.common_head.weight.shape == (100, 32)
    with pytest.raises(DistillationError, match="tokeniser has 129 tokens and the head 128 rows"):
        Teacher(tiny_gpt2, vocabulary=129)


def test_models_without_an_output_layer(tiny_gpt2: GPT2LMHeadModel) -> None:
    with pytest.raises(DistillationError, match="GPT2Model has none"):
        Teacher(GPT2Model(GPT2Config(vocab_size=8, n_embd=4, n_head=1, n_layer=1, bos_token_id=0, eos_token_id=0)))
    with pytest.raises(DistillationError, match="got Linear"):
        unwrap(nn.Linear(1, 1))


def test_wrappers_come_off(tiny_gpt2: GPT2LMHeadModel) -> None:
    assert unwrap(nn.DataParallel(tiny_gpt2)) is tiny_gpt2
    assert unwrap(torch.compile(tiny_gpt2)) is tiny_gpt2  # type: ignore[arg-type]


def test_attention_maps_need_eager_attention(tiny_llama: Any) -> None:
    tokens = {"input_ids": torch.tensor([[1, 2, 3]])}
    with pytest.raises(DistillationError, match=r"LlamaForCausalLM runs 'sdpa'.*attn_implementation='eager'"):
        run(tiny_llama, tokens, attentions=True)
    tiny_llama.set_attn_implementation("eager")
    states = run(tiny_llama, tokens, attentions=True)
    assert [each.shape for each in states.attentions] == [(1, 4, 3, 3)] * 2
