"""Training and evaluation mode of a model's modules, each of which has its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode while the context lasts; each module then has the mode that it had."""
    training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
