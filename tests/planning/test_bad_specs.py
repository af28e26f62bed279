"""What is wrong with a spec although its fields are well formed: told with place and line before anything runs."""

import re
import struct
from pathlib import Path

import pytest

from prunegpt.errors import SpecError
from prunegpt.planning.resolve import plan_file
from tests.support.specs import (
    FIRST_TRIAL,
    HEADER,
    WORDS,
    model_folder,
    only,
    plan_of,
    problems_of,
    problems_of_text,
    text_folder,
)

# Flow text of a trial without its name -> place below trials.0, message. FOLDER is an empty folder.
TRIALS = {
    "a target that matches nothing": (
        "stages: [{prune: {sparsity: 0.5, targets: '*atn*'}}]",
        "stages.0.prune",
        r"every pattern must match a tensor; '\*atn\*' matches none\. Nearest: .*attn",
    ),
    "an exclusion that matches nothing": (
        "stages: [{prune: {sparsity: 0.5, exclude: head}}]",
        "stages.0.prune",
        "every pattern must match a tensor; 'head' matches none",
    ),
    "an allocation that matches nothing": (
        "stages: [{prune: {sparsity: 0.5, layers: 0, allocation: {'*.h.1.*': 0.5}}}]",
        "stages.0.prune.allocation",
        r"'\*\.h\.1\.\*' matches none",
    ),
    "a layer out of range": (
        "stages: [{prune: {sparsity: 0.5, layers: [0, 4]}}]",
        "stages.0.prune",
        r"layers must be indices of decoder layers \(0 to 3\), got 4\.",
    ),
    "a layer out of range, in training": (
        "stages: [finetune, {finetune: {prune: {sparsity: 0.5, layers: 12}}}]",
        "stages.1.finetune.prune",
        r"\(0 to 3\), got 12\.",
    ),
    "a solver over all tensors": (
        "stages: [{prune: {method: sparsegpt, sparsity: 0.5, allocation: global}}]",
        "stages.0.prune.allocation",
        "sparsegpt is a solver: .* cannot compare by global",
    ),
    "movement in one shot": (
        "stages: [{prune: {method: movement, sparsity: 0.5}}]",
        "stages.0.prune.method",
        "movement uses weight movement in training, so it must be the method of finetune.prune",
    ),
    "an end after training": (
        "stages: [{finetune: {prune: {sparsity: 0.5, start: 1, end: 5}, train: {num_train_epochs: 4}}}]",
        "stages.0.finetune.prune",
        "pruning must end before training does; it ends at 5 and training at 4 epochs",
    ),
    "an end after the default epochs": (
        "stages: [{finetune: {prune: {sparsity: 0.5, end: 3}}}]",
        "stages.0.finetune.prune",
        "it ends at 3 and training at 3 epochs",
    ),
    "an end after the last step": (
        "train: {max_steps: 10}, stages: [{finetune: {prune: {sparsity: 0.5, unit: steps, end: 10}}}]",
        "stages.0.finetune.prune",
        "it ends at 10 and training at 10 steps",
    ),
    "an end after the whole": (
        "stages: [{finetune: {prune: {sparsity: 0.5, unit: fraction, end: 1.5}}}]",
        "stages.0.finetune.prune",
        "it ends at 1.5 and training at 1 fraction",
    ),
    "a start after the end that is not given": (
        "stages: [{finetune: {prune: {sparsity: 0.5, start: 2}}}]",
        "stages.0.finetune.prune",
        r"must start before it ends; it starts at 2 and ends half-way, at 1\.5 epochs",
    ),
    "a missing data file": (
        "data: {files: {train: FOLDER/nope.txt}}",
        "data",
        r"data file .*nope\.txt does not exist",
    ),
    "a missing text": ("data: {path: FOLDER/nope}", "data", "text must be an existing file, folder or hub id"),
    "a missing text file": ("data: {path: nope.jsonl}", "data", "text must be an existing file, folder or hub id"),
    "an empty text folder": ("data: {path: FOLDER}", "data", r"a text folder must hold SPLIT\.txt, SPLIT\.jsonl"),
    "an unknown built-in text": ("data: {path: builtin:txt}", "data", r"unknown built-in text 'builtin:txt'"),
    "a missing split": (
        "evaluate: {split: test}",
        "evaluate",
        r"builtin:text has no split 'test'\. Valid: pretrain, train, validation\.",
    ),
    "a missing training split": (
        "data: {path: builtin:text, block_size: 128, train_split: trian}, stages: [finetune]",
        "stages.0.finetune",
        "builtin:text has no split 'trian'",
    ),
    "a missing calibration split": (
        "stages: [{prune: {method: wanda, sparsity: 0.5, calibration: {split: calib}}}]",
        "stages.0.prune",
        "builtin:text has no split 'calib'",
    ),
    "a missing calibration text": (
        "stages: [{prune: {method: sparsegpt, sparsity: 0.5, calibration: {data: {path: ./no.txt}}}}]",
        "stages.0.prune",
        "text must be an existing file",
    ),
    "a stride wider than the window": (
        "evaluate: {protocol: sliding, stride: 129}",
        "evaluate",
        "stride must be at most the window's 128 tokens, got 129",
    ),
    "a window longer than the model": (
        "evaluate: {block_size: 129}",
        "evaluate.block_size",
        "an evaluation window must fit the 128 positions of builtin:tiny-gpt2; it has 129 tokens. Set block_size to "
        "128 or less",
    ),
    "a training block longer than the model": (
        "stages: [{finetune: {data: {path: builtin:text, block_size: 256}}}]",
        "stages.0.finetune",
        "a training sequence must fit the 128 positions",
    ),
    "a calibration window longer than the model": (
        "stages: [{prune: {method: wanda, sparsity: 0.5, calibration: {length: 129}}}]",
        "stages.0.prune.calibration",
        "a calibration window must fit the 128 positions",
    ),
    "a missing model folder": (
        "model: ./nope",
        "model",
        "a model must be a hub id, an existing folder or a .gguf file",
    ),
    "a home that nobody has": ("model: '~nobody/x'", "model", "~nobody/x is not there"),
    "a missing GGUF file": ("model: nope.gguf", "model", r"GGUF model nope\.gguf does not exist"),
    "a folder that is no model": ("model: FOLDER", "model", r"a model folder must hold config\.json;"),
    "an unknown built-in model": (
        "model: builtin:tiny",
        "model",
        r"unknown built-in model 'builtin:tiny'\. Did you mean 'builtin:tiny-gpt2'\?",
    ),
    "a teacher that does not exist": (
        "stages: [{distill: {teacher: finetund}}]",
        "stages.0.distill.teacher",
        r"there is no trial 'finetund'\. Trials: finetuned, one\. For a model write \{model: finetund\}",
    ),
    "a teacher that is itself": (
        "stages: [{distill: {teacher: one}}]",
        "stages.0.distill.teacher",
        r"teachers must not form a circle: one → one\. Distil one of them from something else",
    ),
    "a teacher of a sweep that is not there": (
        "stages: [{distill: {teacher: other/best}}]",
        "stages.0.distill.teacher",
        r"needs the spec of that sweep beside this one; there is no other\.yaml",
    ),
    "a teacher model that is not there": (
        "stages: [{distill: {teacher: {model: ./nope}}}]",
        "stages.0.distill.teacher",
        "a model must be a hub id, an existing folder or a .gguf file; ./nope is not there",
    ),
}
assert TRIALS


