"""Speed by a clock that the models themselves advance: no wall time, no real machine."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn
from transformers import AutoModelForCausalLM

from prunegpt.errors import ModelError
from prunegpt.lm.speed import LiveTensors, generate, measure_speed, processor
from prunegpt.spec.evaluate import SpeedSpec
from tests.support.families import tiny
from tests.support.small import small_gpt2

SPEC = SpeedSpec(prompt=5, generate=4, repeats=6)


class Work:
    """A clock that stands still but for the layers that run: a second each, and half of one for the rest."""

    def __init__(self, *models: nn.Module) -> None:
        self.now = 0.0
        self.order: list[int] = []
        for number, model in enumerate(models):
            model.register_forward_hook(lambda model, _, __, number=number: self._pass(model, number))

    def _pass(self, model: Any, number: int) -> None:
        self.now += model.config.n_layer + 0.5
        self.order.append(number)

    def mark(self) -> float:
        return self.now

    def between(self, first: float, second: float) -> float:
        return second - first


def test_a_model_of_half_the_layers_is_as_much_faster_as_its_layers_say() -> None:
    half, whole = small_gpt2(layers=2), small_gpt2(layers=4)
    clock = Work(half, whole)
    seen: list[tuple[int, int]] = []
    found, times = measure_speed(half, whole, SPEC, clock=clock, progress=lambda *counts: seen.append(counts))
    speed = found.speed
    assert speed is not None
    assert (speed.speedup.low, speed.speedup.value, speed.speedup.high) == (1.8, 1.8, 1.8)
    assert speed.speedup_prefill.value == 1.8
    assert (speed.prefill.value, speed.decode.value, speed.first_token.value) == (2.0, 0.4, 2.5)
    assert (speed.noise, speed.noise_prefill) == (0, 0)
    assert times["model"].tolist() == [[2.5, 7.5, 2.5]] * 6
    assert seen == [(done, 14) for done in range(1, 15)]
    runs = clock.order[:: SPEC.generate]  # a warm-up of each, then pairs that are turned round
    assert runs == [0, 1, *(1, 0, 0, 1) * 3]


def test_a_model_beside_itself_is_as_fast_as_itself() -> None:
    model = small_gpt2(layers=2)
    found, _ = measure_speed(model, model, SPEC, clock=Work(model))
    assert found.speed is not None
    assert found.speed.speedup.value == 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2_moe", "bart", "gemma3n_text", "mamba", "jetmoe"])
def test_tokens_are_those_of_the_model_without_a_cache(family: str) -> None:
    model = tiny(family)
    ids = torch.randint(2, 60, (2, 8), generator=torch.Generator().manual_seed(0))  # [batch, prompt]
    tokens: list[torch.Tensor] = []
    with torch.inference_mode():
        generate(model, ids, 5, Work(), tokens)
        for token in tokens:
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]  # [batch, vocab]
            assert torch.equal(logits.argmax(-1, keepdim=True), token)
            ids = torch.cat([ids, token], dim=1)  # [batch, length]


def test_weights_are_measured_in_memory_of_their_own_and_not_in_that_of_a_file(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = {name: (one.data_ptr(), one.detach().clone()) for name, one in model.state_dict().items()}
    measure_speed(model, model, SPEC, clock=Work(model))
    after = model.state_dict()
    assert all(after[name].data_ptr() != place for name, (place, _) in before.items())
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())
    assert after["lm_head.weight"].data_ptr() == after["transformer.wte.weight"].data_ptr()
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()


def test_nothing_is_left_changed() -> None:
    model = small_gpt2(layers=2).train()
    before = (torch.get_num_threads(), gc.isenabled(), {name: one.clone() for name, one in model.state_dict().items()})
    spec = SPEC.model_copy(update={"threads": 2})
    found, _ = measure_speed(model, model, spec, clock=Work(model), dtype=torch.bfloat16)
    assert "/bfloat16/cpu/2-threads/" in found.protocol
    assert processor() in found.protocol
    assert (torch.get_num_threads(), gc.isenabled()) == before[:2]
    assert model.training
    assert model.dtype == torch.float32
    assert all(torch.equal(one, before[2][name]) for name, one in model.state_dict().items())


@contextmanager
def counted(live: LiveTensors, added: int) -> Iterator[None]:
    before = live.now
    yield
    assert live.now - before == added


def test_live_tensors_are_those_that_something_refers_to() -> None:
    with LiveTensors() as live:
        kept = torch.zeros(100)  # 400 bytes
        with counted(live, 0):
            other = kept + 1
            del other
        with counted(live, 0):
            view = kept.view(10, 10)
            view.add_(1)
        with counted(live, 800):
            parts = [kept * 2, kept * 3]
    assert live.peak == 1200
    assert len(parts) == 2


def test_memory_is_weights_and_what_generation_holds() -> None:
    model = small_gpt2(layers=2)
    weights = sum(one.numel() for one in model.parameters()) * 4
    found = [
        measure_speed(model, model, SpeedSpec(prompt=8, generate=count, repeats=6), clock=Work(model))[0].speed
        for count in (2, 50)
    ]
    short, long = (one.memory for one in found if one)
    cache = 2 * 2 * 32 * 4  # bytes a token: keys and values of two layers, 32 channels each
    assert short >= weights + 9 * cache
    assert long >= weights + 57 * cache
    assert long - short <= 10 * 57 * cache


def test_what_cannot_be_measured_is_refused() -> None:
    model = small_gpt2(layers=1, positions=8)
    with pytest.raises(ModelError, match=r"must fit the 8 positions of GPT2LMHeadModel; they are 9\. Set a shorter"):
        measure_speed(model, model, SPEC)
    other = tiny("openai-gpt")
    with pytest.raises(ModelError, match=r"speed is that of generating with a cache; OpenAIGPTLMHeadModel gives none"):
        measure_speed(other, other, SPEC)
    broken = small_gpt2(layers=1)
    broken.register_forward_hook(lambda *_: {}["no such"])
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot generate token by token with a cache: 'no such'"):
        measure_speed(broken, broken, SPEC)


def test_two_processes_of_a_host_do_not_measure_at_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = small_gpt2(layers=1)
    measure_speed(model, model, SPEC, clock=Work(model))
    (file,) = tmp_path.glob("prunegpt-speed-*.lock")
    held = FileLock(file, thread_local=False)
    held.acquire()
    said: list[str] = []

    def let_go(line: str) -> None:
        said.append(line)
        held.release()

    _, times = measure_speed(model, model, SPEC, clock=Work(model), say=let_go)
    assert "one process at a time" in said[0]
    assert np.isfinite(times["model"]).all()
