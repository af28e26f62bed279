"""What a stage sets in its process for all that runs there is set back when it ends.

Training arguments such as `full_determinism`, `tf32` and `torch_compile` change settings of torch and variables of the
environment, and transformers leaves them so: the stages and trials that the process computes next would come out
differently from the same ones in a process of their own, under the same keys.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers.utils import logging

from prunegpt.lm.device import PRODUCTS


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(was: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _set_environment(before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


# Name -> how it is read, and how it is set back.
SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "environment": (lambda: dict(os.environ), _set_environment),
    "deterministic algorithms": (_deterministic, _set_deterministic),
    "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    **{
        f"precision of float32 products, {number}": _attribute(owner, "fp32_precision")
        for number, owner in enumerate(PRODUCTS)
    },
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "log level of transformers": (logging.get_verbosity, logging.set_verbosity),
}


@contextmanager
def unmarked() -> Iterator[None]:
    """Sets back what the block has changed of SETTINGS."""
    with ExitStack() as stack:
        for read, restore in reversed(list(SETTINGS.values())):
            stack.callback(restore, read())
        yield
