"""Stage keys: equal where the result is equal, different where anything decides it, and blind to the rest."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers.training_args import OptimizerNames

from prunegpt.planning import corpus, fingerprint, rehearsed
from prunegpt.planning import stages as planned_stages
from prunegpt.planning.fingerprint import Files, digest, versions
from prunegpt.planning.rehearsed import OWN_OPTIMIZERS
from prunegpt.registry import CALIBRATION_MODES
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.read import set_path
from tests.support.plug_in import PlugIn
from tests.support.specs import BASE, WORDS, model_folder, plan_of, text_folder, trial_of

PRUNE = {
    "method": "wanda",
    "sparsity": 0.5,
    "calibration": {"windows": 4, "length": 32},
    "options": {},
    "targets": ["*attn*"],
}
GRADUAL = {"method": "magnitude", "sparsity": 0.5, "end": 1}
TRIAL: Mapping[str, Any] = {
    "name": "student",
    "seeds": [1],
    "train": {"num_train_epochs": 2},
    "stages": [
        {"prune": PRUNE},
        {"distill": {"teacher": "teacher", "prune": GRADUAL, "train": {"learning_rate": 0.1}}},
    ],
}
TEACHERS = (
    {"name": "teacher", "seeds": [1], "stages": [{"finetune": {"train": {"max_steps": 1}}}]},
    {"name": "other", "seeds": [1], "stages": [{"finetune": {"train": {"max_steps": 2}}}]},
)


def planned(change: Mapping[str, Any] | None = None, base: Mapping[str, Any] = BASE) -> TrialPlan:
    """The student's plan with some fields set, by path."""
    trial = copy.deepcopy(dict(TRIAL))
    for path, value in (change or {}).items():
        set_path(trial, path.split("."), value)
    plan = plan_of(trial, *TEACHERS, base=base)
    return plan.trials[0]


def keys(trial: TrialPlan) -> list[str]:
    return [stage.key for stage in trial.stages]


def changed(trial: TrialPlan, other: TrialPlan) -> list[int]:
    """The stages whose keys differ."""
    assert len(trial.stages) == len(other.stages)
    return [index for index, (one, two) in enumerate(zip(keys(trial), keys(other), strict=True)) if one != two]


def test_equal_configurations_have_equal_keys() -> None:
    assert keys(planned()) == keys(planned())
    assert planned().evaluation_key == planned().evaluation_key


def test_a_key_is_hexadecimal_and_stages_form_a_chain() -> None:
    trial = planned()
    assert len(set(keys(trial))) == 3
    assert all(len(key) == 24 and int(key, 16) >= 0 for key in keys(trial))
    assert [stage.parent for stage in trial.stages] == [None, *keys(trial)[:-1]]
    assert trial.key == keys(trial)[-1]


