"""What llama.cpp calls the families that it and transformers both read, their hyper-parameters and their weights.

The conventions are those of llama.cpp's own converter (conversion/*.py in ggml-org/llama.cpp, November 2026).
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import unknown
from prunegpt.exporting.base import ExportError

_ROPES = ("default", "linear", "llama3")  # kinds of rotary embedding that are written
_LARGEST_GEMMA = {"gemma2": 46, "gemma3_text": 62}  # layers of the one whose attention is scaled by hidden size
_GELU = ("gelu_pytorch_tanh", "gelu_new")
Extra = Callable[[Any, GGUFWriter], None]  # config


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        arch: its name in GGUF.
        interleaved: whether the rows of query and key heads are stored in pairs, as Meta's Llama had them.
        shifted: whether norms are stored as 1 + weight.
        activations: by the names of transformers.
        extra: writes hyper-parameters of its own, and raises ExportError for what llama.cpp does not compute.
    """

    arch: MODEL_ARCH
    interleaved: bool = False
    shifted: bool = False
    activations: tuple[str, ...] = ("silu", "swish")
    extra: Extra = lambda config, writer: None


def _refuse(what: str, value: Any, hint: str = "llama.cpp computes it otherwise: export a folder instead.") -> None:
    raise ExportError(f"{what} for GGUF, got {value}. {hint}")


def _llama(config: Any, writer: GGUFWriter) -> None:
    writer.add_rope_dimension_count(_head(config))


def _qwen(config: Any, writer: GGUFWriter) -> None:
    if getattr(config, "use_sliding_window", False):
        _refuse("use_sliding_window must be false", True)


def _experts(config: Any, writer: GGUFWriter) -> None:
    _qwen(config, writer)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if shared := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(shared)
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        _refuse("every layer must have experts", f"mlp_only_layers {config.mlp_only_layers}")
    if config.norm_topk_prob is not (config.model_type == "qwen3_moe"):
        _refuse(f"norm_topk_prob must be {config.model_type == 'qwen3_moe'}", config.norm_topk_prob)


def _gemma(config: Any, writer: GGUFWriter) -> None:
    every = 2 if config.model_type == "gemma2" else 6
    usual = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(_layers(config))]
    if list(config.layer_types) != usual:
        _refuse(f"every {every}th layer must have full attention, and no other", list(config.layer_types))
    scale = config.hidden_size // config.num_attention_heads
    if _layers(config) != _LARGEST_GEMMA[config.model_type]:
        scale = config.head_dim
    if config.query_pre_attn_scalar != scale:
        _refuse(f"query_pre_attn_scalar must be {scale}", config.query_pre_attn_scalar)
    writer.add_sliding_window(config.sliding_window)
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if (value := getattr(config, name, None)) is not None:
            if config.model_type != "gemma2" and name.startswith("attn"):
                _refuse(f"{name} must be null", value)
            add(value)


def _phi3(config: Any, writer: GGUFWriter) -> None:
    partial = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(partial * _head(config)))
    writer.add_rope_scaling_orig_ctx_len(
        getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    )
    writer.add_sliding_window(config.sliding_window or 0)


def _gpt2(config: Any, writer: GGUFWriter) -> None:
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        _refuse("attention must be scaled by the size of a head", "scale_attn_by_inverse_layer_idx")


FAMILIES: Mapping[str, Family] = {
    "llama": Family(MODEL_ARCH.LLAMA, interleaved=True, extra=_llama),
    "mistral": Family(MODEL_ARCH.LLAMA, interleaved=True, extra=_llama),
    "qwen2": Family(MODEL_ARCH.QWEN2, extra=_qwen),
    "qwen2_moe": Family(MODEL_ARCH.QWEN2MOE, extra=_experts),
    "qwen3": Family(MODEL_ARCH.QWEN3, extra=_qwen),
    "qwen3_moe": Family(MODEL_ARCH.QWEN3MOE, extra=_experts),
    "gemma2": Family(MODEL_ARCH.GEMMA2, shifted=True, activations=_GELU, extra=_gemma),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, shifted=True, activations=_GELU, extra=_gemma),
    "phi3": Family(MODEL_ARCH.PHI3, extra=_phi3),
    "gpt2": Family(MODEL_ARCH.GPT2, activations=_GELU, extra=_gpt2),
    "starcoder2": Family(MODEL_ARCH.STARCODER2, activations=_GELU),
}
_WRITES_WINDOWS = ("gemma2", "gemma3_text", "phi3")


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model.

    Raises:
        ExportError: llama.cpp has no such family, or transformers does not read it back.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ExportError(f"{unknown('family of GGUF', kind, FAMILIES)} Export a folder, which llama.cpp may convert.")
    return FAMILIES[kind]


