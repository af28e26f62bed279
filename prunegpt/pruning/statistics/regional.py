"""Regional gradients: what the output of a decoder layer says of the weights in it, with no pass through the model."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView, decoder_lists


class RegionalGradients:
    """Sums up squared gradients of ||f(x)||_2, where f is the decoder layer that holds a matrix and x one window.

    The loss is the Euclidean norm of the hidden states behind the layer, of all tokens of the window together (Yang et
    al. 2025, "Wanda++: Pruning Large Language Models via Regional Gradients", arXiv 2503.04992, section 4.1). Each call
    of a layer counts as a window of its own, so that one window is to be run at a time. A layer that is called several
    times for a window, and a matrix that several layers share, add up their calls, as inputs are added up.

    Args:
        model: a causal language model.
        views: matrices of its decoder layers.
    """

    def __init__(self, model: nn.Module, views: Mapping[str, WeightView]) -> None:
        self._model, self._views = model, views
        parameters = {id(view.parameter) for view in views.values()}
        self._parameters: dict[nn.Module, dict[int, nn.Parameter]] = {}  # by decoder layer, by identity
        for block in (block for blocks in decoder_lists(model).values() for block in blocks):
            if own := {id(one): one for one in block.parameters() if id(one) in parameters}:
                self._parameters[block] = own
        self._squares = {name: torch.zeros_like(view.matrix, dtype=torch.float32) for name, view in views.items()}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Decoder layers that are run while the context lasts are differentiated; their outputs have no gradient.

        Raises:
            PruningError: they are run without gradients, whatever is asked for.
        """
        trained = {one for own in self._parameters.values() for one in own.values()}
        before = {parameter: parameter.requires_grad for parameter in self._model.parameters()}
        with ExitStack() as hooks:
            for block in self._parameters:
                hooks.enter_context(block.register_forward_hook(self._see))
            try:
                for parameter in before:
                    parameter.requires_grad_(parameter in trained)
                with torch.enable_grad():
                    yield
            finally:
                for parameter, required in before.items():
                    parameter.requires_grad_(required)

    def results(self) -> dict[str, Tensor]:
        """sqrt(Σ_n (∂||f(x_n)||_2 / ∂W_ij)²) of each matrix over the windows n, float32 [out, in].

        It is a sum, as `input_norm` is: the root of the mean over N windows is this over sqrt(N).
        """
        return {name: squares.sqrt_() for name, squares in self._squares.items()}

    def _see(self, block: nn.Module, args: Any, output: Any) -> Any:
        """Adds the gradients of one call; what follows gets the output without its graph."""
        if not torch.is_grad_enabled():
            raise PruningError(
                "regional gradients need decoder layers that are run with gradients; "
                f"{type(self._model).__name__} runs its own without. Use wanda."
            )
        states: Tensor = output if isinstance(output, Tensor) else output[0]  # [1, length, width]
        if states.requires_grad:  # not where no token was routed to any of the experts
            own = self._parameters[block]
            norm = torch.linalg.vector_norm(states.float())
            found = dict(zip(own, torch.autograd.grad(norm, list(own.values()), materialize_grads=True), strict=True))
            for name, view in self._views.items():
                if id(view.parameter) in found:
                    gradient = view.oriented(found[id(view.parameter)]).float()  # [out, in]
                    self._squares[name].addcmul_(gradient, gradient)
        if type(output) is tuple:
            return tuple(value.detach() if isinstance(value, Tensor) else value for value in output)
        return output.detach() if isinstance(output, Tensor) else output
