"""GGUF, the file of llama.cpp, Ollama and LM Studio, by the conventions of llama.cpp's own converter.

The check reads the file through transformers, which shares no code with what writes it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, LlamaFileType
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunegpt.errors import PruneGPTError
from prunegpt.exporting.base import Export, ExportCheck, ExportError, ExportFormat, compare_logits
from prunegpt.exporting.gguf_families import as_read, family_of, gguf_tensors, missing_window, write_hyperparameters
from prunegpt.exporting.gguf_tokenizer import tokenizer_kind, write_tokenizer
from prunegpt.lm.tokenizers import load_tokenizer

_KINDS = {"float32": Kind.F32, "float16": Kind.F16, "bfloat16": Kind.BF16, "q8_0": Kind.Q8_0}
_FILES = {
    "float32": LlamaFileType.ALL_F32,
    "float16": LlamaFileType.MOSTLY_F16,
    "bfloat16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
_Q8_BLOCK = 32  # weights with one scale
_ALWAYS_F32 = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")
_STEPS = {"float32": 1e-6, "float16": 2**-11, "bfloat16": 2**-8, "q8_0": 1 / 200}  # of a weight or the largest in a row
_LOGITS = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05, "q8_0": 0.1}  # root mean square, of their own spread
# What decides nothing that is computed, or is not a property of the model.
_IGNORED = frozenset(
    {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "dtype"}
    | {"transformers_version", "use_cache", "initializer_range", "attention_dropout", "attn_pdrop", "embd_pdrop"}
    | {"resid_pdrop", "hidden_dropout", "embedding_dropout", "residual_dropout", "model_type", "pretraining_tp"}
    | {"task_specific_params", "_name_or_path", "feed_forward_length", "n_ctx", "rope_theta", "output_router_logits"}
    | {"router_aux_loss_coef", "max_window_layers", "is_local", "_model_name_or_path", "unk_token_id"}
    | {"summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"}
)
_SAMPLES = (
    "The quick brown fox didn't jump over 1234567 lazy dogs; we've seen 3.14159 of them, they'll say.",
    "def f(x):\n    return {'a': [x ** 2, -x]}  # 100%\n\n\n\tTabs  and   spaces \n",
    "Größe, naïve, façade — Ελληνικά, Русский, 日本語の文章, 한국어, हिन्दी, العربية 🙂🏽",
    "HTTPServer CamelCase I'LL SHE'S  ''' \"\"\" ... !!! https://example.org/?q=1&r=2",
)


def holds(export: Export) -> None:
    """Raises ExportError where GGUF cannot hold a model, before anything is written."""
    family = family_of(export.model)
    writer = GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family.arch])
    write_hyperparameters(writer, export.model.config, family)
    tokenizer_kind(export.state.tokenizer)
    for _ in gguf_tensors(export.model, family):
        pass


def write(export: Export, path: Path) -> None:
    """Writes the file, tensor by tensor."""
    model, about = export.model, export.about
    family = family_of(model)
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(str(about.get("model", "model")))
    base: Mapping[str, Any] = about.get("base") or {}
    if base.get("license"):
        writer.add_license(base["license"])
    if base.get("hub"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base["source"])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base['source']}")
    for stage in about.get("stages", ())[-1:]:
        writer.add_string("prunegpt.stage", stage["key"])
    writer.add_file_type(_FILES[export.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_hyperparameters(writer, model.config, family)
    write_tokenizer(writer, export.state.tokenizer, model.get_input_embeddings().weight.shape[0])
    tensors = [(name, make, _kind(name, make(), export.dtype)) for name, make in gguf_tensors(model, family)]
    for name, make, kind in tensors:
        shape = tuple(make().shape)
        size = gguf.quant_shape_to_byte_shape(shape, kind) if kind not in (Kind.F32, Kind.F16) else shape
        width = {Kind.F32: np.float32, Kind.F16: np.float16}.get(kind, np.uint8)
        writer.add_tensor_info(name, size, np.dtype(width), int(np.prod(size)) * np.dtype(width).itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, make, kind in tensors:
        writer.write_tensor_data(_quantised(name, make(), kind))
    writer.close()


def _kind(name: str, tensor: Tensor, dtype: str) -> Kind:
    """How a tensor is stored: norms, biases, routers and positions in float32 whatever the rest is."""
    if tensor.dim() < 2 or name.endswith(_ALWAYS_F32) or not name.endswith(".weight"):
        return Kind.F32
    kind = _KINDS[dtype]
    return Kind.F16 if kind is Kind.Q8_0 and tensor.shape[-1] % _Q8_BLOCK else kind


def _quantised(name: str, tensor: Tensor, kind: Kind) -> NDArray[Any]:
    if kind is Kind.F16 and bool((tensor.abs() > torch.finfo(torch.float16).max).any()):
        raise ExportError(f"weights must be within float16, which ends at 65,504; {name} is not. Use bfloat16.")
    found: NDArray[Any] = gguf.quants.quantize(tensor.numpy(), kind)
    return found


def check(export: Export, path: Path) -> list[ExportCheck]:
    """Reads the file through transformers, under the model's own config, and compares."""
    model = export.model
    config, options = as_read(model.config), _options()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, **options
        ).eval()
        tokenizer = load_tokenizer(path)
    except PruneGPTError:
        raise
    except Exception as error:  # whatever transformers raises about a file that it does not understand
        raise ExportError(f"a GGUF file must be one that transformers reads; it fails: {error!r}.") from error
    found = [_weights(model, loaded, export.dtype), _logits(model, loaded, export.dtype)]
    del loaded
    found += [_config(model, path), _tokenizer(export.state.tokenizer, tokenizer)]
    if window := missing_window(model.config):
        note = f"has no sliding window for {model.config.model_type}: as this model for up to {window:,} tokens"
        found.append(ExportCheck("llama.cpp", False, None, note))
    return found