D = "stages.1.distill"
P = "stages.0.prune"
# Field -> another value, and the first stage whose key must change with it; those after it change too.
DECISIVE: Mapping[str, tuple[Any, int]] = {
    "model": ("OTHER MODEL", 0),
    "precision": ("bfloat16", 0),  # the built-in model is trained first
    f"{P}.method": ("sparsegpt", 1),
    f"{P}.sparsity": (0.6, 1),
    f"{P}.pattern": ("[1, 4]", 1),
    f"{P}.allocation": ("row", 1),
    f"{P}.targets": (["*mlp*"], 1),
    f"{P}.layers": ([0], 1),
    f"{P}.exclude": (["*c_proj*"], 1),
    f"{P}.propagate": (False, 1),
    f"{P}.options": ({"damping": 0.1}, 1),
    f"{P}.calibration.windows": (5, 1),
    f"{P}.calibration.length": (33, 1),
    f"{P}.calibration.seed": (1, 1),
    f"{P}.calibration.mode": ("first", 1),
    f"{P}.calibration.bos": (True, 1),
    f"{P}.calibration.split": ("validation", 1),
    f"{P}.calibration.data": ("OTHER TEXT", 1),
    "seeds": ([2], 2),  # wanda draws nothing
    "data": ("OTHER TEXT", 1),
    "data.block_size": (64, 2),  # the calibration's length is given
    "data.train_split": ("pretrain", 1),
    "data.max_train_blocks": (5, 2),
    "train.num_train_epochs": (3, 2),
    "train.weight_decay": (0.1, 2),
    f"{D}.train.learning_rate": (0.2, 2),
    f"{D}.train.per_device_train_batch_size": (4, 2),
    f"{D}.train.gradient_accumulation_steps": (2, 2),
    f"{D}.train.max_steps": (7, 2),
    f"{D}.train.lr_scheduler_type": ("cosine", 2),
    f"{D}.train.warmup_steps": (3, 2),
    f"{D}.train.dataloader_drop_last": (True, 2),
    f"{D}.train.max_grad_norm": (0.5, 2),
    f"{D}.data": ("OTHER TEXT", 2),
    f"{D}.keep_masks": (False, 2),
    f"{D}.teacher": ("other", 2),
    f"{D}.loss": ("reverse_kl", 2),
    f"{D}.hardness": (0.6, 2),
    f"{D}.temperature": (3.0, 2),
    f"{D}.options": ({"k": 3}, 2),
    f"{D}.hidden_gain": (0.1, 2),
    f"{D}.attention_gain": (0.1, 2),
    f"{D}.layer_map": ({"0": 1}, 2),
    f"{D}.cache": ({"k": 8}, 2),
    f"{D}.prune.method": ("random", 2),
    f"{D}.prune.sparsity": (0.6, 2),
    f"{D}.prune.schedule": ("linear", 2),
    f"{D}.prune.initial": (0.1, 2),
    f"{D}.prune.start": (0.5, 2),
    f"{D}.prune.end": (0.9, 2),
    f"{D}.prune.every": (0.2, 2),
    f"{D}.prune.unit": ("fraction", 2),
    f"{D}.prune.regrow": (True, 2),
    f"{D}.prune.mode": ("live", 2),
    f"{D}.prune.options": ({"decay": 0.1}, 2),
    f"{D}.prune.layers": ([1], 2),
    f"{D}.prune.targets": (["*mlp*"], 2),
    f"{D}.prune.allocation": ("global", 2),
}
assert DECISIVE
ALONGSIDE: Mapping[str, Mapping[str, Any]] = {
    f"{D}.prune.unit": {f"{D}.prune.end": 0.5},  # a fraction ends at 1
    f"{P}.options": {f"{P}.method": "sparsegpt"},
    f"{D}.options": {f"{D}.loss": "top_k"},
    f"{D}.cache": {f"{D}.hidden_gain": 0.0},
    f"{D}.prune.options": {f"{D}.prune.mode": "live"},
}


@pytest.mark.parametrize("field", DECISIVE)
def test_what_decides_the_result_changes_the_key_from_there_on(field: str, tmp_path: Path) -> None:
    value, first = DECISIVE[field]
    if value == "OTHER MODEL":
        value = str(model_folder(tmp_path / "model", blocks=4, positions=128))
    if value == "OTHER TEXT":
        value = {"path": str(text_folder(tmp_path / "text")), "block_size": 128}
    extra = ALONGSIDE.get(field, {})
    base = copy.deepcopy(dict(BASE))
    trial = copy.deepcopy(dict(TRIAL))
    if field.startswith("data"):
        set_path(base, field.split("."), value)
        other = planned(extra, base=base)
    else:
        set_path(trial, field.split("."), value)
        other = planned({field: value, **extra})
    assert changed(planned(extra), other) == list(range(first, 3)), field


NEUTRAL: Mapping[str, Any] = {
    "name": "another",
    "device": "cpu",
    "model": {"source": "builtin:tiny-gpt2", "label": "GPT-2"},
    "data.tokens": 1000,
    "evaluate.batch_size": 3,
    "evaluate.max_windows": 2,
    "evaluate.protocol": "stream",
    "train.logging_steps": 7,
    "train.save_steps": 7,
    "train.save_total_limit": 2,
    "train.eval_strategy": "epoch",
    f"{D}.train.eval_steps": 7,
    f"{D}.train.dataloader_num_workers": 2,
    f"{D}.train.disable_tqdm": True,
    f"{D}.keep_checkpoints": True,
    f"{D}.prune.calibration.windows": 7,  # magnitude looks at no text
    f"{D}.prune.propagate": False,
}
assert NEUTRAL


@pytest.mark.parametrize("field", NEUTRAL)
def test_what_does_not_decide_the_result_leaves_the_keys(field: str) -> None:
    base: dict[str, Any] = copy.deepcopy(dict(BASE))
    trial = copy.deepcopy(dict(TRIAL))
    set_path(base if field.startswith("data") else trial, field.split("."), NEUTRAL[field])
    other = plan_of(trial, *TEACHERS, base=base).trials[0]
    assert changed(planned(), other) == []


