"""The processes that train a trial together: who we are among them, and what they have to agree on.

Every process runs the same chain of stages. The first one alone looks things up, measures, writes and publishes; what
it finds decides for all. A single process is the first of one, and nothing here costs it anything.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from prunegpt.errors import PruneGPTError

_PATIENCE = timedelta(days=30)  # while the first process prunes or measures; who starts the processes sees to deaths


def rank() -> int:
    """Our number, from 0."""
    return distributed.get_rank() if _together() else 0


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _together() else 1


def leads() -> bool:
    """Whether we are the first."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes for as long as the block lasts, where the environment (that of torchrun) names some.

    Process N computes on the Nth CUDA device. Tensors on a CPU travel by gloo, those on CUDA devices by NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _together():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if sys.platform == "linux" and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine needs no name that others could find
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        if sys.exc_info()[0] is None:  # after a failure the others may wait elsewhere
            distributed.destroy_process_group()


def wait() -> None:
    """Until all processes have come here."""
    if _together():
        total([0.0])


def agree(values: Sequence[float]) -> list[float]:
    """What the first process says, for all."""
    if not _together():
        return list(values)
    sent = torch.tensor(list(values), dtype=torch.float64)  # [values]
    distributed.broadcast(sent, src=0)
    return [float(value) for value in sent]


def share(tensors: Iterable[Tensor]) -> None:
    """Makes tensors, in place, what they are to the first process."""
    if not _together():
        return
    for tensor in tensors:
        dense = tensor.detach().contiguous()
        distributed.broadcast(dense.view(torch.uint8), src=0)
        tensor.detach().copy_(dense)


def joined_rows(part: Tensor, rows: Sequence[int]) -> Tensor:
    """What all processes have of a matrix, one below the other: [sum of rows, columns].

    Args:
        part: ours, [rows of ours, columns].
        rows: how many each process has.
    """
    padded = part.new_zeros(max(rows), part.shape[1])
    padded[: len(part)] = part.detach()
    sent = padded.view(torch.uint8)  # no backend needs to know the type
    found = [torch.empty_like(sent) for _ in rows]
    distributed.all_gather(found, sent)
    return torch.cat([one.view(part.dtype)[:count] for one, count in zip(found, rows, strict=True)])


def check_device(device: torch.device) -> None:
    """Looks that each process of this machine can have a device of its own: two that share one wait for ever.

    Raises:
        PruneGPTError: there are more processes than CUDA devices.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise PruneGPTError(
            f"each process that trains on CUDA must have a device of its own; {here} processes of this machine see "
            f"{torch.cuda.device_count()}. Set launcher.processes to that number at most, or launcher.gpus."
        )


def decide(fact: bool) -> bool:
    """What the first process has found to be true or not."""
    return bool(agree([float(fact)])[0])


def either(*facts: bool) -> tuple[bool, ...]:
    """For each of several facts whether any process has found it true."""
    return tuple(value > 0 for value in total([float(fact) for fact in facts]))


def total(values: Sequence[float]) -> list[float]:
    """Sums over all processes."""
    if not _together():
        return list(values)
    summed = torch.tensor(list(values), dtype=torch.float64)  # [values]
    distributed.all_reduce(summed)
    return [float(value) for value in summed]


def alike(digest: str) -> bool:
    """Whether all processes have the same hexadecimal digest."""
    if not _together():
        return True
    ours = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.int32)  # [bytes]
    least, most = ours.clone(), ours.clone()
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    return bool(torch.equal(least, most))


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block before the others do, who then find in the cache what it has left there."""
    if not leads():
        wait()
    yield
    if leads():
        wait()


def _together() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())
