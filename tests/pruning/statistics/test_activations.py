"""Blocks run one at a time against the model run as a whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError
from prunegpt.lm.views import decoder_blocks
from prunegpt.pruning.statistics.activations import StopForward, capture, check_windows
from tests.pruning.statistics.families import FAMILIES

Make = Callable[[str], Any]


def entering(model: Any, windows: Tensor) -> list[Tensor]:
    """The hidden states in front of each block, and behind the last one, in a plain pass."""
    _, blocks = decoder_blocks(model)
    found: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    with torch.no_grad():
        model(input_ids=windows)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("micro_batch", [1, 2, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_one_at_a_time_are_the_model(
    make_model: Make, windows: Tensor, family: str, micro_batch: int | None, attention: str
) -> None:
    model = make_model(family)
    model.set_attn_implementation(attention)
    expected = entering(model, windows)
    _, blocks = decoder_blocks(model)
    states = capture(model, blocks, windows, micro_batch=micro_batch)
    for index in range(len(blocks)):
        torch.testing.assert_close(states.hidden, expected[index])
        with torch.no_grad():
            states.run(index, keep=False)
            torch.testing.assert_close(states.hidden, expected[index])
            states.run(index, keep=True)
    torch.testing.assert_close(states.hidden, expected[-1])
    assert not torch.allclose(expected[0], expected[-1], atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was(make_model: Make, windows: Tensor, family: str) -> None:
    model = make_model(family)
    with torch.no_grad():
        before = model(input_ids=windows).logits
        capture(model, decoder_blocks(model)[1], windows)
        torch.testing.assert_close(model(input_ids=windows).logits, before, rtol=0, atol=0)
    assert all("forward" not in block.__dict__ for block in decoder_blocks(model)[1])


def test_blocks_that_return_tuples_and_own_a_forward_are_taken_as_they_are(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    expected = entering(model, windows)
    _, blocks = decoder_blocks(model)

    class Tupled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return self.inner(hidden_states, *args, **kwargs), None

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.position = model.transformer.wte, model.transformer.wpe
            self.blocks = nn.ModuleList([Tupled(block) for block in blocks])

        def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
            hidden = self.embed(input_ids) + self.position(torch.arange(input_ids.shape[1]))
            for block in self.blocks:
                hidden = block(hidden_states=hidden)[0]
            return hidden

    own = Model().eval()
    marker = own.blocks[0].forward
    own.blocks[0].forward = marker
    states = capture(own, own.blocks, windows, micro_batch=2)
    assert own.blocks[0].__dict__["forward"] is marker
    with torch.no_grad():
        states.run(0, keep=True)
        states.run(1, keep=True)
    torch.testing.assert_close(states.hidden, expected[-1])


def test_what_micro_batches_have_in_common_is_held_once(make_model: Make, windows: Tensor) -> None:
    model = make_model("llama")
    states = capture(model, decoder_blocks(model)[1], windows[:4], micro_batch=2)
    first, second = (calls[0].kwargs["position_embeddings"][0] for calls in states._calls)
    assert first is second


def test_an_output_that_was_broken_off_cannot_be_kept(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    _, blocks = decoder_blocks(model)
    states = capture(model, blocks, windows)

    def stop(module: nn.Module, args: Any) -> None:
        raise StopForward

    blocks[0].mlp.register_forward_pre_hook(stop)
    states.run(0, keep=False)
    with pytest.raises(StopForward):
        states.run(0, keep=True)


def test_hidden_states_can_wait_on_the_cpu(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    _, blocks = decoder_blocks(model)
    there, here = (capture(model, blocks, windows, offload=offload) for offload in (True, False))
    with torch.no_grad():
        there.run(0, keep=True)
        here.run(0, keep=True)
    torch.testing.assert_close(there.hidden, here.hidden)


def test_calibration_must_be_windows_of_tokens() -> None:
    with pytest.raises(PruningError, match=r"wanda needs activations or gradients; no calibration"):
        check_windows(None, "wanda")
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(0, 3, dtype=torch.int64)):
        with pytest.raises(PruningError, match=r"int64 token ids \[windows, length\]"):
            check_windows(wrong, "wanda")


def test_a_micro_batch_has_a_window(make_model: Make, windows: Tensor) -> None:
    model = make_model("gpt2")
    with pytest.raises(PruningError, match=r"micro_batch must be at least 1 window, got 0"):
        capture(model, decoder_blocks(model)[1], windows, micro_batch=0)