def test_neutral_arguments_still_reach_the_stage() -> None:
    stage = planned({f"{D}.train.logging_steps": 7}).stages[2]
    assert stage.training is not None
    assert stage.training.train["logging_steps"] == 7
    assert stage.neutral == {"logging_steps": 7}


def test_names_labels_titles_and_tables_leave_all_keys() -> None:
    plan = plan_of(dict(TRIAL), *TEACHERS)
    tables = [{"title": "t", "rows": ["*"], "columns": ["model"], "reported": {"teacher": 1}}]
    other = plan_of(dict(TRIAL), *TEACHERS, title="Title", tables=tables)
    assert [trial.key for trial in plan.trials] == [trial.key for trial in other.trials]


@pytest.mark.parametrize("argument", ["save_steps", "eval_steps", "eval_strategy", "save_strategy"])
def test_what_chooses_the_best_checkpoint_decides(argument: str) -> None:
    best: dict[str, Any] = {
        f"{D}.prune": None,
        f"{D}.train.load_best_model_at_end": True,
        f"{D}.train.eval_strategy": "steps",
        f"{D}.train.save_strategy": "steps",
        f"{D}.train.eval_steps": 5,
        f"{D}.train.save_steps": 10,
    }
    other = {f"{D}.train.eval_strategy": "epoch", f"{D}.train.save_strategy": "epoch"}
    if argument.endswith("steps"):
        other = {f"{D}.train.{argument}": 10 if argument == "eval_steps" else 20}
    assert changed(planned(best), planned({**best, **other})) == [2]
    assert changed(planned(best), planned({**best, "evaluate.max_windows": 3})) == [2]
    assert changed(planned(best), planned({**best, f"{D}.train.logging_steps": 3})) == []


# -- what is drawn, what is looked at --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "drawn"), [("random", True), ("magnitude", False), ("wanda", False), ("sparsegpt", False)]
)
def test_the_seed_decides_a_pruning_that_draws(method: str, drawn: bool) -> None:
    stage = {"prune": {"method": method, "sparsity": 0.5, "calibration": {"length": 8}}}
    one, two = (trial_of(stage, seeds=[seed]) for seed in (1, 2))
    assert (one.key != two.key) is drawn


@pytest.mark.parametrize(
    ("method", "looks"), [("magnitude", False), ("random", False), ("wanda", True), ("taylor", True), ("admm", True)]
)
def test_text_decides_a_pruning_that_looks_at_it(method: str, looks: bool) -> None:
    stages = [
        {"prune": {"method": method, "sparsity": 0.5, "calibration": {"windows": n, "length": 8}}} for n in (3, 4)
    ]
    one, two = map(trial_of, stages)
    assert (one.key != two.key) is looks
    assert (one.stages[1].prune.calibration.data is not None) is looks  # type: ignore[union-attr]


def test_the_order_of_an_allocation_decides() -> None:
    """The first pattern that matches gives a tensor its sparsity."""
    allocations = [{"*attn*": 0.5, "*.h.0.*": 0.1}, {"*.h.0.*": 0.1, "*attn*": 0.5}]
    one, two = (trial_of({"prune": {"sparsity": 0.5, "allocation": allocation}}) for allocation in allocations)
    assert one.key != two.key


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"generator"}), frozenset({"input_norm"})], ids=str)
def test_what_a_plug_in_says_that_it_needs_decides(needs: frozenset[str], plug_in: PlugIn) -> None:
    from prunegpt.pruning.criteria.base import Criterion

    plug_in("criterion", "mine", Criterion("mine", needs, lambda weight, **_: weight.float()))
    stage = {"prune": {"method": "mine", "sparsity": 0.5, "calibration": {"length": 8}}}
    one, two = (trial_of(stage, seeds=[seed]) for seed in (1, 2))
    assert (one.key != two.key) is ("generator" in needs)
    assert (one.stages[1].prune.calibration.data is not None) is ("input_norm" in needs)  # type: ignore[union-attr]


def test_versions_of_libraries_decide_what_is_computed_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned()
    monkeypatch.setattr(planned_stages, "versions", lambda: {"torch": "9"})
    assert changed(before, planned()) == [0, 1, 2]


