"""Causal language models and tokenisers, from a hub id, a transformers folder or a GGUF file, and back to a folder.

Only safetensors and GGUF are read: no pickle is ever loaded. A weight that the file does not hold is an error, never a
random number.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from prunegpt.builtin import BUILTIN_MODELS, is_builtin
from prunegpt.errors import ModelError, unknown
from prunegpt.lm.device import pick_device, pick_dtype
from prunegpt.planning.sources import model_place, tensor_shapes, weight_files
from prunegpt.root import read_json

_MATRIX = 2  # dimensions
_SPECIAL = 64  # tokens that a tokeniser may put around every text
_GROWTH = 1024  # signs that its normaliser may make of one
_SAMPLED = 64  # rows of a matrix that zeros are counted in
_LISTED = 5  # weights named in one message
_OVERSIZE = 4  # times as many weights as are stored may be asked for before the names of those missing are checked
_OLD_MASKS = re.compile(r"\.(attn|attention)\.(masked_)?bias$")  # causal masks that old checkpoints carry as weights
_PLACES = frozenset({"name_or_path", "tokenizer_file", "vocab_file", "merges_file"})  # where a tokeniser came from
_TOKENIZERS: dict[tuple[str, str, str], PreTrainedTokenizerBase] = {}  # class, content, settings


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
    code: str | Path | None = None,
    code_revision: str | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, on its device.

    A GGUF file is dequantised; what comes back is an ordinary model that can be trained and saved.

    Args:
        source: hub id, local transformers folder, or path of a .gguf file.
        revision: branch, tag or commit of a hub repository.
        dtype: auto, float32, bfloat16, float16, or a torch dtype.
        device: auto, cuda, mps, cpu, or a torch device.
        trust_remote_code: let the model's repository run its own code.
        code: hub id at `revision`, or folder, whose code is run instead of that beside the weights.
        code_revision: branch, tag or commit of the code, where a config names another repository for it.
        attn_implementation: eager, sdpa or another name that transformers knows.

    Raises:
        ModelError: the source is missing, truncated, pickled, quantised, not a causal decoder, lacks weights, or
            holds some that are not finite.
    """
    place = pick_device(device) if isinstance(device, str) else device
    kind = pick_dtype(dtype, place) if isinstance(dtype, str) else dtype
    name, options = _locate(source, None if code else revision, trust_remote_code)
    if trust_remote_code and code_revision:
        options["code_revision"] = code_revision
    with _explained(source):
        if code is None:
            config, loader = AutoConfig.from_pretrained(name, **options), AutoModelForCausalLM
        else:
            config, loader = _with_code(name, str(code), revision, code_revision)
            options = {"config": config}
    _check_config(source, config, trust_remote_code)
    if Path(name).is_dir() and "gguf_file" not in options:
        _check_size(source, Path(name), config)
    if "gguf_file" in options:
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with _explained(source):
        model, report = loader.from_pretrained(
            name, dtype=kind, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    _check_weights(source, report)
    if "gguf_file" in options:
        _forget_quantization(model)
    _check_finite(source, model)
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0  # RWKV halves weights in place for float16, and would be saved with them halved
    model = _owned(model.to(place)).eval()
    _check_causal(source, model)
    return model


def build_empty(source: str) -> PreTrainedModel:
    """A model as its config describes it, without its weights: for what names and shapes alone decide.

    Raises:
        ModelError: the source is missing, or not a causal decoder.
    """
    if is_builtin(source):
        if source not in BUILTIN_MODELS:
            raise ModelError(unknown("built-in model", source, BUILTIN_MODELS))
        from prunegpt.builtin.model import build

        return build(0, source)
    name, options = _locate(source, None, trust_remote_code=False, weights=False)
    with _explained(source):
        config = AutoConfig.from_pretrained(name, **options)
    _check_config(source, config, trust_remote_code=False)
    with _explained(source), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def stored_zeros(folder: Path) -> float:
    """About what share of the weights in a model's numbered layers is zero: of the first rows of every matrix there.

    Args:
        folder: a transformers folder with safetensors.
    """
    zeros, weights = 0, 0
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                part = stored.get_slice(name)
                if len(part.get_shape()) == _MATRIX and any(step.isdigit() for step in name.split(".")):
                    rows = part[:_SAMPLED]
                    zeros, weights = zeros + int((rows == 0).sum()), weights + rows.numel()
    return zeros / max(weights, 1)


def _with_code(name: str, code: str, revision: str | None, code_revision: str | None) -> tuple[Any, Any]:
    """The config of a stored model and the class of the model, both by the code of another place."""
    trusted = {"trust_remote_code": True, "revision": revision, "code_revision": code_revision}
    origin = AutoConfig.from_pretrained(code, **trusted)
    config = type(origin).from_pretrained(name)
    reference = getattr(origin, "auto_map", {}).get("AutoModelForCausalLM")
    if reference is None:
        return config, AutoModelForCausalLM
    return config, get_class_from_dynamic_module(reference, code, revision=revision, code_revision=code_revision)


def _owned(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights in memory of its own.

    On a CPU transformers leaves those that need no cast in the file, mapped: who writes to the file would change a
    model that is being trained.
    """
    if model.device.type == "cpu":
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model


def load_tokenizer(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    cache: Path | None = None,
) -> PreTrainedTokenizerBase:
    """The tokeniser of a model: one object for all that are alike in a process, so do not change what you get.

    Args:
        source: hub id, local folder, path of a .gguf file, or builtin:NAME.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: let the repository run its own code.
        code_revision: branch, tag or commit of that code, where it is in another repository.
        cache: folder in which the built-in tokeniser is kept once trained; default: trained in memory.

    Raises:
        ModelError: the source is missing or has no tokeniser.
    """
    if is_builtin(str(source)):
        from prunegpt.builtin.tokenizer import tokenizer

        return _shared(tokenizer(str(source), cache=cache))
    name, options = _locate(source, revision, trust_remote_code, weights=False)
    if trust_remote_code and code_revision:
        options["code_revision"] = code_revision
    with _explained(source, "tokeniser"):
        _check_place(source, Path(name))
        found = _shared(AutoTokenizer.from_pretrained(name, **options))
        _check_growth(source, found)
        tokens = found("some text", add_special_tokens=False)["input_ids"]
    if not tokens:  # what transformers makes up without any file
        raise ModelError(
            f"a tokeniser must have a vocabulary, but {source} has no tokenizer.json or other tokeniser file. "
            f"Name the tokeniser's own hub id or folder."
        )
    return found


def _check_place(source: str | Path, place: Path) -> None:
    """A vocabulary that tokenizer_config.json takes from another folder is in no key, and may change unseen."""
    config = place / "tokenizer_config.json"
    given = read_json(config) if config.is_file() else {}
    for name in ("vocab", "merges"):
        if isinstance(file := given.get(name), str):
            raise ModelError(
                f"a tokeniser must be stored in one folder, but tokenizer_config.json of {source} takes its {name} "
                f"from {file}. Copy that file into the folder and remove the entry."
            )


def _check_growth(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokeniser gives about as many tokens as a text has signs: rules that multiply them would fill the memory.

    Those are special tokens around every document, and text that its normaliser inserts.
    """
    special = tokenizer.num_special_tokens_to_add()
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    rules = json.loads(normalizer.__getstate__()) if normalizer is not None else {}
    growth = math.prod(max(1, len(text)) for text in _inserted(rules))
    for what, count, most in (("special tokens around a text", special, _SPECIAL), ("signs for one", growth, _GROWTH)):
        if count > most:
            raise ModelError(
                f"a tokeniser must give about as many tokens as a text has signs, but that of {source} puts in up to "
                f"{count:,} {what}, and {most} are allowed. Take the tokeniser from where the model was trained."
            )


def _inserted(rule: Any) -> Iterator[str]:
    """The strings that a normaliser, or one of a sequence, inserts."""
    if isinstance(rule, dict):
        yield from (rule[name] for name in ("content", "prepend") if isinstance(rule.get(name), str))
        for each in rule.get("normalizers") or ():
            yield from _inserted(each)


def _shared(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The first tokeniser of this process that is like this one.

    The tokenizers library keeps the words that each object has split, in every thread, beyond the object's life: a
    worker that loads a tokeniser for each of its trials would grow with every one of them.
    """
    if not tokenizer.is_fast:
        return tokenizer
    content = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _PLACES}
    alike = type(tokenizer).__name__, content, repr(sorted(settings.items()))
    return _TOKENIZERS.setdefault(alike, tokenizer)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Writes an ordinary transformers folder: config, safetensors and, where given, the tokeniser.

    Tied weights are tied again first, so that they are stored once. The folder is written in place; use
    `prunegpt.root.publishing` around it where it has to appear whole.
    """
    plain = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    plain.tie_weights()
    plain.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _locate(
    source: str | Path, revision: str | None, trust_remote_code: bool, *, weights: bool = True
) -> tuple[str, dict[str, Any]]:
    """What transformers is to be called with, after the checks that a local source allows."""
    text = str(source)
    if is_builtin(text):
        raise ModelError(
            f"a built-in model has no stored weights, but {text!r} was to be loaded. It is built and trained before "
            f"its first use; load the folder of that training."
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    path = model_place(text)
    if path is None:
        return text, {**options, "revision": revision} if revision else options
    if path.is_file():
        return str(path.parent), {**options, "gguf_file": path.name}
    if weights:
        tensor_shapes(path, weight_files(path))  # refuses what is damaged
    return str(path), options


def _check_config(source: str | Path, config: Any, trust_remote_code: bool) -> None:
    kind = type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"a model must be decoder-only, but {source} is an encoder-decoder ({kind}). "
            f"Use a causal language model such as GPT-2, OPT or Llama."
        )
    remote = trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise ModelError(
            f"a model must be a causal language model, but {source} has a {kind}, for which transformers has none. "
            f"Use a model such as GPT-2, OPT or Llama."
        )
    method = getattr(config, "quantization_config", None)
    if method is not None:
        stored = method if isinstance(method, dict) else vars(method)
        raise ModelError(
            f"weights must be floating point to be pruned, but {source} is quantised "
            f"({stored.get('quant_method', 'unknown method')}). Use the model it was quantised from."
        )


def _check_size(source: str | Path, folder: Path, config: Any) -> None:
    """A config that asks for far more weights than are stored would fill the memory with random ones first."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return  # its own code, which is trusted
    shapes = tensor_shapes(folder, weight_files(folder))
    stored = sum(math.prod(shape) for shape in shapes.values())
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(shapes):
        raise ModelError(
            f"a model's files must hold exactly its weights, but the config of {source} asks for {layers} layers and "
            f"its files hold {len(shapes)} tensors. Take config.json and weights from the same place."
        )
    with _explained(source), torch.device("meta"):
        wanted = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if wanted > _OVERSIZE * stored:
        raise ModelError(
            f"a model's files must hold exactly its weights, but the config of {source} asks for {wanted:,} and its "
            f"files hold {stored:,}. Take config.json and weights from the same place."
        )


def _check_weights(source: str | Path, report: dict[str, Any]) -> None:
    """Every weight of the model came from the file, and every weight of the file went into the model."""
    problems = {
        "lacks": sorted(report["missing_keys"]),
        "has another shape for": sorted(item[0] for item in report["mismatched_keys"]),
        "holds what the model has no place for:": sorted(
            name for name in report["unexpected_keys"] if not _OLD_MASKS.search(name)
        ),
    }
    told = [
        f"{what} {', '.join(names[:_LISTED])}" + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        for what, names in problems.items()
        if names
    ]
    if told:
        raise ModelError(
            f"a model's files must hold exactly its weights, but {source} {'; '.join(told)}. Nothing is filled with "
            f"random numbers or dropped: save it again as the causal language model that its config names."
        )
    if report.get("error_msgs"):
        raise ModelError(f"a model's weights must load, but {source} failed: {'; '.join(report['error_msgs'])}.")


def _check_finite(source: str | Path, model: PreTrainedModel) -> None:
    """NaN and infinity are no weights: whatever is computed with them is no number either."""
    broken = [name for name, weight in model.named_parameters() if weight.numel() and not _is_finite(weight)]
    if broken:
        named = ", ".join(broken[:_LISTED]) + (f" and {len(broken) - _LISTED} more" if len(broken) > _LISTED else "")
        raise ModelError(
            f"weights must be finite numbers, but {source} holds NaN or infinity in {named}. "
            f"Its training diverged or the file is damaged: take an earlier checkpoint or download it again."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    low, high = torch.aminmax(weight.detach())  # NaN, where there is one
    return bool(low.isfinite() & high.isfinite())


def _check_causal(source: str | Path, model: PreTrainedModel) -> None:
    """Changes the last of a few tokens and looks whether an earlier prediction moves, as it does in BERT."""
    tokens = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size  # [1, 8]
    changed = tokens.clone()
    changed[0, -1] = 0
    with torch.no_grad():
        first, second = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (tokens, changed))
    moved = (first - second).abs().max() / first.std()  # [7, vocab] -> []
    if moved > (1e-3 if model.dtype == torch.float32 else 1e-2):
        raise ModelError(
            f"a causal model must not see the tokens it is to predict, but {source} ({type(model).__name__}) does. "
            f"Use a decoder such as GPT-2, OPT or Llama; an encoder such as BERT has no perplexity."
        )


def _forget_quantization(model: PreTrainedModel) -> None:
    """After dequantisation the weights are plain; transformers still marks the model, and refuses to save it."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@contextmanager
def _explained(source: str | Path, what: str = "model") -> Iterator[None]:
    """Turns what transformers and the hub raise while loading into a ModelError."""
    try:
        yield
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:  # a broken file, the hub and the network raise anything
        text = str(error).strip()
        told = text.splitlines()[0].rstrip(".") if text else type(error).__name__
        if "trust_remote_code" in text:
            way_out = f"{source} runs its own code. Set trust_remote_code: true where you have read and trust it."
        elif Path(source).expanduser().exists():
            way_out = f"{source} failed: {told}. Check that the folder or file is complete."
        elif os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
            way_out = (
                f"{source} is not in the local hub cache and HF_HUB_OFFLINE is set. Download it where there is a "
                f"network (hf download {source}), unset the variable, or give a local folder."
            )
        else:
            way_out = f"{source} failed: {told}. Check the name, the network, or give a local folder."
        raise ModelError(f"a {what} must load from the hub, a folder or a GGUF file, but {way_out}") from error
