"""Whether a model that is loaded is what its files hold, and one that predicts text from left to right."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prunegpt.errors import ModelError, listed
from prunegpt.lm.located import explained
from prunegpt.lm.modes import evaluation_mode
from prunegpt.lm.multimodal import empty_model, is_language_model
from prunegpt.planning.sources import quantised_by, quantised_problem, tensor_shapes, weight_files

_LISTED = 5  # weights named in one message
_OVERSIZE = 4  # times as many weights as are stored may be asked for before the names of those missing are checked
_WANTED: dict[str, int] = {}  # what config.json holds -> weights that such a model has
_OLD_MASKS = re.compile(r"\.(attn|attention)\.(masked_)?bias$")  # causal masks that old checkpoints carry as weights


def check_config(source: str | Path, config: Any, trust_remote_code: bool) -> None:
    """Whether a config is of a model that can be loaded and pruned here.

    Raises:
        ModelError: it is of an encoder-decoder, of no language model, or quantised in a way that is not undone.
    """
    kind = type(config).__name__
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, config.get_text_config())):
        raise ModelError(
            f"a model must be decoder-only; {source} is an encoder-decoder ({kind}). Use a causal language model such "
            "as GPT-2, OPT or Llama."
        )
    remote = trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if not is_language_model(config) and not remote:
        raise ModelError(
            f"a model must be a causal language model; {source} has a {kind}, for which transformers has no such "
            "class. Use a model such as GPT-2, OPT or Llama."
        )
    folder = Path(source) if Path(source).is_dir() else None
    if problem := quantised_problem(source, quantised_by(config.to_dict(), folder)):
        raise ModelError(problem)


def check_size(source: str | Path, folder: Path, config: Any) -> None:
    """A config that asks for far more weights than are stored would fill the memory with random ones first."""
    if not is_language_model(config):
        return  # its own code, which is trusted
    shapes = tensor_shapes(folder, weight_files(folder))
    stored = sum(math.prod(shape) for shape in shapes.values())
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(shapes):
        raise ModelError(
            f"a model's files must hold exactly its weights; the config of {source} asks for {layers} layers and its "
            f"files hold {len(shapes)} tensors. Take config.json and weights from the same place."
        )
    described = (folder / "config.json").read_text(encoding="utf-8")
    if described not in _WANTED:
        with explained(source):
            _WANTED[described] = sum(one.numel() for one in empty_model(config).parameters())
    wanted = _WANTED[described]
    if wanted > _OVERSIZE * stored:
        raise ModelError(
            f"a model's files must hold exactly its weights; the config of {source} asks for {wanted:,} and its files "
            f"hold {stored:,}. Take config.json and weights from the same place."
        )


def check_weights(source: str | Path, report: dict[str, Any]) -> None:
    """Every weight of the model came from the file, and every weight of the file went into the model."""
    problems = {
        "lacks": sorted(report["missing_keys"]),
        "has another shape for": sorted(item[0] for item in report["mismatched_keys"]),
        "holds what the model has no place for:": sorted(
            name for name in report["unexpected_keys"] if not _OLD_MASKS.search(name)
        ),
    }
    told = [f"{what} {listed(names, _LISTED)}" for what, names in problems.items() if names]
    if told:
        raise ModelError(
            f"a model's files must hold exactly its weights; {source} {'; '.join(told)}. Nothing is filled with random "
            "numbers or dropped: save it again as the causal language model that its config names."
        )
    if report.get("error_msgs"):
        raise ModelError(f"the weights of {source} did not load: {'; '.join(report['error_msgs'])}.")


def check_finite(source: str | Path, model: PreTrainedModel) -> None:
    """NaN and infinity are no weights: whatever is computed with them is no number either."""
    broken = [name for name, weight in model.named_parameters() if weight.numel() and not _is_finite(weight)]
    if broken:
        raise ModelError(
            f"weights must be finite numbers; {source} holds NaN or infinity in {listed(broken, _LISTED)}. Its "
            "training diverged or the file is damaged: take an earlier checkpoint or download it again."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    low, high = torch.aminmax(weight.detach())  # NaN, where there is one
    return bool(low.isfinite() & high.isfinite())


def check_causal(source: str | Path, model: PreTrainedModel) -> None:
    """Changes the last of a few tokens and looks whether an earlier prediction moves, as it does in BERT."""
    with torch.no_grad(), _reading(source, model):
        tokens = _few_tokens(model)
        changed = tokens.clone()
        changed[0, -1] = 0
        first, second = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (tokens, changed))
    moved = (first - second).abs().max() / first.std()  # [7, vocab] -> []
    if moved > (1e-3 if model.dtype == torch.float32 else 1e-2):
        raise ModelError(
            f"a causal model must not see the tokens it is to predict; {source} ({type(model).__name__}) does. Use a "
            "decoder such as GPT-2, OPT or Llama; an encoder such as BERT has no perplexity."
        )


def check_own_loss(source: str | Path, model: PreTrainedModel) -> None:
    """Asks for the loss of a few tokens: fine-tuning takes the model's own, which not every model has of text alone."""
    hint = "Distil it: the loss is computed from its logits then."
    with torch.no_grad(), evaluation_mode(model), _reading(source, model, hint):  # no random number is drawn
        tokens = _few_tokens(model)
        model(input_ids=tokens, labels=tokens, use_cache=False)


def _few_tokens(model: PreTrainedModel) -> torch.Tensor:
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.arange(1, 9, device=model.device)[None] % vocabulary  # [1, 8]


@contextmanager
def _reading(
    source: str | Path,
    model: PreTrainedModel,
    hint: str = "Use one that can be given text without images or sounds, or its language model by itself.",
) -> Iterator[None]:
    """Turns what a model raises that asks for more than text into a ModelError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each model says it in a way of its own
        told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ModelError(
            f"a model must predict text from text alone; {source} ({type(model).__name__}) does not: {told}. {hint}"
        ) from error