def test_versions_decide_a_model_that_is_only_loaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"model": str(model_folder(tmp_path / "model")), "data": {"path": "builtin:text", "block_size": 32}}
    before = trial_of("finetune", base=base)
    monkeypatch.setattr(planned_stages, "versions", lambda: {"torch": "9"})
    assert changed(before, trial_of("finetune", base=base)) == [0, 1]


def test_versions_have_no_local_label() -> None:
    found = versions()
    assert set(found) == {"torch", "transformers", "accelerate", "tokenizers", "numpy"}
    assert not any("+" in version for version in found.values())


# -- sharing ---------------------------------------------------------------------------------------------------------


def test_twelve_single_layer_trials_share_one_fine_tuning(tmp_path: Path) -> None:
    base = {
        "model": str(model_folder(tmp_path / "model", blocks=12)),
        "data": {"path": "builtin:text", "block_size": 32},
    }
    trial = {
        "name": "layer-{layers}",
        "stages": ["finetune", {"prune": {"sparsity": 0.8}}],
        "vary": {"stages.1.prune.layers": list(range(12))},
    }
    plan = plan_of({"name": "finetuned", "stages": ["finetune"]}, trial, base=base)
    assert len(plan.trials) == 13
    assert len({item.stages[1].key for item in plan.trials}) == 1
    assert len({item.key for item in plan.trials}) == 13


def test_the_same_configuration_under_two_names_is_one_key() -> None:
    plan = plan_of({"name": "a", "stages": ["finetune"]}, {"name": "b", "stages": [{"finetune": {}}]})
    assert plan.trials[0].key == plan.trials[1].key


def test_a_trial_planned_from_a_file_has_the_same_keys_wherever_the_file_lies(tmp_path: Path) -> None:
    from prunegpt.planning.resolve import plan_file
    from tests.support.specs import HEADER

    found = []
    for folder in ("here", "there/deep"):
        path = tmp_path / folder / "x.yaml"
        path.parent.mkdir(parents=True)
        text_folder(path.parent / "text")
        path.write_text(f"{HEADER}  - {{name: a, data: {{path: text, block_size: 128}}, stages: [finetune]}}\n")
        found.append(keys(plan_file(path).trials[0]))
    assert found[0] == found[1]


# -- evaluation ------------------------------------------------------------------------------------------------------

EVALUATIONS: Mapping[str, Any] = {
    "protocol": "stream",
    "block_size": 64,
    "max_windows": 3,
    "split": "train",
    "bos": True,
    "data": {"path": "OTHER"},
}
assert EVALUATIONS


@pytest.mark.parametrize("field", EVALUATIONS)
def test_what_decides_a_perplexity_changes_its_key(field: str, tmp_path: Path) -> None:
    value = EVALUATIONS[field]
    if field == "data":
        value = {"path": str(text_folder(tmp_path / "text"))}
    assert trial_of(evaluate={field: value}).evaluation_key != trial_of().evaluation_key


def test_stride_and_precision_decide_a_perplexity_and_the_batch_does_not() -> None:
    sliding: dict[str, Any] = {"protocol": "sliding", "stride": 32}
    key = trial_of(evaluate=sliding).evaluation_key
    assert trial_of(evaluate={**sliding, "stride": 64}).evaluation_key != key
    assert trial_of(evaluate=sliding, precision="bfloat16").evaluation_key != key
    assert trial_of(evaluate={**sliding, "batch_size": 4}).evaluation_key == key
    assert trial_of("finetune", evaluate=sliding, seeds=[9], train={"max_steps": 1}).evaluation_key == key


def test_the_usual_window_is_that_of_the_data() -> None:
    base = {**BASE, "data": {**BASE["data"], "block_size": 64}}
    explicit = trial_of(evaluate={"block_size": 64}, base=base)
    assert explicit.evaluation_key == trial_of(base=base).evaluation_key
    assert explicit.evaluate.block_size == 64


