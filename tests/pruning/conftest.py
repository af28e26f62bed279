"""Models small enough to look at every weight of, one layer of each kind."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.toys import Toy

torch.set_num_threads(1)  # matrices this small lose more to waking a second thread than it gives


@pytest.fixture
def make_toy() -> Callable[[], Toy]:
    def make() -> Toy:
        torch.manual_seed(0)
        toy = Toy()
        for parameter in toy.parameters():
            nn.init.normal_(parameter, std=0.5)
        return toy

    return make


@pytest.fixture
def toy(make_toy: Callable[[], Toy]) -> Toy:
    return make_toy()
