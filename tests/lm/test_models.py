import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from prunegpt.errors import ModelError
from prunegpt.lm.models import load_model, owned, save_model, stored_alike
from prunegpt.lm.tokenizers import load_tokenizer, tokenizer_fingerprint
from tests.bench.harness import peak, reset_peak, resident
from tests.support.families import tiny

CPU = {"device": "cpu", "dtype": "float32"}
TOKENS = torch.arange(1, 20)[None]


@pytest.fixture
def folder(tiny_gpt2: Any, characters: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    save_model(tiny_gpt2, characters, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak of a process")
def test_weights_are_copied_out_of_their_file_without_both_in_memory(tmp_path: Path, tiny_gpt2: Any) -> None:
    count, size = 16, 8 << 20  # bytes
    file = tmp_path / "weights"
    file.write_bytes(bytes([1, 2]) * (count * size // 2))
    mapped = torch.from_file(str(file), shared=False, size=count * size, dtype=torch.uint8)
    for number, part in enumerate(mapped.split(size)):
        tiny_gpt2.register_buffer(f"mapped_{number}", part)
    before = [int(part.long().sum()) for part in mapped.split(size)]  # reads all of it
    del part, mapped
    reset_peak()
    held = resident()
    owned(tiny_gpt2)
    assert peak() - held < 48  # MiB, of 128
    file.write_bytes(bytes(count * size))
    assert [int(getattr(tiny_gpt2, f"mapped_{number}").long().sum()) for number in range(count)] == before


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_saved_model_comes_back_equal(
    family: str, characters: PreTrainedTokenizerFast, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    save_model(model.train(), characters, tmp_path)
    again = load_model(tmp_path, **CPU)
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(characters)


def test_what_a_hub_model_is_stored_in_is_read_of_its_revision_and_not_before_its_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def cached(name: str, revision: str | None, file: str) -> Path:
        asked.append(revision)
        return tmp_path / file

    monkeypatch.setattr("prunegpt.lm.models.hub.cached_file", cached)
    (tmp_path / "config.json").write_text("{}")
    assert not stored_alike("some/model", torch.bfloat16, "v2")
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert stored_alike("some/model", torch.bfloat16, "v2")
    assert asked == ["v2", "v2"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_products_are_loaded_in_the_dtype_that_they_are_computed_in(
    family: str,
    stored: str,
    characters: PreTrainedTokenizerFast,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(request.getfixturevalue(family), characters, tmp_path, dtype=stored)
    whole = load_model(tmp_path, **CPU)
    read: list[torch.dtype] = []
    load = AutoModelForCausalLM.from_pretrained

    def spied(*given: Any, **options: Any) -> Any:
        read.append(options["dtype"])
        return load(*given, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spied)
    narrow = load_model(tmp_path, **CPU, products=torch.bfloat16)
    assert read == [getattr(torch, stored)]  # never in float32 where it is not stored so
    assert {one.dtype for one in narrow.parameters()} == {torch.float32, torch.bfloat16}
    assert narrow.config.dtype == torch.float32
    assert narrow.get_input_embeddings().weight.dtype == torch.float32
    assert {name: one.dtype for name, one in narrow.named_buffers()} == {
        name: one.dtype for name, one in whole.named_buffers()
    }
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(narrow(TOKENS).logits, whole(TOKENS).logits)


def test_tokenisers_that_are_alike_are_one_object_in_a_process(
    characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    characters.save_pretrained(tmp_path / "first")
    first = load_tokenizer(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    assert load_tokenizer(tmp_path / "second") is first
    config = json.loads((tmp_path / "second" / "tokenizer_config.json").read_text())
    (tmp_path / "second" / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 7}))
    other = load_tokenizer(tmp_path / "second")
    assert other is not first
    assert (other.model_max_length, first.model_max_length) == (7, characters.model_max_length)


def test_saved_folder_is_an_ordinary_one_with_tied_weights_once(folder: Path, tiny_gpt2: Any) -> None:
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) + ("transformer.wte.weight" in stored) == 1
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert plain.lm_head.weight is plain.transformer.wte.weight
    torch.testing.assert_close(plain(TOKENS).logits, tiny_gpt2(TOKENS).logits)
    assert AutoTokenizer.from_pretrained(folder)("one").input_ids == [ord(sign) for sign in "one"]


def test_weights_that_came_untied_are_tied_again_when_saved(tiny_gpt2: Any, tmp_path: Path) -> None:
    tiny_gpt2.lm_head.weight = torch.nn.Parameter(tiny_gpt2.transformer.wte.weight.detach().clone())
    save_model(tiny_gpt2, None, tmp_path)
    assert len([name for name in load_file(tmp_path / "model.safetensors") if "wte" in name or "lm_head" in name]) == 1


def test_a_head_that_differs_from_the_embedding_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    made = tiny("llama", tie_word_embeddings=False)
    made.save_pretrained(tmp_path / "model")
    configure(tmp_path / "model", tie_word_embeddings=True)
    loaded = load_model(tmp_path / "model", **CPU)
    torch.testing.assert_close(loaded(TOKENS).logits, made(TOKENS).logits)
    save_model(loaded, None, tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(plain(TOKENS).logits, made(TOKENS).logits)


def test_precision_and_attention_can_be_chosen(folder: Path) -> None:
    model = load_model(folder, device="cpu", dtype="bfloat16", attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert load_model(folder, device=torch.device("cpu"), dtype=torch.float16).dtype == torch.float16


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_missing_weight_is_an_error_not_a_random_number(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(ModelError, match=r"lacks transformer\.h\.1\.mlp\.c_fc\.weight\. Nothing is filled with random"):
        load_model(folder, **CPU)


def test_unexpected_weight_is_an_error(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"transformer.h.9.extra.weight": torch.ones(2, 2)}))
    with pytest.raises(ModelError, match=r"holds what the model has no place for: transformer\.h\.9\.extra\.weight"):
        load_model(folder, **CPU)


@pytest.mark.parametrize("name", ["attn.bias", "attn.masked_bias", "attn.attention.masked_bias"])
def test_causal_masks_of_old_checkpoints_are_no_weights(folder: Path, tiny_gpt2: Any, name: str) -> None:
    rewrite(folder, lambda weights: weights.update({f"transformer.h.0.{name}": torch.ones(1, 1, 8, 8)}))
    torch.testing.assert_close(load_model(folder, **CPU)(TOKENS).logits, tiny_gpt2(TOKENS).logits)


def test_weights_of_a_model_saved_without_its_head_load(folder: Path, tiny_gpt2: Any) -> None:
    """As the hub's gpt2 is stored: names without `transformer.`, and no head, which is tied."""
    tiny_gpt2.transformer.save_pretrained(folder)
    assert "wte.weight" in load_file(folder / "model.safetensors")
    torch.testing.assert_close(load_model(folder, **CPU)(TOKENS).logits, tiny_gpt2(TOKENS).logits)


def test_weight_of_another_shape_is_an_error(folder: Path) -> None:
    configure(folder, n_positions=32)
    with pytest.raises(ModelError, match=r"has another shape for transformer\.wpe\.weight"):
        load_model(folder, **CPU)


def test_truncated_safetensors_names_the_file(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"safetensors file .*model\.safetensors cannot be read: .*download it again"):
        load_model(folder, **CPU)


def test_a_model_that_rescales_its_weights_is_saved_as_it_was(tmp_path: Path) -> None:
    """RWKV does while it is evaluated: what was saved then was another model."""
    made = tiny("rwkv", rescale_every=1)
    made.save_pretrained(tmp_path / "first")
    tokens = torch.arange(2, 14)[None]
    with torch.no_grad():
        expected = made.train()(input_ids=tokens).logits  # it has no dropout, and does not rescale then
    stored = load_file(tmp_path / "first" / "model.safetensors")
    for source in ("first", "second"):
        model = load_model(tmp_path / source, **CPU)
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=tokens).logits, expected)
        model.save_pretrained(tmp_path / "second")
        again = load_file(tmp_path / "second" / "model.safetensors")
        assert all(torch.equal(stored[name], again[name]) for name in again)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ModelError, match=r"holds a PEFT adapter .*merge_and_unload"):
        load_model(folder, **CPU)


def test_pickled_weights_are_refused_unread(folder: Path, tiny_gpt2: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_gpt2.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"must be stored as safetensors; .*\(pytorch_model\.bin\).*save_pretrained"):
        load_model(folder, **CPU)


def test_folder_without_weights_or_config(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"must be in model\.safetensors, or in files that .* lists; .* has none"):
        load_model(folder, **CPU)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"must hold config\.json; .* holds generation_config\.json"):
        load_model(folder, **CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"must hold config\.json; .*empty holds nothing"):
        load_model(tmp_path / "empty", **CPU)
    (tmp_path / "empty" / "small.gguf").touch()
    with pytest.raises(ModelError, match=r"Give the file .*small\.gguf itself"):
        load_model(tmp_path / "empty", **CPU)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/model", r"an existing folder or a \.gguf file; /nowhere/model is not there"),
        ("runs/some/model", r"an existing folder or a \.gguf file; runs/some/model is not there"),
        ("nowhere.gguf", r"GGUF model nowhere\.gguf does not exist"),
        (__file__, r"a hub id, a folder or a \.gguf file; .* is another kind of file"),
        ("builtin:tiny-gpt2", r"has no stored weights; 'builtin:tiny-gpt2' was to be loaded"),
        ("openai-community/gpt2-nowhere", r"gpt2-nowhere is not in the local hub cache and HF_HUB_OFFLINE is set"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=message):
        load_model(source, **CPU)


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"must be decoder-only; .* is an encoder-decoder \(T5Config\)"):
        load_model(tmp_path, **CPU)


def test_model_that_is_no_language_model_is_refused(folder: Path) -> None:
    ViTConfig().save_pretrained(folder)
    with pytest.raises(ModelError, match=r"must be a causal language model; .* has a ViTConfig"):
        load_model(folder, **CPU)


def test_bidirectional_model_is_refused_and_a_decoder_that_says_it_is_none_is_not(tmp_path: Path) -> None:
    shape = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertLMHeadModel(BertConfig(**shape, intermediate_size=64))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"must not see the tokens it is to predict; .*bert \(BertLMHeadModel\)"):
        load_model(tmp_path / "bert", **CPU)
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, intermediate_size=64))
    neox.save_pretrained(tmp_path / "neox")
    assert not load_model(tmp_path / "neox", **CPU).config.is_decoder


