"""Block reconstruction: against a plain loop, with every method, and to the same bits after a stop."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunegpt.errors import Interrupted, PruningError
from prunegpt.lm.views import block_matrices, decoder_blocks, select
from prunegpt.pruning.oneshot import OneShotResult, SolvedLayers, prune_oneshot
from prunegpt.registry import ALLOCATIONS, CRITERIA, SOLVERS
from prunegpt.spec.pruning import prune_problems
from prunegpt.spec.repair import RepairSpec
from prunegpt.spec.schema import GradualSpec, PruneSpec
from tests.support.stopped import same, stopping

METHODS = [
    name
    for registry in (CRITERIA, SOLVERS)
    for name in registry.names()
    if "movement" not in registry.entry(name).needs  # of a training
]
SHORT = RepairSpec(epochs=2, learning_rate=3e-3)


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 128, (6, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]


@pytest.fixture(params=["gpt2", "llama", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    model = request.getfixturevalue(f"tiny_{request.param}")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # weights large enough for its layers to do something
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def pruned(model: Any, windows: Tensor, repair: RepairSpec | None, **given: Any) -> tuple[Any, OneShotResult]:
    twin = copy.deepcopy(model)
    views = given.pop("views", block_matrices)(twin)
    if given.get("pattern", "unstructured") == "unstructured":
        given = {"sparsity": 0.5, **given}
    return twin, prune_oneshot(twin, views, calibration=windows, repair=repair, **{"method": "magnitude", **given})


def layer_outputs(model: Any, windows: Tensor) -> list[Tensor]:
    """What every decoder layer gives, float32 [windows, length, width]."""
    seen: list[Tensor] = []
    blocks = decoder_blocks(model)[1]
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0]))
        for block in blocks
    ]
    with torch.no_grad():
        model(input_ids=windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def plain_loop(dense: Any, windows: Tensor, spec: RepairSpec, *, seed: int) -> Any:
    """The same by whole forward passes and hooks: magnitude at 50%, one decoder layer after the other."""
    model = copy.deepcopy(dense)
    wanted = layer_outputs(dense, windows)
    blocks = decoder_blocks(model)[1]
    views = block_matrices(model)
    for index, block in enumerate(blocks):
        own = [view for view in views.values() if view.block == index]
        kept = {}
        for view in own:
            scores = view.matrix.abs()
            cut = scores.flatten().sort().values[round(scores.numel() * 0.5) - 1]
            kept[view.name] = scores > cut
            view.matrix.mul_(kept[view.name])
        parameters = [view.parameter for view in own]
        optimizer = torch.optim.Adam(parameters, lr=spec.learning_rate, betas=(0.9, 0.95))
        batches = list(windows.split(spec.batch_size))
        targets = wanted[index].split(spec.batch_size)
        steps, step = spec.epochs * len(batches), 0
        generator = torch.Generator().manual_seed(hash((seed, index)) % 2**63)
        for _ in range(spec.epochs):
            for batch in torch.randperm(len(batches), generator=generator).tolist():
                found: list[Tensor] = []
                hook = block.register_forward_hook(
                    lambda _, __, out, found=found: found.append(out if isinstance(out, Tensor) else out[0])
                )
                model(input_ids=batches[batch], use_cache=False)
                hook.remove()
                lengths = [float((state**2).sum()) for window in targets[batch] for state in window]
                median = sorted(lengths)[(len(lengths) - 1) // 2]
                pairs = zip(found[0].flatten(0, 1), targets[batch].flatten(0, 1), lengths, strict=True)
                tokens = [((mine - dense) ** 2).sum() / max(length, median) for mine, dense, length in pairs]
                loss = sum(tokens) / len(tokens)
                model.zero_grad()
                loss.backward()
                for view in own:
                    assert view.gradient is not None
                    view.gradient.mul_(kept[view.name])
                warm = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
                cosine = (1 + torch.cos(torch.tensor(torch.pi * step / steps, dtype=torch.float64)).item()) / 2
                optimizer.param_groups[0]["lr"] = spec.learning_rate * warm * cosine
                optimizer.step()
                step += 1
    return model


def test_it_is_the_plain_loop(model: Any, windows: Tensor) -> None:
    found, result = pruned(model, windows, SHORT, seed=5)
    expected = plain_loop(model, windows, SHORT, seed=5)
    for (name, weight), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=lambda told, name=name: f"{name}: {told}")
    assert all(row.repaired is not None and row.repaired[1] < row.repaired[0] for row in result.rows)


def test_outputs_come_nearer_and_only_kept_weights_move(model: Any, windows: Tensor) -> None:
    plain, before = pruned(model, windows, None)
    found, result = pruned(model, windows, RepairSpec(epochs=8, learning_rate=3e-3))
    dense = layer_outputs(model, windows)[-1]
    far, near = (float((layer_outputs(one, windows)[-1] - dense).square().mean()) for one in (plain, found))
    assert near < 0.7 * far
    views = block_matrices(found)
    for name, mask in result.masks.items():
        assert int(torch.count_nonzero(views[name].matrix[~mask])) == 0
    assert torch.equal(result.masks[next(iter(views))], before.masks[next(iter(views))])  # nothing came before it
    inside = {id(view.parameter) for view in views.values()}
    was = dict(model.named_parameters())
    for name, parameter in found.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == was[name].requires_grad
        if id(parameter) not in inside:
            assert torch.equal(parameter, was[name]), name


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_its_sparsity_and_resumes_to_the_same_bits(
    tiny_llama: Any, windows: Tensor, tmp_path: Path, method: str, pattern: str
) -> None:
    given: dict[str, Any] = {"method": method, "pattern": pattern, "seed": 3}
    expected = pruned(tiny_llama, windows, SHORT, **given)
    assert expected[1].sparsity == pruned(tiny_llama, windows, None, **given)[1].sparsity
    layers = len(expected[1].rows)
    for after in (2, layers // 2 + 3, layers + 5):  # in a layer, and in the repair of one
        folder = tmp_path / f"work-{after}"
        with pytest.raises(Interrupted) as stopped:
            pruned(tiny_llama, windows, SHORT, **given, solved=SolvedLayers(folder, every=0), stop=stopping(after))
        kept = f"; {len(SolvedLayers(folder))} of {layers} are kept, those of decoder layers that are repaired"
        assert str(stopped.value).endswith(kept)
        assert same(expected, pruned(tiny_llama, windows, SHORT, **given, solved=SolvedLayers(folder)))


def test_parts_of_a_layer_are_repaired_for_themselves(model: Any, windows: Tensor) -> None:
    def moved(scope: Any) -> set[str]:
        twin, _ = pruned(model, windows, RepairSpec(scope=scope, epochs=1, learning_rate=3e-3))
        plain, views = block_matrices(pruned(model, windows, None)[0]), block_matrices(twin)
        return {name for name in views if not torch.equal(views[name].matrix, plain[name].matrix)}

    names = set(block_matrices(model))
    attention = {name for name in names if "attn" in name}
    assert moved("attention") == attention
    assert moved("mlp") == names - attention
    assert moved("sublayers") == moved("block") == names


def test_experts_that_are_not_pruned_stay_as_they_are(windows: Tensor) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=128,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            max_position_embeddings=64,
        )
    ).eval()
    twin, result = pruned(
        model, windows, SHORT, views=lambda one: select(one, targets=["*experts*[1]", "*experts*[2]"])
    )
    was, views = block_matrices(model), block_matrices(twin)
    for name, view in views.items():
        if name in result.masks:
            assert int(torch.count_nonzero(view.matrix)) == int(result.masks[name].sum())
            assert not torch.equal(view.matrix, was[name].matrix * result.masks[name])
        else:
            assert torch.equal(view.matrix, was[name].matrix), name


@pytest.mark.parametrize("allocation", [name for name in ALLOCATIONS.builtin_names() if name != "explicit"])
def test_what_does_not_go_with_it(allocation: str) -> None:
    spec = PruneSpec(method="magnitude", sparsity=0.5, allocation=allocation, repair="block")
    problems = dict(prune_problems(spec))
    assert ("repair" in problems) == (allocation == "global")


def test_matrices_outside_the_layers_are_refused(tiny_gpt2: Any, windows: Tensor) -> None:
    with pytest.raises(PruningError, match="belong to one decoder layer"):
        pruned(tiny_gpt2, windows, SHORT, views=lambda model: select(model, targets=["*wte*", "*c_fc*"]))
    with pytest.raises(ValueError, match="repair belongs to a prune stage"):
        GradualSpec(method="magnitude", sparsity=0.5, repair="block")
    with pytest.raises(PruningError, match="no calibration windows"):
        prune_oneshot(
            nn.Module(), block_matrices(tiny_gpt2), method="magnitude", sparsity=0.5, repair=SHORT, calibration=None
        )


def test_a_step_too_long_is_an_error(tiny_gpt2: Any, windows: Tensor) -> None:
    beyond = RepairSpec().model_copy(update={"learning_rate": 1e30})  # a spec stops at 1, where this model stays finite
    with pytest.raises(PruningError, match=r"Lower repair\.learning_rate, which is 1e\+30"):
        pruned(tiny_gpt2, windows, beyond)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_digits_are_repaired_as_well_as_those_of_many(model: Any, windows: Tensor, dtype: Any) -> None:
    spec = RepairSpec(epochs=20, learning_rate=1e-3)
    rounded = copy.deepcopy(model).to(dtype)
    few, many = (
        [row.repaired[1] for row in pruned(one, windows, spec)[1].rows if row.repaired]
        for one in (rounded, copy.deepcopy(rounded).float())
    )
    assert sum(few) < 1.1 * sum(many)
