"""A tiny model of every family in transformers' causal mapping, made from its config class alone."""

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

VOCABULARY = 64
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size", "emb_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_kv_heads", "num_key_value_heads", "attn_num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("dff", "dim_ff", "d_inner", "dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "rel_extent", "index_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "swa_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "swa_num_key_value_heads", "index_n_heads", "o_groups"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_length"), 64),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("o_lora_rank", "hc_lowrank", "index_topk"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    "sliding_window": 16,
    "rotary_dim": 8,
}


_GEMMA3N = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "intermediate_size": 64,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
}
_DOTS3 = {
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank", "swa_qk_nope_head_dim", "swa_v_head_dim"), 8),
    "swa_head_dim": 16,
    "layer_types": ["sliding_attention", "indexed_attention"],
}
_GEMMA4 = {"global_head_dim": 16, "hidden_size_per_layer_input": 8}
_INKLING2 = {"unpadded_vocab_size": 60}
_LOOP = {
    **dict.fromkeys(("n_layers_per_attn_res_block", "loop_layer_index_start"), 1),
    **dict.fromkeys(("loop_layer_index_end", "loop_num_passes"), 2),
    "num_hidden_layers": 3,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid"],
    "loop_gate_rank": 8,
}
_SHARED = {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}

# What a config demands beyond the sizes above, by model type.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_global_transformer": {"num_hidden_layers": 3},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32, "num_hidden_layers": 1},
    "blt_patcher": {"num_hidden_layers": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**_ROPE, "mrope_section": [2, 1, 1]}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": _ROPE,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": _DOTS3,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling2_text": _INKLING2,
    "inkling2_loop_text": _INKLING2 | _LOOP,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {
        "is_decoder": True,
        "attention_head_size": 8,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [4, 3],
        "feed_forward_size": 64,
        "hash_seed": 0,
        "hidden_dropout_prob": 0.0,  # drawn anew whatever the seed
        "local_attention_probs_dropout_prob": 0.0,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "qwen4_exp_text": {"layer_types": ["linear_attention"] * 2},
    "xlnet": {"d_head": 8},
    "xlstm": {"embedding_dim": 32, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED,
    "zamba2": {**_SHARED, "hybrid_layer_ids": [1, 2]},
    "zaya": {"num_experts_per_tok": 1},
    **{
        name: {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
        for name in (
            *("glm4v_text", "glm46v_text", "glm_ocr_text", "paddleocr_vl_text"),
            *("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"),
        )
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 0],
        }
    },
    "qwen2_vl_vision": {"embed_dim": 32, "depth": 2},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "emu3": {"vocabulary_map": {"<image>": 4}},
}

NOT_MADE = {  # what transformers itself says where a tiny model is made from the config class, run, saved and loaded
    **dict.fromkeys(("emu3", "mllama"), "Unrecognized configuration class"),  # of the part that reads text, by itself
    **dict.fromkeys(("musicgen", "musicgen_melody"), "has no attribute 'dropout'"),  # the config of the whole model
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",  # it refuses the defaults of its own parts
    "gemma4_unified_assistant": "shared_kv_states cannot be None",  # it drafts for another model
}
NEEDS = {"gemma3n": "timm"}  # packages that transformers does not bring along
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
    *("xlnet", "xmod"),
)


def families() -> Iterator[str]:
    """Names of all model types that transformers makes a causal language model of."""
    yield from sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})


def decoders() -> list[str]:
    """Those of them that a tiny model can be made of here, and that prunegpt takes."""
    absent = [family for family, package in NEEDS.items() if find_spec(package) is None]
    return [family for family in families() if family not in {*NOT_MADE, *ENCODERS, *absent}]


def multimodal() -> Iterator[str]:
    """Names of all model types that transformers makes a model of that reads text beside something else."""
    yield from sorted({config.model_type for config in MODEL_FOR_MULTIMODAL_LM_MAPPING})


def shrink(config: PreTrainedConfig, **own: int) -> PreTrainedConfig:
    """The config with small sizes, in its parts too; made anew where it can be, so that derived sizes fit."""
    sizes = {name: value for name, value in SMALL.items() if _has(config, name)}
    if "num_key_value_heads" in sizes and "qk_nope_head_dim" in sizes:
        sizes["num_key_value_heads"] = 4  # latent attention has as many as queries
    depth = 2
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        sizes["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1]}  # half of a head
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) > depth and ("layer" in name or "block" in name or "types" in name):
            kinds = [*dict.fromkeys(value)] if all(isinstance(kind, str) for kind in value) else value
            sizes[name] = (kinds * depth)[:depth]  # one layer of each kind, where there are kinds
    sizes |= {**EXCEPTIONS.get(config.model_type, {}), **(own if "text_config" not in config.sub_configs else {})}
    parts = {name: getattr(config, name, None) for name in config.sub_configs if name not in sizes}
    parts = {
        name: shrink(part, **(own if name == "text_config" else {}))
        for name, part in parts.items()
        if isinstance(part, PreTrainedConfig)
    }
    try:
        return type(config)(**sizes, **parts)
    except Exception:
        for name, value in {**sizes, **parts}.items():
            with suppress(AttributeError, NotImplementedError):  # some are computed from others
                setattr(config, name, value)
        return config


def _has(config: PreTrainedConfig, name: str) -> bool:
    try:
        return isinstance(getattr(config, name, None), int)
    except (AttributeError, ValueError):
        return False
    except RuntimeError:  # a value that differs by layer
        return True


def tiny(family: str, **own: int) -> Any:
    """A model of a family with random weights in evaluation mode; `own`: sizes other than those above."""
    config_class = next(config for config in MODEL_FOR_CAUSAL_LM_MAPPING if config.model_type == family)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shrink(config_class(), **own)).eval()


def tiny_multimodal(family: str, **own: int) -> Any:
    """A whole model of a family, its towers included, with random weights in evaluation mode; `own` as for `tiny`."""
    config_class = next(config for config in MODEL_FOR_MULTIMODAL_LM_MAPPING if config.model_type == family)
    torch.manual_seed(0)
    return AutoModelForMultimodalLM.from_config(shrink(config_class(), **own)).eval()