@pytest.mark.parametrize(("trial", "where", "message"), TRIALS.values(), ids=TRIALS.keys())
def test_a_bad_trial_is_one_problem_at_its_line(trial: str, where: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    text = f"{HEADER}  - {{name: one, {trial.replace('FOLDER', str(folder))}}}\n  - {{name: finetuned}}\n"
    found = only(problems_of_text(text, tmp_path))
    assert (found.where, found.line) == (f"trials.0.{where}", FIRST_TRIAL)
    assert re.search(message, found.message), found.message


def test_all_problems_of_all_trials_are_told_together_in_the_order_of_lines(tmp_path: Path) -> None:
    text = f"""{HEADER}\
  - name: a
    data: {{path: ./nope}}
    stages:
      - prune: {{sparsity: 0.5, layers: 9, targets: "*zz*"}}
      - distill:
          teacher: nobody
          prune: {{sparsity: 0.5, end: 7}}
  - name: b
    model: ./nope
    evaluate: {{split: test}}
  - name: c
    stages: [{{prune: {{sparsity: 90}}}}]
  - name: c
tables:
  - title: t
    columns: [model]
    rows:
      - a
"""
    found = problems_of_text(text, tmp_path)
    first = FIRST_TRIAL
    assert [(item.line, item.where) for item in found] == [
        (first + 1, "trials.0.data"),
        (first + 3, "trials.0.stages.0.prune"),
        (first + 3, "trials.0.stages.0.prune"),
        (first + 5, "trials.0.stages.1.distill.teacher"),
        (first + 6, "trials.0.stages.1.distill.prune"),
        (first + 8, "trials.1.model"),
        (first + 9, "trials.1.evaluate"),
        (first + 11, "trials.2.stages.0.prune.sparsity"),
        (first + 12, "trials.3"),
    ]


def test_what_base_says_wrongly_is_told_once_and_there(tmp_path: Path) -> None:
    text = """\
name: words
base:
  model: ./nope
  data: {path: ./none}
trials:
  - {name: a}
  - {name: b, seeds: [1, 2]}
  - {name: c, stages: [{distill: {teacher: a}}]}
"""
    found = problems_of_text(text, tmp_path)
    assert [(item.line, item.where) for item in found] == [(3, "base.model"), (4, "base.data")]


def test_what_varies_into_a_problem_is_told_at_the_varied_key(tmp_path: Path) -> None:
    text = f"""{HEADER}\
  - name: layer-{{layers}}
    stages: [{{prune: {{sparsity: 0.5}}}}]
    vary:
      stages.0.prune.layers: [0, 1, 2, 3, 4, 5]
"""
    found = problems_of_text(text, tmp_path)
    assert {(item.line, item.where) for item in found} == {(FIRST_TRIAL + 3, "trials.0.vary.stages.0.prune.layers")}
    assert [item.message.rpartition(", ")[2] for item in found] == ["got 4.", "got 5."]


def test_a_trial_needs_model_and_text() -> None:
    found = problems_of({"name": "a"}, base={})
    assert [item.message for item in found] == [
        "a trial needs a model: set `model` in base or in the trial.",
        "a trial needs text: set `data` in base or in the trial.",
    ]
    assert [item.where for item in found] == ["trials.0.model", "trials.0.data"]


def test_a_text_must_name_its_source() -> None:
    found = only(problems_of({"name": "a", "data": {"block_size": 64}}, base={"model": "builtin:tiny-gpt2"}))
    assert "data must name its text: `path` (hub id, folder, file or builtin:NAME) or `files`" in found.message


# -- circles ---------------------------------------------------------------------------------------------------------


def distilled(name: str, teacher: str) -> dict[str, object]:
    return {"name": name, "stages": [{"distill": {"teacher": teacher}}]}


def test_a_circle_is_told_once_with_all_its_trials() -> None:
    found = only(problems_of(distilled("a", "b"), distilled("b", "c"), distilled("c", "a"), distilled("d", "a")))
    assert "teachers must not form a circle: a → b → c → a." in found.message
    assert found.where == "trials.2.stages.0.distill.teacher"


def test_a_row_of_teachers_has_an_end() -> None:
    row = [distilled(f"t{index}", f"t{index + 1}") for index in range(60)]
    found = only(problems_of(*row, {"name": "t60"}))
    assert "at most 50 trials may teach one another in a row" in found.message


def test_a_student_of_a_broken_trial_is_no_problem_of_its_own() -> None:
    found = problems_of(
        {"name": "a", "stages": [{"prune": {"sparsity": 90}}]},
        {"name": "b-{sparsity}", "vary": {"stages.0.prune.sparsity": [90]}},
        distilled("c", "a"),
        distilled("d", "b-90"),
        distilled("e", "x"),
    )
    assert [item.where for item in found if "teacher" in item.where] == ["trials.4.stages.0.distill.teacher"]


# -- models ----------------------------------------------------------------------------------------------------------


def model_problem(folder: Path) -> str:
    base = {"model": str(folder), "data": {"path": "builtin:text", "block_size": 32}}
    return only(problems_of({"name": "a"}, base=base)).message


def cut(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def test_a_whole_model_has_no_problem(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert not problems_of(
        {"name": "a"}, base={"model": str(folder), "data": {"path": "builtin:text", "block_size": 32}}
    )


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1], ids=lambda size: f"first {size} bytes")
def test_truncated_weights(size: int, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    cut(folder, size)
    assert re.search("safetensors file .*model.safetensors cannot be read", model_problem(folder))


def test_weights_with_a_wild_header(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    for header in (b"[]", b"{}x", b'{"a": 1}', b'{"a": {"shape": 3, "data_offsets": [0, 0]}}', b"\xff\xfe"):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        assert "safetensors file " in model_problem(folder)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert re.search(r"must hold all its weights; .* lacks model-2\.safetensors", model_problem(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "must be JSON with a weight_map" in model_problem(folder)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    """PEFT would load a base model from elsewhere, which no key stands for."""
    folder = model_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    message = model_problem(folder)
    assert "holds a PEFT adapter (adapter_config.json)" in message
    assert "merge_and_unload" in message


def test_a_folder_with_pickles_only(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = model_problem(folder)
    assert "must be stored as safetensors" in message
    assert "only pickled ones (pytorch_model.bin), which can run code when loaded and never are" in message
    assert "save_pretrained" in message


BROKEN_FILES = {
    "config.json cut": ("config.json", '{"model_type": ', r"config\.json is not valid JSON: "),
    "config.json of another kind": ("config.json", "[1]", r"config\.json must be a JSON object; .* holds list"),
    "tokenizer.json cut": ("tokenizer.json", "{", r"tokenizer\.json is not valid JSON: "),
    "tokenizer.json with words for ids": (
        "tokenizer.json",
        '{"model": {"vocab": {"a": "b"}}}',
        r"tokenizer\.json must give each token a number;",
    ),
    "added tokens without a name": (
        "tokenizer.json",
        '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 2}]}',
        r"tokenizer\.json must give each token a number; .*content",
    ),
}
assert BROKEN_FILES


@pytest.mark.parametrize(("name", "content", "message"), BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_a_broken_file_of_a_model(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / name).write_text(content)
    assert re.search(message, model_problem(folder))


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    translator = model_folder(tmp_path / "translator", is_encoder_decoder=True)
    assert "a model must be decoder-only;" in model_problem(translator)
    quantised = model_folder(tmp_path / "quantised", quantization_config={"quant_method": "gptq"})
    assert "weights must be floating point to be pruned;" in model_problem(quantised)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layer": 3}, "asks for 3 decoder layers, but its files hold 2"),
        ({"vocab_size": 9}, "asks for 9 rows of the embedding, but its files hold 8"),
        ({"n_embd": 5}, "asks for 5 columns of the embedding, but its files hold 4"),
    ],
)
def test_a_config_that_is_of_another_model(config: dict[str, int], message: str, tmp_path: Path) -> None:
    assert message in model_problem(model_folder(tmp_path / "model", **config))  # type: ignore[arg-type]


def test_a_tokeniser_with_more_ids_than_the_embedding_has_rows(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", rows=6)
    assert "may use ids below the 6 rows of the model's embedding" in model_problem(folder)
    assert "token 'g' = 7" in model_problem(folder)


def test_a_tokeniser_from_elsewhere_that_does_not_fit(tmp_path: Path) -> None:
    folder, other = model_folder(tmp_path / "model"), model_folder(tmp_path / "other", words=[*WORDS, "h"])
    base = {
        "model": {"source": str(folder), "tokenizer": str(other)},
        "data": {"path": "builtin:text", "block_size": 32},
    }
    assert "token 'h' = 8" in only(problems_of({"name": "a"}, base=base)).message
    (other / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in only(problems_of({"name": "a"}, base=base)).message


def test_a_teacher_with_another_tokeniser_is_told_by_the_first_difference(tmp_path: Path) -> None:
    student = model_folder(tmp_path / "student")
    teacher = model_folder(tmp_path / "teacher", words=["<|endoftext|>", "a", "x", "c", "d", "e", "f", "y"])
    base = {"model": str(student), "data": {"path": "builtin:text", "block_size": 32}}
    trial = {"name": "a", "stages": [{"distill": {"teacher": {"model": str(teacher)}}}]}
    found = only(problems_of(trial, base=base))
    assert found.where == "trials.0.stages.0.distill.teacher"
    assert "must use the student's tokeniser; token 2 is 'b' in " in found.message
    assert "and 'x' in " in found.message


def test_a_teacher_with_the_same_tokens_fits_even_where_its_embedding_is_padded(tmp_path: Path) -> None:
    student, teacher = model_folder(tmp_path / "s"), model_folder(tmp_path / "t", rows=16, fill=1.0)
    base = {"model": str(student), "data": {"path": "builtin:text", "block_size": 32}}
    assert not problems_of({"name": "a", "stages": [{"distill": {"teacher": {"model": str(teacher)}}}]}, base=base)


def test_a_teacher_too_short_for_the_students_blocks(tmp_path: Path) -> None:
    student, teacher = model_folder(tmp_path / "s", positions=64), model_folder(tmp_path / "t", positions=16)
    base = {"model": str(student), "data": {"path": "builtin:text", "block_size": 32}, "evaluate": {"skip": True}}
    found = problems_of({"name": "a", "stages": [{"distill": {"teacher": {"model": str(teacher)}}}]}, base=base)
    assert "a teacher's window must fit the 16 positions" in only(found).message


@pytest.mark.parametrize("prefix", ["transformer.", ""], ids=["saved by us", "as on the hub"])
def test_targets_are_named_as_in_memory_however_the_file_names_them(prefix: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", prefix=prefix)
    base = {"model": str(folder), "data": {"path": "builtin:text", "block_size": 32}}

    def pruned(**fields: object) -> dict[str, object]:
        return {"name": "a", "stages": [{"prune": {"sparsity": 0.5, **fields}}]}

    good = [
        {"targets": "transformer.h.0.attn.c_attn"},
        {"targets": ["*mlp*", "lm_head"]},
        {"layers": [0, 1]},
        {"exclude": "re:.*\\.1\\..*"},
    ]
    for fields in good:
        assert not problems_of(pruned(**fields), base=base)
    assert "(0 to 1), got 2" in only(problems_of(pruned(layers=2), base=base)).message
    assert "'*ln*' matches none" in only(problems_of(pruned(targets="*ln*"), base=base)).message


def test_a_family_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", model_type="novel")
    base = {"model": str(folder), "data": {"path": "builtin:text", "block_size": 32}}
    (problem,) = problems_of({"name": "a", "stages": [{"prune": {"sparsity": 0.5, "targets": "x"}}]}, base=base)
    assert problem.message.startswith("transformers cannot build a model from the config: ")


# -- the hub ---------------------------------------------------------------------------------------------------------


def test_what_is_on_the_hub_is_said_to_be_unchecked_and_is_a_problem_where_it_must_run() -> None:
    base = {"model": "some-body/some-model", "data": {"path": "some-body/some-text"}}
    plan = plan_of({"name": "a"}, base=base)
    assert plan.unchecked == (
        "model some-body/some-model: HF_HUB_OFFLINE is set and its cache holds no copy",
        "dataset some-body/some-text: HF_HUB_OFFLINE is set and its cache holds no copy",
    )
    with pytest.raises(SpecError, match=r"2 problems\n.*cache holds no copy\. Download it, or give a local folder\."):
        plan_of({"name": "a"}, base=base, strict=True)


def test_what_is_at_hand_is_checked() -> None:
    assert plan_of({"name": "a"}, strict=True).unchecked == ()


# -- datasets --------------------------------------------------------------------------------------------------------


def test_files_of_a_split_must_hold_text_of_one_kind(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "text")
    base = {"model": "builtin:tiny-gpt2", "data": {"path": str(folder), "block_size": 128}}
    assert not problems_of({"name": "a"}, base=base)
    (folder / "validation.txt").write_text("")
    assert " is empty. Give another file" in only(problems_of({"name": "a"}, base=base)).message
    (folder / "validation.jsonl").write_text('{"text": "x"}\n')
    found = only(problems_of({"name": "a"}, base=base)).message
    assert "must be of one kind of .txt, .jsonl, .json, .ndjson, .parquet, .csv, .tsv, .arrow, got " in found
    assert "got validation.jsonl, validation.txt" in found


def test_a_single_file_trains_and_is_the_split_it_is_called(tmp_path: Path) -> None:
    text = text_folder(tmp_path / "text", corpus="a b\n", held="c d\n")
    data = {"path": str(text / "corpus.txt"), "block_size": 128}
    base = {"model": "builtin:tiny-gpt2", "data": data}
    found = only(problems_of({"name": "a", "stages": ["finetune"]}, base=base))
    assert "data has no split 'validation'. Valid: corpus, train." in found.message
    trial = {"name": "a", "stages": ["finetune"], "evaluate": {"data": {"path": str(text / "held.txt")}}}
    plan = plan_of(trial, base=base).trials[0]
    assert plan.evaluate.split == "held"
    assert plan.evaluate.data is not None
    assert plan.evaluate.data.files == dict.fromkeys(("held", "train"), (str(text / "held.txt"),))


def test_what_is_not_measured_needs_no_split() -> None:
    assert not problems_of({"name": "a", "evaluate": {"split": "none", "skip": True}})


# -- tables ----------------------------------------------------------------------------------------------------------

TABLE = """\
tables:
  - title: t
    columns: [perplexity]
    rows:
      - finetuned
      - {trial: "prund*"}
    reported:
      finetuned: 1
      dense: 2
"""


def test_rows_and_figures_that_belong_to_no_trial(tmp_path: Path) -> None:
    text = f"{HEADER}  - {{name: finetuned}}\n  - {{name: pruned, seeds: [1, 2]}}\n{TABLE}"
    found = problems_of_text(text, tmp_path)
    assert [(item.line, item.where) for item in found] == [
        (FIRST_TRIAL + 7, "tables.0.rows.1"),
        (FIRST_TRIAL + 10, "tables.0.reported.dense"),
    ]
    assert found[0].message == "a row must match a trial; 'prund*' matches none. Trials: pruned, finetuned."
    assert "a published figure must name a trial; 'dense' is none." in found[1].message


def test_rows_are_not_doubted_where_a_trial_is_broken(tmp_path: Path) -> None:
    text = f"{HEADER}  - {{name: finetuned, stages: [{{prune: {{}}}}]}}\n{TABLE}"
    assert only(problems_of_text(text, tmp_path)).where == "trials.0.stages.0.prune"


# -- the file itself -------------------------------------------------------------------------------------------------


def test_the_message_names_the_file_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrials: [{name: a}]\n")
    with pytest.raises(SpecError, match=r"^.*x\.yaml: 2 problems\n  line 2: trials\.0\.model: a trial needs a model"):
        plan_file(path)


@pytest.mark.parametrize("override", ["trials.b.device=cpu", "base.data.block_size=1", "base.nonsense=1", "x"])
def test_an_override_is_checked_like_the_file(override: str, tmp_path: Path) -> None:
    assert only(problems_of_text(f"{HEADER}  - {{name: a}}\n", tmp_path, [override]))


def test_an_override_changes_the_plan(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"{HEADER}  - {{name: a, stages: [finetune]}}\n")
    overrides = ["trials.a.stages.0.finetune.train.max_steps=3", "base.seeds=[1, 2]"]
    plan = plan_file(tmp_path / "x.yaml", overrides)
    assert [trial.name for trial in plan.trials] == ["a@1", "a@2"]
    (training,) = [stage.training for stage in plan.trials[0].stages if stage.training]
    assert training.train == {"max_steps": 3}