# -- files -----------------------------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    path.write_text("z y x\n")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def same_size_and_date(path: Path) -> None:
    status = path.stat()
    path.write_text(path.read_text()[::-1].strip() + "\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


CHANGES: Mapping[str, tuple[Callable[[Path], None], bool]] = {
    "new content": (rewrite, True),
    "new content of the same size and date": (same_size_and_date, True),
    "another date": (touch, False),
    "the same content in a new file": (replace, False),
}
assert CHANGES


@pytest.mark.parametrize(("change", "matters"), CHANGES.values(), ids=CHANGES.keys())
def test_content_of_a_text_decides_and_its_date_does_not(
    change: Callable[[Path], None], matters: bool, tmp_path: Path
) -> None:
    from prunegpt.planning.resolve import plan_data

    root = Root(tmp_path / "root")
    root.path.mkdir()
    text = text_folder(tmp_path / "text")

    def plan() -> TrialPlan:
        data = {"path": str(text), "block_size": 128}
        trials = [{"name": "a", "stages": ["finetune"]}]
        spec = {"name": "words", "base": {"model": "builtin:tiny-gpt2", "data": data}, "trials": trials}
        return plan_data(spec, root=root).trials[0]

    before = plan()
    change(text / "train.txt")
    assert changed(before, plan()) == ([1] if matters else [])
    assert plan().evaluation_key == before.evaluation_key
    change(text / "validation.txt")
    assert (plan().evaluation_key != before.evaluation_key) is matters


def test_a_text_is_another_when_it_is_read_in_another_way(tmp_path: Path) -> None:
    text = text_folder(tmp_path / "text")
    (tmp_path / "text" / "train.jsonl").write_text((text / "train.txt").read_text())
    trials = [
        trial_of(
            "finetune",
            data={
                "files": {"train": str(text / f"train.{suffix}"), "validation": str(text / "validation.txt")},
                "block_size": 128,
            },
        )
        for suffix in ("txt", "jsonl")
    ]
    assert changed(*trials) == [1]


def test_a_file_of_text_is_opened_once_for_all_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_folder(tmp_path / "text")
    asked: list[Path] = []

    def begins_with_mark(file: Path) -> bool:
        asked.append(file)
        return corpus.begins_with_mark(file)

    monkeypatch.setattr("prunegpt.planning.facts.begins_with_mark", begins_with_mark)
    base = {"model": "builtin:tiny-gpt2", "data": {"path": str(text), "block_size": 128}}
    vary = {"train.learning_rate": [0.1, 0.2, 0.3]}
    plan = plan_of({"name": "a", "vary": vary, "seeds": [1, 2], "stages": ["finetune"]}, base=base)
    assert len(plan.trials) == 6
    assert sorted(asked) == [text / "train.txt", text / "validation.txt"]


def folder_keys(tmp_path: Path, **model: Any) -> list[str]:
    base = {"model": {"source": str(tmp_path / "model"), **model}, "data": {"path": "builtin:text", "block_size": 32}}
    return keys(trial_of("finetune", base=base))


def test_every_file_of_a_model_that_decides_is_in_its_key(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    seen = [folder_keys(tmp_path)]
    model_folder(folder, fill=1.0)
    seen.append(folder_keys(tmp_path))
    model_folder(folder, words=[*WORDS[:-1], "other"])
    seen.append(folder_keys(tmp_path))
    model_folder(folder, layer_norm_epsilon=1.0)
    seen.append(folder_keys(tmp_path))
    (folder / "tokenizer_config.json").write_text("{}")
    seen.append(folder_keys(tmp_path))
    assert len({tuple(found) for found in seen}) == len(seen)
    (folder / "README.md").write_text("words")
    assert folder_keys(tmp_path) == seen[-1]


def test_a_model_keeps_its_key_when_it_moves(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    before = folder_keys(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "model")
    assert folder_keys(tmp_path / "elsewhere") == before


def test_a_tokeniser_from_elsewhere_decides_by_its_content(tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    one, same = model_folder(tmp_path / "one"), model_folder(tmp_path / "same")
    other = model_folder(tmp_path / "other", words=WORDS[:-1])
    found = {name: folder_keys(tmp_path, tokenizer=str(name)) for name in (one, same, other)}
    assert found[one] == found[same] != found[other]
    assert folder_keys(tmp_path) not in found.values()


def test_local_models_and_texts_are_named_absolutely_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "model")
    text_folder(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    trial = trial_of("finetune", base={"model": "model", "data": {"path": "text", "block_size": 32}})
    assert trial.model.source == str(tmp_path / "model")
    assert trial.label == "model"
    assert {stage.model.source for stage in trial.stages} == {str(tmp_path / "model")}
    assert trial.data.files == {split: (str(tmp_path / "text" / f"{split}.txt"),) for split in ("train", "validation")}


# -- digests ---------------------------------------------------------------------------------------------------------


def test_a_digest_is_of_the_value_and_not_of_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(value) for value in ({"a": 1}, {"a": 2}, {"a": "1"}, [1], "a", None)}) == 6
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))


