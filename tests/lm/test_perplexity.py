import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from prunegpt.errors import ModelError
from prunegpt.lm import perplexity
from prunegpt.lm.models import load_model
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.protocols import blocks, evaluation_windows, sliding, stream
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.lm.windows import Windows

FAMILIES = ["tiny_gpt2", "tiny_llama", "tiny_opt"]
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@torch.no_grad()
def token_nats(model: Any, ids: list[int]) -> torch.Tensor:
    """Nats of each token but the first, [tokens - 1], from the whole model's logits in float64."""
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.logsumexp(logits, -1) - logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def by_blocks(model: Any, rows: list[str]) -> float:
    """Mean over blocks of transformers' own loss, as the example reports it."""
    tokens = [ord(sign) for row in rows for sign in row]
    cut = [torch.tensor([tokens[i : i + 32]]) for i in range(0, len(tokens) - 31, 32)]
    with torch.no_grad():
        return sum(model(block, labels=block).loss.item() for block in cut) / len(cut)


def by_stream(model: Any, rows: list[str]) -> float:
    tokens = [ord(sign) for sign in "\n\n".join(rows)]
    nats = [token_nats(model, tokens[i : i + 32]) for i in range(0, len(tokens) - 31, 32)]
    return torch.cat(nats).mean().item()


def by_sliding(model: Any, rows: list[str]) -> float:
    """The loop of the perplexity guide, over sums of tokens rather than means of windows."""
    tokens = [ord(sign) for sign in "\n\n".join(rows)]
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, len(tokens), 12):
        end = min(begin + 32, len(tokens))
        new = min(end - previous_end, end - begin - 1)
        total += token_nats(model, tokens[begin:end])[-new:].sum().item()
        count += new
        previous_end = end
        if end == len(tokens):
            break
    assert count == len(tokens) - 1
    return total / count


CASES: dict[str, tuple[Any, Callable[[Any, list[str]], float]]] = {
    "blocks": (lambda rows, tokenizer: blocks(rows, tokenizer, 32), by_blocks),
    "stream": (lambda rows, tokenizer: stream(rows, tokenizer, 32), by_stream),
    "sliding": (lambda rows, tokenizer: sliding(rows, tokenizer, 32, 12), by_sliding),
}


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
@pytest.mark.parametrize("protocol", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_an_independent_computation(
    family: str,
    protocol: str,
    batch_size: int | str,
    rows: list[str],
    characters: PreTrainedTokenizerFast,
    request: pytest.FixtureRequest,
) -> None:
    model = sharpened(request.getfixturevalue(family))
    cut, expected = CASES[protocol]
    windows = cut(rows, characters)
    assert len(windows) > 14
    found, losses = evaluate(model, windows, batch_size=batch_size)
    assert found.loss == pytest.approx(expected(model, rows), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss), rel=1e-12)
    assert found.finite
    assert found.tokens == windows.scored_tokens.sum()
    assert found.windows == len(windows)
    assert losses.shape == (len(windows), 2)
    assert losses.dtype == np.float64
    assert found.loss == pytest.approx(losses[:, 0].sum() / losses[:, 1].sum(), rel=1e-12)
    assert found.protocol == windows.protocol


