"""GGUF: every family that is written comes back through transformers, whose reader shares no code with the writer."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from prunegpt.exporting.base import Export, ExportError
from prunegpt.exporting.gguf import GGUF
from prunegpt.exporting.gguf_families import FAMILIES, interleave, llama3_factors
from prunegpt.exporting.gguf_tokenizer import _SPLITS, tokenizer_kind
from prunegpt.exporting.run import Exported, run
from prunegpt.lm.models import load_model
from prunegpt.lm.tokenizers import load_tokenizer
from prunegpt.pruning.mask import Mask
from prunegpt.stages.base import ModelState, Pruned
from tests.support.families import families, tiny

DTYPES = [name for name in GGUF.dtypes if name != "auto"]
OWN: dict[str, dict[str, Any]] = {"gemma2": {"query_pre_attn_scalar": 8}, "gemma3_text": {"query_pre_attn_scalar": 8}}
assert set(FAMILIES) > {"llama", "gpt2"}


def written(model: Any, out: Path, dtype: str = "float32", tokenizer: Any = None) -> Exported:
    tokenizer = tokenizer or load_tokenizer("builtin:tiny-gpt2")
    export = Export(ModelState(model, tokenizer, Pruned()), dtype, about={"model": "tiny"})
    return run(GGUF, export, out, replace=False)


def small(family: str, **own: Any) -> Any:
    """A tiny model of a family that llama.cpp computes as transformers does."""
    model = tiny(family, vocab_size=1024)
    changed = {**OWN.get(family, {}), **own}
    if family.startswith("gemma"):
        changed["layer_types"] = ["sliding_attention", "full_attention" if family == "gemma2" else "sliding_attention"]
    if family == "qwen3_moe":
        changed["norm_topk_prob"] = True
    for name, value in changed.items():
        setattr(model.config, name, value)
    made = type(model)._from_config(model.config).eval()
    torch.manual_seed(1)
    for weight in made.parameters():  # norms and biases at their first values would hide what is dropped
        weight.data += 0.1 * torch.randn_like(weight) if weight.dim() < 2 else 0
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(family: str, tmp_path: Path) -> None:
    model = small(family)
    found = {check.what: check for check in written(model, tmp_path / "m.gguf").checks}
    assert (found["weights"].difference or 0) < 1e-6
    assert (found["logits"].difference or 0) < 1e-5
    assert found["tokenizer"].equal
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    arch = gguf.MODEL_ARCH_NAMES[FAMILIES[family].arch]
    assert fields["general.architecture"].contents() == arch
    assert fields[f"{arch}.block_count"].contents() == 2
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    known = GGUF_CONFIG_MAPPING.get(family.removesuffix("_text"), {})
    lost = [key for key in known if f"{arch}.{key}" not in fields and known[key] and key != "rope.dimension_count"]
    assert family == "gpt2" or lost == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_dtype_comes_back(dtype: str, family: str, tmp_path: Path) -> None:
    found = written(small(family), tmp_path / "m.gguf", dtype)
    kinds = {item.name: item.tensor_type.name for item in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    expected = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert kinds["token_embd.weight"] == kinds["blk.0.ffn_down.weight"] == expected
    assert {kind for name, kind in kinds.items() if name.endswith("norm.weight")} == {"F32"}
    assert found.checks[1].share < {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2, "q8_0": 2e-2}[dtype]


def test_what_is_written_is_read_without_the_config_of_the_model(tmp_path: Path) -> None:
    model = small("llama")
    assert written(model, tmp_path / "m.gguf").checks[2].equal
    tokens = torch.arange(1, 40)[None]
    torch.testing.assert_close(load_model(tmp_path / "m.gguf", device="cpu")(tokens).logits, model(tokens).logits)


def test_a_tied_head_is_left_out_and_another_is_not(tmp_path: Path) -> None:
    for tied in (True, False):
        written(small("llama", tie_word_embeddings=tied), tmp_path / f"{tied}.gguf")
        names = {item.name for item in gguf.GGUFReader(tmp_path / f"{tied}.gguf").tensors}
        assert ("output.weight" in names) is not tied


def test_query_rows_are_interleaved_as_in_llama() -> None:
    rows = torch.arange(8)[:, None]  # two heads of four rows
    assert interleave(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_fewer_layers_and_a_narrower_network_come_back(tmp_path: Path) -> None:
    model = small("llama")
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    written(model, tmp_path / "m.gguf")
    assert load_model(tmp_path / "m.gguf", device="cpu").config.num_hidden_layers == 1


def test_zeros_stay_zero(tmp_path: Path) -> None:
    model = small("llama")
    weight = model.model.layers[0].mlp.up_proj.weight.data
    Mask(torch.arange(weight.numel()).view(weight.shape) % 2 == 0, like=weight).apply(weight)
    for dtype in DTYPES:
        written(model, tmp_path / f"{dtype}.gguf", dtype)
        loaded = load_model(tmp_path / f"{dtype}.gguf", device="cpu")
        assert float((loaded.model.layers[0].mlp.up_proj.weight == 0).float().mean()) >= 0.5


def test_the_frequencies_of_llama_3_1_are_those_of_transformers(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    model = small("llama", rope_parameters=rope)
    plain = 5e5 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(plain / llama3_factors(rope, 8), model.model.rotary_emb.inv_freq)
    found = written(model, tmp_path / "m.gguf")
    assert "rope_freqs.weight" in {item.name for item in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert "transformers reads other values of rope_parameters" in str(found.checks[2])


REFUSED = {
    "another family": ("opt", {}, r"unknown family of GGUF 'opt'\. .* Export a folder"),
    "a kind of rotary embedding": ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be one of def"),
    "an activation": (
        "llama",
        {"hidden_act": "relu"},
        "the activation of llama must be silu or swish for GGUF, got relu",
    ),
    "a window of Qwen": ("qwen2", {"use_sliding_window": True}, "use_sliding_window must be false"),
    "layers of Gemma": ("gemma2", {"layer_types": ["full_attention"] * 2}, "every 2th layer must have full attention"),
    "a scale of Gemma": ("gemma3_text", {"query_pre_attn_scalar": 3}, "query_pre_attn_scalar must be 8"),
    "routing": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob must be True"),
}


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = small(family) if family in FAMILIES else tiny(family)
    for name, value in changes.items():
        setattr(model.config, name, value)
    with pytest.raises(ExportError, match=message):
        written(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_every_other_family_is_refused_by_name() -> None:
    assert len(set(families()) - set(FAMILIES)) > 50
    assert set(FAMILIES) <= set(families())


# -- tokenizers ------------------------------------------------------------------------------------------------------

TEXT = ["the cat sat on the mat 1234567 times, didn't it? Größe 日本語 " * 20]
GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(steps: list[Any], *, whole: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def sentencepiece(prefix: bool) -> PreTrainedTokenizerFast:
    """As transformers makes it of a SentencePiece model: any pair that forms a token is merged, the best one first."""
    from transformers import LlamaTokenizer

    words = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "▁s", "▁sat", "on", "▁on", "▁m", "▁mat", "ti", "me", "s,", "▁1"]
    letters = sorted({*"▁abcdefghijklmnopqrstuvwxyz", *"0123456789.,'?"} - {" "})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    return LlamaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=prefix)


SPLITS = {
    "gpt-2": ([GPT2_SPLIT], False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), GPT2_SPLIT], False),
    **{
        name: (
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            whole,
        )
        for (pattern, whole), name in _SPLITS.items()
    },
}


@pytest.mark.parametrize("name", SPLITS)
def test_every_way_to_split_text_comes_back(name: str, tmp_path: Path) -> None:
    steps, whole = SPLITS[name]
    tokenizer = byte_level(steps, whole=whole)
    assert tokenizer_kind(tokenizer) == ("gpt2", name)
    written(small("llama"), tmp_path / "m.gguf", tokenizer=tokenizer)
    read = load_tokenizer(tmp_path / "m.gguf")
    text = "The cat's 1234567 MATS<s> Größe\n\n  x_y"
    assert read(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    assert fields["tokenizer.ggml.token_type"].contents()[:3] == [3, 3, 1]
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 1024  # a token for every row of the embedding


def test_a_sentencepiece_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = sentencepiece(prefix=True)
    assert tokenizer_kind(tokenizer) == ("llama", "default")
    written(small("mistral"), tmp_path / "m.gguf", tokenizer=tokenizer)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [2, 3, 3, 6]
    scores = dict(
        zip(fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.scores"].contents(), strict=True)
    )
    assert scores["▁t"] > scores["▁the"] > scores["▁cat"] > scores["<s>"]


def test_tokens_that_do_not_come_back_are_found(tmp_path: Path) -> None:
    """transformers reads any SentencePiece of a Llama as one that begins with a space."""
    with pytest.raises(ExportError, match=r"must give the tokens of the model's; of 'The quick.* token 0 differs"):
        written(small("llama"), tmp_path / "m.gguf", tokenizer=sentencepiece(prefix=False))
    assert not list(tmp_path.iterdir())


UNKNOWN = {
    "a prefix space": ([pre_tokenizers.ByteLevel(add_prefix_space=True)], None, "it ends in"),
    "words": ([pre_tokenizers.Whitespace(), GPT2_SPLIT], None, "it splits text by"),
    "lower case": ([GPT2_SPLIT], normalizers.Lowercase(), "its normalizer is Lowercase"),
}


@pytest.mark.parametrize(("steps", "normalizer", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(steps: list[Any], normalizer: Any, message: str) -> None:
    tokenizer = byte_level(steps)
    tokenizer.backend_tokenizer.normalizer = normalizer
    with pytest.raises(ExportError, match=rf"must split text as one that llama\.cpp knows; {message}"):
        tokenizer_kind(tokenizer)
