"""How much memory a model takes for what is done with it, from its shapes alone: estimates, with their formulas.

Weights are float32 (4 bytes each), whatever the file holds. Not counted: Python and libraries, about 0.5 GB.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from transformers import PreTrainedModel

from prunegpt.lm.views import block_matrices

_FLOAT = 4  # bytes of a float32
_ADAM = 4  # weights, gradients and two moments, each as large as the weights
_STREAMED = 16384  # tokens that an accelerator calibrates on at a time
_EVALUATED = 2048  # tokens that a CPU evaluates or calibrates on at a time, at least
_PER_TOKEN = 16  # arrays as wide as the hidden states that a layer holds of each token
_TRAINED = 20  # such arrays that training keeps of each token and layer for the backward pass
_LOGITS = 3  # arrays of tokens × vocabulary: logits, their gradient, and log-probabilities
_CHUNK = 3 * 2**23 * _FLOAT  # of logits that are computed a part at a time


def memory(model: PreTrainedModel, *, windows: int, length: int, batch: int) -> Mapping[str, int]:
    """Bytes at the peak, by what is done.

    Args:
        model: on any device, meta too.
        windows: calibration windows.
        length: tokens of a window and of a training sequence.
        batch: sequences that are trained on at a time.

    Returns:
        Of evaluation; of one-shot pruning by weights, by activations (Wanda) and by a solver (SparseGPT), and by that
        on a device that holds one layer at a time (`prune --stream`); of training, and of distilling from a teacher of
        the same shape.
    """
    config = model.config.get_text_config()
    width, vocabulary, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    weights = sum(parameter.numel() for parameter in model.parameters()) * _FLOAT
    views = block_matrices(model)
    masks = sum(view.matrix.numel() for view in views.values())  # a byte for each weight while they are chosen
    at_once = max(_EVALUATED, length)
    layer = at_once * _PER_TOKEN * width * _FLOAT
    hidden = windows * length * width * _FLOAT
    largest = max(view.matrix.numel() for view in views.values()) * _FLOAT
    widest = max(view.matrix.shape[1] for view in views.values())
    inputs: defaultdict[int | None, dict[tuple[str, int], int]] = defaultdict(dict)
    for name, view in views.items():  # Gram matrices of one layer: one for each input, which siblings share
        columns = view.matrix.shape[1]
        inputs[view.block][name.removesuffix(".weight").rpartition(".")[0], columns] = columns**2 * _FLOAT
    gram = max(sum(found.values()) for found in inputs.values())
    by_layer = Counter(dict.fromkeys(inputs, 0))
    for view in views.values():
        by_layer[view.block] += view.matrix.numel() * _FLOAT
    solving = gram + 3 * widest**2 * _FLOAT + 4 * largest
    kept = batch * length * (layers * _TRAINED * width + _LOGITS * vocabulary) * _FLOAT
    chunked = batch * length * layers * _TRAINED * width * _FLOAT + 2 * _CHUNK
    return {
        "evaluation": weights + layer + _CHUNK,
        "magnitude": weights + masks + 2 * largest,
        "wanda": weights + masks + hidden + layer + 2 * largest,
        "sparsegpt": weights + masks + hidden + layer + solving,
        "sparsegpt streamed": max(by_layer.values()) + max(_STREAMED, length) * _PER_TOKEN * width * _FLOAT + solving,
        "training": _ADAM * weights + kept,
        "distillation": (_ADAM + 1) * weights + chunked,
    }