def test_code_of_a_repository_is_not_run_unless_asked(folder: Path) -> None:
    configure(folder, model_type="homemade", auto_map={"AutoConfig": "homemade.HomemadeConfig"})
    (folder / "homemade.py").write_text("raise AssertionError('this ran')")
    with pytest.raises(ModelError, match=r"runs its own code\. Set trust_remote_code: true"):
        load_model(folder, **CPU)


def test_tokeniser_without_files_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"tokeniser must .*"):
        load_tokenizer(folder)


def test_tokeniser_is_not_made_up(tmp_path: Path) -> None:
    GPTNeoXConfig(vocab_size=128).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"must have a vocabulary; .* has no tokenizer\.json"):
        load_tokenizer(tmp_path)


def swapped(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary rows as GGUF's Llama orders them: the two halves of each head interleaved."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def write_gguf(path: Path, model: LlamaForCausalLM, kinds: dict[str, gguf.GGMLQuantizationType]) -> None:
    """A GGUF file of a Llama, written with the reference writer."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("!") + i) for i in range(90)]
    writer.add_token_list([*letters, "ab", "cd", *(f"<{i}>" for i in range(config.vocab_size - 92))])
    writer.add_token_types([1] * 92 + [3] * (config.vocab_size - 92))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(92)
    writer.add_eos_token_id(93)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name.endswith("q_proj.weight"):
            value = swapped(value, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            value = swapped(value, config.num_key_value_heads)
        target = names.get_name(name.removesuffix(".weight"))
        kind = next((kind for part, kind in kinds.items() if part in name), gguf.GGMLQuantizationType.F32)
        data = gguf.quants.quantize(value.contiguous().numpy(), kind)
        writer.add_tensor(f"{target}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file_loads_dequantised_and_saves_as_an_ordinary_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    ).eval()
    quantised = gguf.GGMLQuantizationType.Q8_0
    write_gguf(tmp_path / "tiny.gguf", model, {"mlp": quantised})
    expected = model.state_dict()
    for name, value in expected.items():
        if "mlp" in name:
            stored = gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), quantised), quantised)
            assert not np.array_equal(stored, value.numpy())
            value.copy_(torch.from_numpy(stored))
    loaded = load_model(tmp_path / "tiny.gguf", **CPU)
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)
    loaded(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    tokenizer = load_tokenizer(tmp_path / "tiny.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer("abcde", add_special_tokens=False).input_ids) == ["ab", "cd", "e"]

    save_model(loaded, tokenizer, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = load_model(tmp_path / "saved", **CPU)
    torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits)
    assert load_tokenizer(tmp_path / "saved")("abcde").input_ids == tokenizer("abcde").input_ids


def test_gguf_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ModelError, match=r"cut\.gguf failed: .*Check that the folder or file is complete"):
        load_model(tmp_path / "cut.gguf", **CPU)


def test_copy_without_one_shard_is_refused(folder: Path, tmp_path: Path, tiny_gpt2: Any) -> None:
    tiny_gpt2.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    load_model(tmp_path / "sharded", **CPU)
    shutil.move(shards[1], tmp_path)
    with pytest.raises(ModelError, match=shards[1].name):
        load_model(tmp_path / "sharded", **CPU)
