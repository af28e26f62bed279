"""Low-rank adapters that keep masks, against dense weights written out by hand; and as a stage that trains."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunegpt.errors import PruneGPTError
from prunegpt.lm.views import block_matrices
from prunegpt.planning.budget import models_on_disk
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import check, load_masks
from prunegpt.spec.adapter import AdapterSpec
from prunegpt.spec.plan import StagePlan
from prunegpt.spec.schema import FinetuneSpec, ModelSpec
from prunegpt.training.adapter import STATE, Adapter
from tests.support.families import tiny
from tests.support.running import RunTrials
from tests.support.specs import only, problems_of

# Conv1D and tied embeddings; Linear; biases; experts [out, in], [in, out], and one below the other.
FAMILIES = ("gpt2", "llama", "opt", "mixtral", "gpt_oss", "dbrx")
SCALE = 6.0 / 3  # alpha / rank


def rough(family: str) -> Any:
    """A model in float64, without dropout, whose weights are large enough for its layers to matter."""
    model = tiny(family).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def half_pruned(model: Any) -> dict[str, Mask]:
    """Masks of every second matrix, applied."""
    generator, masks = torch.Generator().manual_seed(2), {}
    for name, view in list(block_matrices(model).items())[::2]:
        masks[name] = Mask(torch.rand(view.matrix.shape, generator=generator) < 0.5)
        masks[name].apply(view.matrix)
    return masks


def updates(model: Any) -> dict[str, tuple[Any, int]]:
    """Matrix -> the part of an adapted model that holds its A and B, and its place there."""
    found = {}
    for module, layer in model.named_modules():
        for name, (update,) in getattr(layer, "parametrizations", {}).items():
            several = len(update.a) > 1
            found |= {
                f"{module}.{name}[{place}]" if several else f"{module}.{name}": (update, place)
                for place in range(len(update.a))
            }
    return found


def loss_of(model: Any) -> Tensor:
    tokens = torch.randint(2, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_weights_written_out(family: str) -> None:
    model = rough(family)
    masks, dense = half_pruned(model), copy.deepcopy(model)
    Adapter(model, AdapterSpec(rank=3, alpha=6.0), masks, seed=5)
    assert loss_of(model) == loss_of(dense)  # B is zero
    generator = torch.Generator().manual_seed(3)
    adapted, views = updates(model), block_matrices(dense)
    assert set(adapted) == set(views)
    kept = {name: masks[name].kept if name in masks else torch.ones_like(view.matrix) for name, view in views.items()}
    for name, (update, place) in adapted.items():
        b = update.b.data[place].copy_(torch.randn(update.b.shape[1:], generator=generator, dtype=torch.float64) * 0.1)
        views[name].matrix.add_(SCALE * kept[name] * (b @ update.a.data[place]))
    ours, theirs = loss_of(model), loss_of(dense)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    ours.backward()
    theirs.backward()
    for name, (update, place) in adapted.items():  # by the chain rule
        slope = kept[name] * views[name].gradient
        torch.testing.assert_close(update.a.grad[place], SCALE * update.b.data[place].t() @ slope)
        torch.testing.assert_close(update.b.grad[place], SCALE * slope @ update.a.data[place].t())
    others = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        *_, module, own = name.split(".")
        whole = "norm" in module or module.startswith("ln_") or own.endswith("bias")
        assert (parameter.grad is not None) is (whole or name.endswith((".0.a", ".0.b"))), name
        if whole:
            torch.testing.assert_close(parameter.grad, others[name].grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_leaves_an_ordinary_model_and_opens_no_mask_bit(family: str) -> None:
    model = rough(family).float()
    masks, before = half_pruned(model), copy.deepcopy(model.state_dict())
    zeros = {name: int((view.matrix == 0).sum()) for name, view in block_matrices(model).items()}
    kinds = [type(module) for module in model.modules()]
    adapter = Adapter(model, AdapterSpec(rank=2), masks, seed=5)
    with torch.no_grad():
        for update, _ in updates(model).values():
            update.b.fill_(0.1)
    trained = loss_of(model)
    adapter.merge()
    assert torch.equal(loss_of(model), trained)
    assert [type(module) for module in model.modules()] == kinds
    assert model.state_dict().keys() == before.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    views = block_matrices(model)
    check(views, masks)
    assert {name: int((view.matrix == 0).sum()) for name, view in views.items()} == zeros
    for name, view in views.items():
        assert not torch.equal(view.parameter, before[name.partition("[")[0]]), name
    if model.config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_of_a_mixture_only_the_experts_that_are_named_change() -> None:
    model = rough("mixtral")
    before = copy.deepcopy(model)
    name = next(name for name in block_matrices(model) if name.endswith("[1]"))
    adapter = Adapter(model, AdapterSpec(rank=2, targets=(name,), also=()), {}, seed=0)
    with torch.no_grad():
        for update, _ in updates(model).values():
            update.b.fill_(1.0)
    adapter.merge()
    views = block_matrices(before)
    changed = [one for one, view in block_matrices(model).items() if not torch.equal(view.matrix, views[one].matrix)]
    assert changed == [name]


@pytest.mark.parametrize(
    ("also", "trained"),
    [
        (("norms",), {"ln_1", "ln_2", "ln_f"}),
        (("biases",), {"c_attn", "c_proj", "c_fc"}),
        (("head",), {"wte"}),  # tied
        (("embeddings",), {"wte"}),
    ],
)
def test_rank_zero_trains_what_is_named_alone(also: Any, trained: set[str]) -> None:
    model = tiny("gpt2")
    adapter = Adapter(model, AdapterSpec(rank=0, also=also), {}, seed=0)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-2] for name in found} == trained
    assert adapter.note.startswith("adapter of rank 0: ")


def test_what_a_model_does_not_have_cannot_be_trained() -> None:
    with pytest.raises(PruneGPTError, match=r"LlamaForCausalLM has no biases\. Set a rank"):
        Adapter(tiny("llama"), AdapterSpec(rank=0, also=("biases",)), {}, seed=0)


# -- as a stage ------------------------------------------------------------------------------------------------------


def weights(root: Path, key: str) -> Mapping[str, Tensor]:
    return load_file(root / "stages" / key / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("finetune", {}), ("distill", {}), ("distill", {"cache": {"k": 16}})],
    ids=["finetune", "live teacher", "cached teacher"],
)
@pytest.mark.parametrize("before", [[], [{"prune": {"method": "magnitude", "pattern": "2:4"}}]], ids=["dense", "2:4"])
def test_a_stage_with_an_adapter(
    run_trials: RunTrials, tmp_path: Path, model_folder: Path, kind: str, fields: dict[str, Any], before: list[Any]
) -> None:
    teacher = {"teacher": {"model": str(model_folder)}} if kind == "distill" else {}
    stage = {kind: {**teacher, **fields, "adapter": {"rank": 4}}}
    record = run_trials({"name": "t", "stages": [*before, stage]})["t"]
    assert record.state == "finished", record.trace
    *_, parent, last = record.stages
    root = tmp_path / "runs"
    changed, source = weights(root, last.key), load_file(model_folder / "model.safetensors")
    if before:
        source = dict(weights(root, parent.key))
        files = [load_masks(root / "stages" / key / "masks.safetensors") for key in (parent.key, last.key)]
        assert files[0].sha256 == files[1].sha256
        assert parent.sparsity is not None
        assert last.sparsity is not None
        assert last.sparsity.by_tensor == parent.sparsity.by_tensor == dict.fromkeys(files[0].masks, 0.5)
    for name, weight in changed.items():  # embeddings stay, and all others change
        assert torch.equal(weight, source[name]) is name.endswith(("wte.weight", "wpe.weight")), name
    (note,) = [note for note in last.notes if note.startswith("adapter of rank 4: ")]
    trained = sum(
        4 * sum(weight.shape) if weight.dim() == 2 else weight.numel()
        for name, weight in changed.items()
        if ".h." in name or "ln_f" in name
    )
    assert f" {trained:,} weights trained, beside {sum(one.numel() for one in changed.values()):,} " in note


def test_a_checkpoint_holds_what_is_trained_and_no_more(
    run_trials: RunTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"save_strategy": "steps", "save_steps": 2}
    stage = {"finetune": {"adapter": {"rank": 1, "also": "norms"}, "train": train, "keep_checkpoints": True}}
    record = run_trials({"name": "t", "stages": [{"prune": {"sparsity": 0.5}}, stage]})["t"]
    assert record.state == "finished", record.trace
    folder = tmp_path / "runs" / "stages" / record.stages[-1].key
    checkpoints = sorted(folder.glob("checkpoints/*"))
    assert [one.name for one in checkpoints] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    matrices = sum(sum(shape) for shape in ([32, 96], [32, 32], [32, 128], [128, 32])) * 2  # of rank 1, in two layers
    norms = 5 * 2 * 32
    for one in checkpoints:
        assert not list(one.glob("model*"))
        stored = load_file(one / STATE)
        assert sum(tensor.numel() for tensor in stored.values()) == matrices + norms
        assert (one / STATE).stat().st_size < 4 * (matrices + norms) + 6_000  # names take the rest
        assert (one / "optimizer.pt").stat().st_size < 2 * 4 * (matrices + norms) + 40_000
    spec = FinetuneSpec(train=train, adapter=AdapterSpec())
    assert models_on_disk(StagePlan(key="k", kind="finetune", model=ModelSpec(source="m"), finetune=spec)) == 2


def test_the_split_of_a_batch_changes_nothing(run_trials: RunTrials, tmp_path: Path, still_model: Path) -> None:
    found = []
    for size, times in ((4, 1), (2, 2)):
        train = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times, "learning_rate": 1e-3}
        stages = [{"prune": {"sparsity": 0.5}}, {"finetune": {"adapter": {"rank": 4}, "train": train}}]
        (record,) = run_trials({"name": f"by{times}", "stages": stages}, model=str(still_model)).values()
        assert record.state == "finished", record.trace
        found.append(weights(tmp_path / "runs", record.stages[-1].key))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-5)


def test_the_best_of_an_adapters_checkpoints_is_loaded(run_trials: RunTrials, tmp_path: Path) -> None:
    """Of falling losses the largest is the first."""
    often = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    train = {"load_best_model_at_end": True, "greater_is_better": True, **often}
    stage = {"finetune": {"adapter": {"rank": 4}, "train": train, "keep_checkpoints": True}}
    record = run_trials({"name": "t", "stages": [stage]})["t"]
    assert record.state == "finished", record.trace
    first, last = (
        load_file(tmp_path / "runs" / "stages" / record.stages[-1].key / f"checkpoints/checkpoint-{step}" / STATE)
        for step in (2, 6)
    )
    final = weights(tmp_path / "runs", record.stages[-1].key)
    assert torch.equal(final["transformer.ln_f.weight"], first["transformer.ln_f.weight"])
    assert not torch.equal(final["transformer.ln_f.weight"], last["transformer.ln_f.weight"])


def test_memory_for_activations_can_be_saved(run_trials: RunTrials, tmp_path: Path) -> None:
    found = []
    for saves in (False, True):
        train = {"gradient_checkpointing": saves}
        record = run_trials({"name": f"t{saves}", "stages": [{"finetune": {"adapter": {"rank": 4}, "train": train}}]})
        (one,) = record.values()
        assert one.state == "finished", one.trace
        found.append(weights(tmp_path / "runs", one.stages[-1].key))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    Adapter(tiny("gpt2"), AdapterSpec(rank=2), {}, seed=0).save(tmp_path)
    other = Adapter(tiny("gpt2"), AdapterSpec(rank=3), {}, seed=0)
    with pytest.raises(PruneGPTError, match="must resume from a checkpoint of it"):
        other.load(tmp_path)


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"rank": 200}, "rank must be at most the smaller side of every target, got 200 for transformer.h.0.attn"),
        ({"rank": 0, "also": []}, "an adapter must train something, got rank 0 and an empty also"),
        ({"targets": "*wte*"}, "an adapter is of linear layers and experts, got the embedding transformer.wte.weight"),
        ({"targets": "*nothing*"}, "every pattern must match a tensor; '*nothing*' matches none"),
        ({"also": "heads"}, "biases"),
    ],
)
def test_what_an_adapter_cannot_be_is_reported_by_the_plan(adapter: dict[str, Any], told: str) -> None:
    assert told in only(problems_of({"name": "t", "stages": [{"finetune": {"adapter": adapter}}]})).message


@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_masks_may_not_change_under_an_adapter(kind: str) -> None:
    fields: dict[str, Any] = {"adapter": {}, "prune": {"sparsity": 0.5}}
    if kind == "distill":
        fields["teacher"] = {"model": "builtin:tiny-gpt2"}
    problem = only(problems_of({"name": "t", "stages": [{kind: fields}]}))
    assert "an adapter keeps the masks that the stage begins with; prune of the same stage changes them" in str(problem)
    assert "Prune in a stage before it, or remove adapter." in str(problem)
