"""The objective on a model inside DataParallel, DistributedDataParallel and torch.compile."""

import copy
import socket
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.teachers import Teacher


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student and a teacher, the same in every process."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=0,
        )
        made.append(LlamaForCausalLM(config).train())
    return made[0], made[1]


def batch() -> dict[str, Tensor]:
    tokens = torch.randint(64, (4, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "labels": tokens}


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def objective(teacher: PreTrainedModel) -> DistillationObjective:
    return DistillationObjective(Teacher(copy.deepcopy(teacher)), FORWARD_KL, hidden_gain=0.5)


def test_data_parallel_is_taken_off() -> None:
    student, teacher = models()
    loss, terms = objective(teacher)(student, batch(), 24)
    reference = gradients(student, loss)
    # DataParallel repeats the count for each of its devices.
    wrapped = objective(teacher)(nn.DataParallel(student), batch(), torch.tensor([[24], [24]]))
    torch.testing.assert_close(wrapped, (loss, terms))
    torch.testing.assert_close(gradients(student, wrapped[0]), reference)


def rank(number: int, port: int, results: Any) -> None:
    """One process of two, with half of the batch; the trainer multiplies the loss by the number of processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    student, teacher = models()
    wrapped = DistributedDataParallel(student)
    half = {name: value[2 * number : 2 * number + 2] for name, value in batch().items()}
    loss, _ = objective(teacher)(wrapped, half, 24)
    found = gradients(student, 2 * loss)
    if number == 0:
        results.put([gradient.tolist() for gradient in found])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_gradients_of_the_whole_batch() -> None:
    student, teacher = models()
    # SquareHead is a ratio of sums over a micro-batch, so two halves give its mean over halves.
    halves = [{name: value[row : row + 2] for name, value in batch().items()} for row in (0, 2)]
    measure = objective(teacher)
    reference = gradients(student, sum(measure(student, half, 24)[0] for half in halves))  # type: ignore[arg-type]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=rank, args=(number, port, results)) for number in range(2)]
    for process in processes:
        process.start()
    found = [torch.tensor(gradient) for gradient in results.get(timeout=120)]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    torch.testing.assert_close(found, reference)


@pytest.mark.slow
@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_model(called_before: bool) -> None:
    torch._dynamo.reset()
    student, teacher = models()
    loss, terms = objective(teacher)(student, batch())
    reference = gradients(student, loss)
    compiled: Any = torch.compile(student, backend="aot_eager")
    if called_before:
        compiled(**batch())
    measure = objective(teacher)
    for _ in range(3):
        found = measure(compiled, batch())
    torch.testing.assert_close(found, (loss, terms))
    torch.testing.assert_close(gradients(student, found[0]), reference)