def write_hyperparameters(writer: GGUFWriter, config: Any, family: Family) -> None:
    """Adds what decides the shape and the arithmetic of a model.

    Raises:
        ExportError: a field has a value that llama.cpp does not compute.
    """
    writer.add_block_count(_layers(config))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_feed_forward_length(width)
    writer.add_head_count(config.num_attention_heads)
    if (groups := getattr(config, "num_key_value_heads", None)) is not None:
        writer.add_head_count_kv(groups)
    writer.add_vocab_size(config.vocab_size)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    for name in ("layer_norm_epsilon", "norm_epsilon"):
        if (epsilon := getattr(config, name, None)) is not None:
            writer.add_layer_norm_eps(epsilon)
    if getattr(config, "rope_parameters", None):
        writer.add_key_length(_head(config))
        writer.add_value_length(_head(config))
    if experts := getattr(config, "num_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    _write_rope(writer, getattr(config, "rope_parameters", None) or {})
    named = ("activation_function", "hidden_activation", "hidden_act")
    activation = next(found for found in (getattr(config, name, None) for name in named) if found)
    if activation not in family.activations:
        _refuse(f"the activation of {config.model_type} must be {' or '.join(family.activations)}", activation)
    family.extra(config, writer)


def _write_rope(writer: GGUFWriter, rope: Mapping[str, Any]) -> None:
    if local := rope.get("sliding_attention"):
        writer.add_rope_freq_base_swa(local["rope_theta"])
    rope = rope.get("full_attention", rope)
    kind = rope.get("rope_type", "default")
    if kind not in _ROPES:
        _refuse(f"rope_type must be one of {', '.join(_ROPES)}", kind)
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def as_read(config: Any) -> Any:
    """The config under which transformers reads the file of a model: Mistral's is one of a Llama there and here."""
    if config.model_type != "mistral":
        return copy.deepcopy(config)
    shared = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    return LlamaConfig(**shared)


def missing_window(config: Any) -> int | None:
    """The sliding window of a model, in tokens, where llama.cpp attends to all of them."""
    known = config.model_type in _WRITES_WINDOWS or config.model_type.startswith("qwen")
    return None if known else getattr(config, "sliding_window", None)


def gguf_tensors(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The tensors of a model by their names in GGUF, each made when it is called, float32; a tied head is left out.

    Raises:
        ExportError: one has no name there.
    """
    config = model.config
    names = get_tensor_name_map(family.arch, _layers(config))
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    seen: set[int] = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        for source, part in _split(name, weight):
            target = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ExportError(
                    f"every weight must have a name in GGUF; {name} has none in "
                    f"{MODEL_ARCH_NAMES[family.arch]}. Export a folder instead."
                )
            yield target, _stored(part, source, family, config, transposed=name in transposed)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", lambda: llama3_factors(rope, _head(config))


def _split(name: str, weight: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """Experts that are fused in one parameter have a tensor each for gate and up."""
    if name.endswith(".gate_up_proj") and weight.dim() == 3:
        gate, up = weight.data.chunk(2, dim=1)  # [experts, width, hidden]
        yield name.replace("gate_up_proj", "gate_proj.weight"), gate
        yield name.replace("gate_up_proj", "up_proj.weight"), up
    elif name.endswith(".down_proj"):
        yield f"{name}.weight", weight.data
    else:
        yield name, weight.data


def _stored(part: Tensor, name: str, family: Family, config: Any, *, transposed: bool) -> Callable[[], Tensor]:
    def made() -> Tensor:
        value = part.float()
        if transposed:
            value = value.T
        if family.shifted and name.endswith("norm.weight"):
            value = value + 1
        if family.interleaved and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            value = interleave(value, heads)
        return (value[0] if name.endswith(".shared_expert_gate.weight") else value).contiguous()

    return made


def interleave(weight: Tensor, heads: int) -> Tensor:
    """The rows of a projection to heads, first half and second half of each head in turn; [heads · size, ...]."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])  # [heads, 2, size / 2, ...]
    return halves.transpose(1, 2).reshape(weight.shape)


def llama3_factors(rope: Mapping[str, Any], head: int) -> Tensor:
    """By what llama.cpp divides the frequencies of Llama 3.1's rotary embedding, [head / 2]."""
    base, factor, old = rope["rope_theta"], rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * math.pi * base ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    smooth = ((old / wavelengths - low) / (high - low)).clamp(0, 1)  # 0: long waves, 1: short ones
    factors: Tensor = 1 / ((1 - smooth) / factor + smooth)  # [head / 2]
    return factors


def _layers(config: Any) -> int:
    return int(config.num_hidden_layers)


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