def sharpened(model: Any) -> Any:
    """Larger weights, so that tokens differ in their losses."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def test_per_window_losses_are_their_windows(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    windows = sliding(rows, characters, 32, 12)
    _, losses = evaluate(sharpened(tiny_gpt2), windows, batch_size=5)
    for i in (0, 1, len(windows) - 1):
        ids = windows.tokens[windows.starts[i] : windows.starts[i] + windows.lengths[i]].tolist()
        nats = token_nats(tiny_gpt2, ids)[windows.first_scored[i] - 1 :].sum().item()
        assert losses[i, 0] == pytest.approx(nats, rel=1e-5)
    assert windows.lengths[-1] < 32


def test_bits_per_byte_and_word_perplexity(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    """A token of this tokeniser is a byte, so that bits a byte are the loss in bits."""
    text = "\n\n".join(rows)
    found, _ = evaluate(tiny_gpt2, sliding([text], characters, 64))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=1e-12)
    words = len(text.split()) - (not text[0].isspace())  # the first word begins with the token that is not scored
    assert found.word_perplexity == pytest.approx(math.exp(found.loss * (len(text) - 1) / words), rel=1e-9)


def test_head_is_applied_to_few_tokens_at_a_time(
    tiny_llama: Any, characters: Any, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = blocks(rows, characters, 64)
    whole, _ = evaluate(tiny_llama, windows, batch_size=8)
    seen: list[int] = []
    tiny_llama.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.numel() // 128))
    monkeypatch.setitem(perplexity.HEAD_ELEMENTS, "cpu", 10 * 128)
    chunked, _ = evaluate(tiny_llama, windows, batch_size=8)
    assert max(seen) == perplexity.PROBE
    assert set(seen[2:]) <= set(range(1, 11))
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0)), id="cap"
        ),
        pytest.param(lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)), id="scale"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_capped_and_scaled_logits_are_respected(
    model: Callable[[], Any], batch_size: int, characters: Any, rows: list[str]
) -> None:
    torch.manual_seed(0)
    built = sharpened(model())
    windows = stream(rows, characters, 32)
    found, _ = evaluate(built, windows, batch_size=batch_size)
    assert found.loss == pytest.approx(by_stream(built, rows), rel=1e-6)
    with torch.no_grad():
        ids = torch.from_numpy(windows.tokens[:32])[None]
        plain = built.lm_head(built.model(ids).last_hidden_state)
        assert not torch.allclose(plain, built(ids).logits, rtol=1e-2)


def test_mode_gradients_and_random_state_are_left_alone(characters: Any, rows: list[str]) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with torch.enable_grad():
        first, _ = evaluate(model, blocks(rows, characters, 32))
        assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert first.loss == evaluate(model.eval(), blocks(rows, characters, 32))[0].loss


def test_mode_comes_back_after_a_failure(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    tiny_gpt2.train()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_gpt2, blocks(rows, characters, 32), progress=stop)
    assert tiny_gpt2.training


@pytest.mark.parametrize("batch_size", [1, 7])
def test_autocast_around_is_the_precision(tiny_llama: Any, characters: Any, rows: list[str], batch_size: int) -> None:
    windows = stream(rows, characters, 32)
    exact, _ = evaluate(sharpened(tiny_llama), windows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = evaluate(tiny_llama, windows, batch_size=batch_size)
        assert mixed.loss == pytest.approx(by_stream(tiny_llama, rows), rel=1e-4)  # bfloat16 products of other shapes
    assert mixed.loss == pytest.approx(exact.loss, rel=1e-2)
    assert mixed.loss != exact.loss


def test_progress_is_told(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    windows = blocks(rows, characters, 32).first(7)
    told: list[tuple[int, int]] = []
    evaluate(tiny_gpt2, windows, batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_broken_weights_are_told_as_such(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    windows = blocks(rows, characters, 32)
    tiny_gpt2.transformer.h[1].mlp.c_fc.weight.data[0, 0] = math.nan
    found, _ = evaluate(tiny_gpt2, windows)
    assert found.perplexity is None
    assert found.loss is None
    assert not found.finite


def test_loss_too_large_for_a_perplexity_is_infinite(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    tiny_gpt2.transformer.ln_f.weight.data.mul_(1e6)
    found, _ = evaluate(tiny_gpt2, blocks(rows, characters, 32))
    assert found.perplexity is None
    assert found.loss is not None
    assert not found.finite


def test_out_of_memory_halves_an_automatic_batch_only(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    windows = blocks(rows, characters, 32)
    whole, _ = evaluate(tiny_gpt2, windows)
    sizes: list[int] = []

    def four_fit(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("no memory")

    tiny_gpt2.transformer.h[0].register_forward_pre_hook(four_fit)
    assert evaluate(tiny_gpt2, windows)[0].loss == pytest.approx(whole.loss, rel=1e-6)
    assert max(sizes) > 4
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(tiny_gpt2, windows, batch_size=8)


def test_window_that_does_not_fit_the_model(tiny_gpt2: Any, characters: Any, rows: list[str]) -> None:
    with pytest.raises(ModelError, match=r"must fit the model's 64 positions; it has 65 tokens\. Set block_size to 64"):
        evaluate(tiny_gpt2, blocks(rows, characters, 65))


def test_token_outside_the_vocabulary(tiny_gpt2: Any) -> None:
    one = np.ones(1, dtype=np.int64)
    windows = Windows(np.array([5, 6, 128]), 0 * one, 3 * one, one, one, one, "by hand")
    with pytest.raises(ModelError, match=r"in the model's vocabulary of 128; the dataset has token 128"):
        evaluate(tiny_gpt2, windows)


@pytest.mark.slow
@pytest.mark.shared
def test_smollm2_on_wikitext2(smollm2: Path, wikitext2: Path) -> None:
    """The figure known for the first 32 windows of 512 tokens of the file as one string."""
    model = load_model(smollm2, device="cpu", dtype="float32")
    windows = evaluation_windows(
        "stream", load_tokenizer(smollm2), path=wikitext2, split="test", block_size=512, max_windows=32
    )
    assert evaluate(model, windows)[0].perplexity == pytest.approx(24.94, abs=0.005)
