"""Causal language models, from a hub id, a transformers folder or a GGUF file, and back to a folder.

Only safetensors and GGUF are read: no pickle is ever loaded. A weight that the file does not hold is an error, never a
random number.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import ModelError
from prunegpt.lm.checks import check_causal, check_config, check_finite, check_size, check_weights
from prunegpt.lm.device import pick_device, pick_dtype
from prunegpt.lm.located import explained, locate
from prunegpt.lm.multimodal import auto_class, read_text
from prunegpt.lm.unpack import PackedError, unpack
from prunegpt.memory import let_go, mapped_files
from prunegpt.planning import hub
from prunegpt.planning.sources import PACKED, STORED, WEIGHTS, find_local, stored_kinds, weight_files


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
    products: torch.dtype | None = None,
    causal: bool = False,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, on its device.

    A GGUF file, and what is stored as mxfp4 or fp8, is dequantised; what comes back is an ordinary model that can be
    trained and saved. One that sees or hears too comes whole.

    Args:
        source: hub id, local transformers folder, or path of a .gguf file.
        revision: branch, tag or commit of a hub repository.
        dtype: auto, float32, bfloat16, float16, or a torch dtype.
        device: auto, cuda, mps, cpu, or a torch device.
        trust_remote_code: let the model's repository run its own code.
        code: hub id at `revision`, or folder, whose code is run instead of that beside the weights.
        code_revision: branch, tag or commit of the code, where a config names another repository for it.
        attn_implementation: eager, sdpa or another name that transformers knows.
        products: of what is float32 else, the dtype that the weights of products are held in, see `narrow_products`:
            a device never holds them in float32, nor the host where they are stored so.
        causal: whether it is known to be, as a stage of a model that was checked is; else two forward passes check it.

    Raises:
        ModelError: the source is missing, truncated, pickled, quantised, not a causal decoder, lacks weights, or
            holds some that are not finite.
    """
    folder = find_local(str(source))
    if folder and (folder / PACKED).is_file() and not (folder / WEIGHTS).is_file():
        with _unpacked(folder) as whole:
            return load_model(
                whole,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                code=code,
                code_revision=code_revision,
                attn_implementation=attn_implementation,
                products=products,
                causal=causal,
            )
    place = pick_device(device) if isinstance(device, str) else device
    kind = pick_dtype(dtype, place) if isinstance(dtype, str) else dtype
    name, options = locate(source, None if code else revision, trust_remote_code)
    if trust_remote_code and code_revision:
        options["code_revision"] = code_revision
    with explained(source):
        if code is None:
            config = AutoConfig.from_pretrained(name, **options)
            loader = auto_class(config)
        else:
            config, loader = _with_code(name, str(code), revision, code_revision)
            options = {"config": config}
    check_config(source, config, trust_remote_code)
    if Path(name).is_dir() and "gguf_file" not in options:
        check_size(source, Path(name), config)
    if "gguf_file" in options:
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        options["config"] = config
        config.quantization_config = {**quantised, "dequantize": True}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with explained(source):
        plain = quantised is None and "gguf_file" not in options
        narrow = products is not None and plain and stored_alike(name, products, revision)
        model, report = loader.from_pretrained(name, dtype=products if narrow else kind, **options)
        if narrow and any(buffer.dtype == products for buffer in model.buffers()):  # which may be computed, and rounded
            model, report = loader.from_pretrained(name, dtype=kind, **options)
    check_weights(source, report)
    if "gguf_file" in options or quantised is not None:
        _forget_quantization(model)
    check_finite(source, model)
    if products is not None:
        narrow_products(model, products)
    _keep_its_head(model)
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0  # RWKV halves weights in place for float16, and would be saved with them halved
    model = read_text(owned(model.to(place)).eval())
    if not causal:
        with torch.autocast(place.type, products, enabled=products is not None):
            check_causal(source, model)
    return model


@contextmanager
def _unpacked(folder: Path) -> Iterator[Path]:
    """A packed export as an ordinary folder, for as long as the context lasts."""
    with TemporaryDirectory(prefix="prunegpt-unpacked-") as place:
        try:
            unpack(folder, Path(place) / folder.name)
        except PackedError as error:
            raise ModelError(str(error)) from error
        yield Path(place) / folder.name