def test_hashes_of_files_are_remembered_once_they_are_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(tmp_path)
    file = tmp_path / "a"
    file.write_text("a")

    def remembered() -> dict[str, Any]:
        files = Files(root)
        files.hash(file)
        files.save()
        path = tmp_path / "fingerprints.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    assert remembered() == {}  # changed a moment ago
    monkeypatch.setattr("prunegpt.planning.fingerprint.SETTLED", 0)
    assert list(remembered()) == [str(file)]


def test_a_damaged_memory_of_hashes_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("a")
    expected = Files(None).hash(file)
    for content in ("", "[]", "{", '{"x": 1}', f'{{"{file}": [1]}}'):
        (tmp_path / "fingerprints.json").write_text(content)
        assert Files(Root(tmp_path)).hash(file) == expected


def test_another_file_in_the_place_of_one_is_hashed_again_whatever_its_times_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number tells it; what earlier versions remembered without one stays valid, and gets it."""
    file, memory = tmp_path / "text.txt", tmp_path / "fingerprints.json"
    file.write_text("one")
    old = [3, 1_000, 1_000]
    memory.write_text(json.dumps({str(file): [*old, "remembered"]}))
    number = 2**64 - 1
    monkeypatch.setattr(fingerprint, "stamp", lambda _: [*old, number])
    files = Files(Root(tmp_path))
    assert files.hash(file) == "remembered"
    files.save()
    assert json.loads(memory.read_text()) == {str(file): [*old, number, "remembered"]}
    number = 5
    files = Files(Root(tmp_path))
    assert files.hash(file) == hashlib.sha256(b"one").hexdigest()
    files.save()
    assert json.loads(memory.read_text())[str(file)][:-1] == [*old, 5], "a large number is no late time"


def test_the_number_of_a_file_is_in_its_stamp(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    assert fingerprint.stamp(tmp_path / "a")[3] == (tmp_path / "a").stat().st_ino


OTHERS = sorted({one.value for one in OptimizerNames} - OWN_OPTIMIZERS)


@pytest.mark.parametrize("choice", [*({"optim": name} for name in OTHERS), {"use_liger_kernel": True}], ids=str)
def test_the_library_of_an_optimizer_or_kernel_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any]
) -> None:
    """Of the libraries that only some arguments use, those that are installed are in the key of these stages."""
    monkeypatch.setattr(rehearsed, "answer", lambda _: None)  # whether this machine could begin with it is not asked
    base = {"model": str(model_folder(tmp_path / "model")), "data": {"path": "builtin:text", "block_size": 32}}
    plain, other = {"finetune": {}}, {"finetune": {"train": choice}}
    keys = []
    for version in ("1.0", "2.0"):
        monkeypatch.setattr(planned_stages, "extra_versions", lambda version=version: {"bitsandbytes": version})
        keys.append([trial_of(stage, base=base).key for stage in (plain, other)])
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


CALIBRATED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "prune": ("stages.0.prune", {"method": "wanda", "sparsity": 0.5}),
    "finetune": ("stages.0.finetune.prune", {"method": "sparsegpt", "sparsity": 0.5, "end": 1}),
    "shrink": ("stages.0.shrink", {"layers": 1, "choice": "influence"}),
}


@pytest.mark.parametrize("mode", [mode for mode in CALIBRATION_MODES.builtin_names() if mode != "first"])
@pytest.mark.parametrize("kind", CALIBRATED)
def test_each_seed_of_a_trial_may_draw_its_own_calibration(kind: str, mode: str) -> None:
    path, config = CALIBRATED[kind]

    def stages(seed: int | str, seeds: list[int]) -> list[tuple[str, int | str]]:
        trial: dict[str, Any] = {"name": "drawn", "seeds": seeds, "stages": [{kind: {}}]}
        calibration = {"windows": 4, "length": 32, "mode": mode, "seed": seed}
        set_path(trial, path.split("."), {**config, "calibration": calibration})
        found = [trial.stages[-1] for trial in plan_of(trial).trials]
        return [(stage.key, stage.calibration.seed) for stage in found if stage.calibration]

    drawn = stages("trial", [3, 5])
    assert [seed for _, seed in drawn] == [3, 5]
    assert drawn == stages(3, [3]) + stages(5, [5])
    assert drawn[0][0] != drawn[1][0]