def _options() -> dict[str, Any]:
    quantization = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": quantization(dequantize=True)} if quantization else {}


def _weights(model: PreTrainedModel, loaded: PreTrainedModel, dtype: str) -> ExportCheck:
    """Every weight is within the step of its dtype."""
    others, largest, equal = dict(loaded.named_parameters()), 0.0, True
    for name, weight in model.named_parameters():
        other = others[name].data if name in others else torch.full_like(weight, torch.nan)
        difference = (weight.data - other).abs()
        scale = weight.data.abs() if dtype != "q8_0" else weight.data.abs().max()
        if weight.shape != other.shape or not bool(
            (difference <= _STEPS[dtype] * (scale + (1 if dtype == "float32" else 1e-2))).all()
        ):
            raise ExportError(
                f"an export must hold the weights of its model; {name} comes back with others. This is a defect of the "
                "exporter: report it."
            )
        largest, equal = max(largest, float(difference.max())), equal and bool((difference == 0).all())
    return ExportCheck("weights", equal, largest, f"{len(others)} tensors")


def _logits(model: PreTrainedModel, loaded: PreTrainedModel, dtype: str) -> ExportCheck:
    found = compare_logits(model, loaded, missing_window(model.config))
    if found.share > _LOGITS[dtype]:
        raise ExportError(
            f"a GGUF file must give about the logits of its model; in {dtype} they differ by {found.share:.1%} of "
            "their spread. This is a defect of the exporter: report it."
        )
    return found


def _config(model: PreTrainedModel, path: Path) -> ExportCheck:
    """Which fields of the config transformers does not read back: llama.cpp has them from the file."""
    try:
        read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    except Exception as error:
        return ExportCheck("config", False, None, f"transformers alone does not read it: {error!r}")
    own = model.config.to_dict()
    lost = sorted(name for name in own if name not in _IGNORED and not _alike(own[name], read.get(name)))
    detail = f"transformers reads other values of {', '.join(lost)}; llama.cpp does not" if lost else ""
    return ExportCheck("config", not lost, None, detail)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, (float, int)):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def _tokenizer(own: PreTrainedTokenizerBase, read: PreTrainedTokenizerBase) -> ExportCheck:
    """The same tokens for samples of many kinds of text."""
    for text in _SAMPLES:
        first, second = (one(text, add_special_tokens=False)["input_ids"] for one in (own, read))
        if first != second:
            place = next((at for at, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), 0)
            raise ExportError(
                f"the tokenizer must give the tokens of the model's; of {text[:20]!r} token {place} differs. Export a "
                "folder, which holds the tokenizer itself."
            )
    return ExportCheck("tokenizer", True, None, f"of {len(_SAMPLES)} samples; pre-tokenizer {tokenizer_kind(own)[1]}")


GGUF = ExportFormat("gguf", ("auto", "float32", "float16", "bfloat16", "q8_0"), ".gguf", holds, write, check)