def narrow_products(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Holds the weights of products in the dtype of an autocast, in place, and all others in float32.

    Autocast would copy them to it otherwise, and keep the copies: what it computes is the same to the bit, in less
    than half of the memory. An embedding that is the output layer too stays in float32, and is copied.
    """
    tied = {id(one) for module in model.modules() if isinstance(module, nn.Embedding) for one in module.parameters()}
    narrow = {id(module.weight) for module in model.modules() if type(module) in (nn.Linear, Conv1D)} - tied
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype if id(weight) in narrow else torch.float32)
    for config in (model.config, model.config.get_text_config()):
        config.dtype = torch.float32


def stored_alike(name: str, dtype: torch.dtype, revision: str | None = None) -> bool:
    """Whether all weights of a model's files have a dtype; no where they are not at hand yet.

    Args:
        name: hub id or folder.
        revision: branch, tag or commit of a hub id.
    """
    place = Path(name) if Path(name).is_dir() else None
    if place is None and (config := hub.cached_file(name, revision, "config.json")):
        place = config.parent
    try:
        files = weight_files(place) if place else []
    except ModelError:  # the config alone is here so far
        return False
    return stored_kinds(files) == {STORED.get(str(dtype).removeprefix("torch."))}


def _keep_its_head(model: PreTrainedModel) -> None:
    """A head that is stored beside the embedding with other values is not tied, whatever the config says.

    transformers loads it so; saving would tie it.
    """
    if model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys():
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _with_code(name: str, code: str, revision: str | None, code_revision: str | None) -> tuple[Any, Any]:
    """The config of a stored model and the class of the model, both by the code of another place."""
    trusted = {"trust_remote_code": True, "revision": revision, "code_revision": code_revision}
    origin = AutoConfig.from_pretrained(code, **trusted)
    config = type(origin).from_pretrained(name)
    reference = getattr(origin, "auto_map", {}).get("AutoModelForCausalLM")
    if reference is None:
        return config, AutoModelForCausalLM
    return config, get_class_from_dynamic_module(reference, code, revision=revision, code_revision=code_revision)


def owned(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights in memory of its own.

    On a CPU transformers leaves those that need no cast in the file, mapped: who writes to the file would change a
    model that is being trained.
    """
    if model.device.type == "cpu":
        files, tensors = mapped_files(), (*model.parameters(), *model.buffers())
        for tensor in tensors:
            let_go(_addresses(tensor), files)  # its check has read all of it
        for tensor in tensors:
            mapped = tensor.data
            tensor.data = mapped.clone()
            let_go(_addresses(mapped), files)  # or the process would hold each weight twice until the last is copied
    return model


def _addresses(tensor: torch.Tensor) -> range:
    """Where the values of a tensor are in memory; nowhere if they do not follow each other."""
    return range(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes * tensor.is_contiguous())


def round_to(model: PreTrainedModel, dtype: str) -> None:
    """Makes every weight one that a dtype holds, in place: what is computed then is what a saved model gives."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(getattr(torch, dtype)))


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    processor: Mapping[str, bytes] | None = None,
    dtype: str | None = None,
    max_shard_size: str = "50GB",
) -> None:
    """Writes an ordinary transformers folder: config, safetensors, the tokeniser and `processor_files` where given.

    Tied weights are tied again first, so that they are stored once. The folder is written in place; use
    `prunegpt.root.publishing` around it where it has to appear whole.

    Args:
        dtype: that the weights are converted to, and are in from then on, see `round_to`; what is computed from the
            config, such as rotary frequencies, keeps its precision.
        max_shard_size: of one safetensors file, such as 5GB.
    """
    plain = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    plain.tie_weights()
    if dtype is not None:
        for weight in plain.parameters():
            weight.data = weight.data.to(getattr(torch, dtype))
    plain.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for name, content in (processor or {}).items():
        (folder / name).write_bytes(content)


def _forget_quantization(model: PreTrainedModel) -> None:
    """After dequantisation the weights are plain; transformers still marks the model, and refuses to save it."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
