"""One-shot pruning of whole models, against its parts and against other ways to the same end."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunegpt.errors import PruningError
from prunegpt.lm.views import block_matrices, select
from prunegpt.pruning.oneshot import OneShotResult, prune_oneshot
from prunegpt.pruning.patterns import NOfM, Unstructured, parse_pattern
from prunegpt.pruning.solvers.admm import ADMM
from prunegpt.pruning.solvers.obert import OBERT
from prunegpt.pruning.solvers.sparsegpt import SPARSEGPT, sparsegpt
from prunegpt.pruning.statistics import block_statistics, gradient_statistics
from prunegpt.registry import CRITERIA, SOLVERS

FAMILIES = ["gpt2", "llama", "opt"]
IN_TRAINING = {"movement"}
METHODS = [name for name in [*CRITERIA.names(), *SOLVERS.names()] if name not in IN_TRAINING]
ACTIVATION_METHODS = ["wanda", "wanda++", "sparsegpt", "admm"]


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 128, (6, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return shaken(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture
def gpt2(tiny_gpt2: Any) -> Any:
    return shaken(tiny_gpt2)


@pytest.fixture
def llama(tiny_llama: Any) -> Any:
    return shaken(tiny_llama)


def shaken(model: Any) -> Any:
    """The model with weights large enough for its blocks to do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def pruned(model: Any, windows: Tensor | None, method: str, **given: Any) -> tuple[Any, OneShotResult]:
    """A pruned copy of the model."""
    twin = copy.deepcopy(model)
    views = block_matrices(twin)
    given = {"sparsity": 0.5, **given}
    if given.get("pattern") == "2:4":
        given["sparsity"] = None
    return twin, prune_oneshot(twin, views, method=method, calibration=windows, **given)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: view.matrix.clone() for name, view in block_matrices(model).items()}


def test_there_are_methods() -> None:
    assert len(METHODS) >= 7
    assert {"magnitude", "wanda", "sparsegpt", "admm", "obert"} <= set(METHODS)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_every_family(model: Any, windows: Tensor, method: str, pattern: str) -> None:
    twin, result = pruned(model, windows, method, pattern=pattern)
    views = block_matrices(twin)
    assert list(result.masks) == list(views)
    assert {row.name for row in result.rows} == set(views)
    for row in result.rows:
        mask, view = result.masks[row.name], views[row.name]
        assert (mask.device.type, mask.dtype) == ("cpu", torch.bool)
        assert torch.equal(view.matrix != 0, mask)
        parse_pattern(pattern).check(mask)
        assert row.sparsity == 1 - float(mask.sum()) / mask.numel() == 0.5
        assert row.weights == mask.numel()
        assert row.seconds > 0
    assert result.sparsity == 0.5
    assert result.weights == sum(view.parameter.numel() for view in views.values())
    assert result.tokens == (0 if method in ("magnitude", "random") else windows.numel())
    pruned_names = set(views)
    for (name, before), (_, after) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(before, after) == (name not in pruned_names)
    with torch.no_grad():
        assert bool(torch.isfinite(twin(input_ids=windows).logits).all())


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_weights_alone_need_no_text(gpt2: Any, method: str) -> None:
    twin, result = pruned(gpt2, None, method)
    assert result.sparsity == 0.5
    again, _ = pruned(gpt2, None, method, seed=1)
    same, _ = pruned(gpt2, None, method, seed=0)
    name = next(iter(result.masks))
    assert torch.equal(weights(twin)[name], weights(same)[name])
    assert torch.equal(weights(twin)[name], weights(again)[name]) == (method == "magnitude")


def test_magnitude_is_that_of_each_tensor(gpt2: Any) -> None:
    _, result = pruned(gpt2, None, "magnitude", sparsity=0.3)
    for name, view in block_matrices(gpt2).items():
        assert torch.equal(result.masks[name], Unstructured().select(view.matrix.abs(), 0.3))


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_it_is_the_method_on_each_layer(model: Any, windows: Tensor, method: str, propagate: bool) -> None:
    """Layer by layer with the statistics that a separate pass over the half-pruned model gives."""
    twin, result = pruned(model, windows, method, propagate=propagate)
    other = copy.deepcopy(model)
    views = block_matrices(other)
    with torch.no_grad():
        regional = method == "wanda++"
        for part in block_statistics(other, views, windows, gram=True, propagate=propagate, regional=regional):
            for name, found in part.items():
                matrix = views[name].matrix
                if method in CRITERIA.names():
                    score = matrix.abs() * (found.input_norm + (100 * found.regional_gradient if regional else 0))
                    mask = Unstructured().select(score, 0.5, rowwise=True)
                    matrix.mul_(mask)
                else:
                    solver = SPARSEGPT if method == "sparsegpt" else ADMM
                    solution = solver.solve(matrix, gram=found.gram, pattern=Unstructured(), sparsity=0.5)
                    matrix.copy_(solution.weight)
                    mask = solution.mask
                    row = next(row for row in result.rows if row.name == name)
                    assert row.error == pytest.approx(solution.error, rel=1e-3)
                    assert row.damping == solution.damping == 0.01
                assert torch.equal(mask, result.masks[name])
    for name, view in block_matrices(twin).items():
        torch.testing.assert_close(view.matrix, views[name].matrix, rtol=1e-3, atol=1e-4)


def test_wandapp_without_gradients_is_wanda_and_with_them_another_mask(model: Any, windows: Tensor) -> None:
    _, plain = pruned(model, windows, "wanda", micro_batch=1)
    for alpha, same in ((0, True), (100, False)):
        _, found = pruned(model, windows, "wanda++", options={"alpha": alpha})
        assert all(torch.equal(mask, plain.masks[name]) for name, mask in found.masks.items()) is same


def test_obert_is_given_the_gradients_of_each_window(llama: Any, windows: Tensor, tmp_path: Path) -> None:
    twin, result = pruned(llama, windows, "obert", options={"fisher_block": 16})
    views = block_matrices(llama)
    gradients = gradient_statistics(llama, views, windows, samples=tmp_path)
    for name, view in views.items():
        expected = OBERT.solve(
            view.matrix, gradients=gradients.samples(name), pattern=Unstructured(), sparsity=0.5, fisher_block=16
        )
        assert torch.equal(result.masks[name], expected.mask)
        torch.testing.assert_close(block_matrices(twin)[name].matrix, expected.weight)


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_propagation_changes_what_follows_and_not_what_comes_first(llama: Any, windows: Tensor, method: str) -> None:
    with_it, _ = pruned(llama, windows, method)
    without, _ = pruned(llama, windows, method, propagate=False)
    ours, theirs = weights(with_it), weights(without)
    for name in ours:
        if name.startswith("model.layers.0."):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    later = [name for name in ours if name.startswith("model.layers.1.")]
    assert later
    assert any(not torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3) for name in later)


@pytest.mark.parametrize("method", [*ACTIVATION_METHODS, "taylor", "obert"])
@pytest.mark.parametrize("given", [{"micro_batch": 1}, {"micro_batch": 4}, {"offload": True}])
def test_how_windows_are_run_changes_rounding_only(
    model: Any, windows: Tensor, method: str, given: dict[str, Any]
) -> None:
    _, usual = pruned(model, windows, method)
    _, other = pruned(model, windows, method, **given)
    allowed = 0.05 if method == "admm" else 0.01  # hundreds of steps of admm enlarge a rounding error
    for name, mask in usual.masks.items():
        assert float((mask != other.masks[name]).float().mean()) < allowed
    errors = [sum(row.error or 0.0 for row in result.rows) for result in (usual, other)]
    assert errors[0] == pytest.approx(errors[1], rel=allowed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_conv1d_model_is_pruned_like_its_linear_twin(gpt2: Any, windows: Tensor, method: str, pattern: str) -> None:
    linear = copy.deepcopy(gpt2)
    for block in linear.transformer.h:
        for parent, name in (
            (block.attn, "c_attn"),
            (block.attn, "c_proj"),
            (block.mlp, "c_fc"),
            (block.mlp, "c_proj"),
        ):
            old: Conv1D = getattr(parent, name)
            new = nn.Linear(old.weight.shape[0], old.weight.shape[1])
            new.weight.data.copy_(old.weight.data.t())
            new.bias.data.copy_(old.bias.data)
            setattr(parent, name, new)
    conv_model, conv = pruned(gpt2, windows, method, pattern=pattern)
    linear_model, twin = pruned(linear, windows, method, pattern=pattern)
    for name, mask in conv.masks.items():
        assert torch.equal(mask, twin.masks[name])
        torch.testing.assert_close(weights(conv_model)[name], weights(linear_model)[name], rtol=1e-3, atol=1e-4)


def test_rows_tensors_or_everything_are_compared(llama: Any, windows: Tensor) -> None:
    shares = {}
    for allocation in (None, "row", "uniform", "global"):
        _, result = pruned(llama, windows, "wanda", allocation=allocation)
        rows = {float(mask[row].float().mean()) for mask in result.masks.values() for row in range(mask.shape[0])}
        tensors = {row.sparsity for row in result.rows}
        shares[allocation] = (len(rows) > 1, len(tensors) > 1)
        assert result.sparsity == 0.5
    assert shares == {
        None: (False, False),
        "row": (False, False),
        "uniform": (True, False),
        "global": (True, True),
    }


def test_global_is_one_threshold_on_the_dense_model_and_says_so(llama: Any, windows: Tensor) -> None:
    _, result = pruned(llama, windows, "wanda", allocation="global", sparsity=0.6)
    views = block_matrices(llama)
    scores = {}
    for part in block_statistics(llama, views, windows, gram=False, propagate=False):
        scores |= {name: views[name].matrix.abs() * found.input_norm for name, found in part.items()}
    threshold = torch.cat([score.flatten() for score in scores.values()]).sort().values[round(result.weights * 0.6) - 1]
    for name, score in scores.items():
        assert torch.equal(result.masks[name], score > threshold)
    assert result.notes == ("global compares the scores of all layers, so all were scored on the dense model",)
    assert pruned(llama, None, "magnitude", allocation="global")[1].notes == ()


def test_sparsities_by_name(gpt2: Any, windows: Tensor) -> None:
    names = list(block_matrices(gpt2))
    allocation = {name: 0.25 if "mlp" in name else 0.75 for name in names}
    _, result = pruned(gpt2, windows, "sparsegpt", sparsity=None, allocation=allocation)
    assert {row.name: row.sparsity for row in result.rows} == allocation


@pytest.mark.parametrize("method", METHODS)
def test_what_is_pruned_stays_pruned(gpt2: Any, windows: Tensor, method: str) -> None:
    half, first = pruned(gpt2, windows, method, sparsity=0.5)
    more = copy.deepcopy(half)
    given = {"pattern": "unstructured", "masks": first.masks, "allocation": "uniform", "calibration": windows}
    second = prune_oneshot(more, block_matrices(more), method=method, sparsity=0.7, **given)
    for name, mask in second.masks.items():
        assert not bool((mask & ~first.masks[name]).any())
        assert int((~mask).sum()) == round(mask.numel() * 0.7)
        assert not bool(weights(more)[name][~mask].any())


def test_masks_of_layers_that_are_not_pruned_are_left_alone(gpt2: Any) -> None:
    views = select(gpt2, targets=["*c_fc*"])
    masks = {name: torch.ones_like(view.matrix, dtype=torch.bool) for name, view in block_matrices(gpt2).items()}
    result = prune_oneshot(gpt2, views, method="magnitude", sparsity=0.5, masks=masks)
    assert set(result.masks) == set(views)


def test_only_the_chosen_layers_are_touched(llama: Any, windows: Tensor) -> None:
    before = weights(llama)
    views = select(llama, targets=["*.up_proj"], layers=[1])
    result = prune_oneshot(llama, views, method="sparsegpt", sparsity=0.5, calibration=windows)
    changed = [name for name, weight in weights(llama).items() if not torch.equal(weight, before[name])]
    assert changed == list(views) == list(result.masks)


def test_the_store_takes_the_place_of_the_model(llama: Any, windows: Tensor, tmp_path: Path) -> None:
    calls: list[int] = []
    counted = copy.deepcopy(llama)
    counted.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    plain, _ = pruned(llama, windows, "sparsegpt", propagate=False)
    for method in ("sparsegpt", "wanda", "admm"):
        twin = copy.deepcopy(counted)
        given: dict[str, Any] = {"sparsity": 0.5, "calibration": windows, "propagate": False, "statistics": tmp_path}
        result = prune_oneshot(twin, block_matrices(twin), method=method, **given)
        assert bool(calls) == (method == "sparsegpt")  # the first one alone
        assert all(row.error is not None for row in result.rows)
        if method == "sparsegpt":
            for name, weight in weights(plain).items():
                torch.testing.assert_close(weights(twin)[name], weight, rtol=1e-3, atol=1e-4)
        calls.clear()
    assert len(list(tmp_path.iterdir())) == 1


def test_propagation_does_not_look_into_the_store(llama: Any, windows: Tensor, tmp_path: Path) -> None:
    pruned(llama, windows, "sparsegpt", propagate=True, statistics=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "inputs"), [("gpt2", 4), ("llama", 4), ("opt", 4)])
@pytest.mark.parametrize("solver", [SPARSEGPT, ADMM])
@pytest.mark.parametrize("from_store", [True, False])
def test_one_factor_for_one_input(
    request: pytest.FixtureRequest,
    windows: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    inputs: int,
    solver: Any,
    from_store: bool,
) -> None:
    counted: list[int] = []
    original = solver.factorise

    def factorise(gram: Tensor, *, damping: float = 0.01) -> Any:
        counted.append(1)
        return original(gram, damping=damping)

    monkeypatch.setattr(f"prunegpt.pruning.solvers.{solver.name}.{solver.name.upper()}", _with(solver, factorise))
    model = shaken(request.getfixturevalue(f"tiny_{family}"))
    given = {"propagate": False, "statistics": tmp_path} if from_store else {}
    _, result = pruned(model, windows, solver.name, options={"damping": 0.05}, **given)
    assert len(counted) == 2 * inputs
    assert {row.damping for row in result.rows} == {0.05}


def _with(solver: Any, factorise: Any) -> Any:
    from dataclasses import replace

    return replace(solver, factorise=factorise)


def test_progress_counts_layers(gpt2: Any, windows: Tensor) -> None:
    seen: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, name: str) -> None:
        seen.append((done, total, name))

    for method in ("magnitude", "wanda", "sparsegpt"):
        seen.clear()
        _, result = pruned(gpt2, windows, method, progress=progress)
        assert seen == [(0, 8, "")] + [(index + 1, 8, row.name) for index, row in enumerate(result.rows)]


def test_a_half_precision_model_stays_one(gpt2: Any, windows: Tensor) -> None:
    twin, result = pruned(gpt2.bfloat16(), windows, "sparsegpt")
    for name, view in block_matrices(twin).items():
        assert view.parameter.dtype == torch.bfloat16
        assert not bool(view.matrix[~result.masks[name]].any())
    assert result.sparsity == 0.5


def test_mode_and_gradients_of_the_model_are_left_alone(gpt2: Any, windows: Tensor) -> None:
    gpt2.train()
    prune_oneshot(gpt2, block_matrices(gpt2), method="obert", sparsity=0.5, calibration=windows)
    assert gpt2.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in gpt2.parameters())
    assert not any(module._forward_pre_hooks for module in gpt2.modules())


def test_the_head_can_be_pruned_by_activations(tiny_opt: Any, windows: Tensor) -> None:
    views = select(shaken(tiny_opt), targets=["*project_out*", "*fc1*"])
    result = prune_oneshot(tiny_opt, views, method="sparsegpt", sparsity=0.5, calibration=windows)
    assert set(result.masks) == set(views)
    assert any("project_out" in name for name in views)


def test_what_is_in_no_decoder_layer_has_no_regional_gradient(tiny_opt: Any, windows: Tensor) -> None:
    views = select(tiny_opt, targets=["*project_out*", "*fc1*"])
    message = (
        r"wanda\+\+ scores by the output of the decoder layer .*, got model.decoder.project_out.weight, which is in"
    )
    with pytest.raises(PruningError, match=message):
        prune_oneshot(tiny_opt, views, method="wanda++", sparsity=0.5, calibration=windows)


def test_solvers_lose_less_than_criteria(llama: Any, windows: Tensor) -> None:
    def loss(method: str) -> float:
        twin, _ = pruned(llama, windows, method, sparsity=0.6)
        with torch.no_grad():
            return float((twin(input_ids=windows).logits - llama(input_ids=windows).logits).square().mean())

    assert loss("admm") < loss("sparsegpt") < loss("wanda") < loss("random")


def test_requests_that_make_no_sense_are_refused(gpt2: Any, windows: Tensor) -> None:
    views = block_matrices(gpt2)
    before = weights(gpt2)
    some = next(iter(views))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "sparsgpt"}, r"unknown pruning method 'sparsgpt'. Did you mean 'sparsegpt'\? Valid: sparsegpt, "),
        ({"method": "movement"}, r"movement uses weight movement in training"),
        ({"sparsity": None}, r"the pattern 'unstructured' needs a sparsity"),
        ({"sparsity": 50}, r"sparsity must be between 0 and 1, got 50. Did you mean 0.5\?"),
        ({"pattern": "2:4", "sparsity": 0.7}, r"2:4 reaches a sparsity of 0.5 at most"),
        ({"pattern": "3-4"}, r"pattern must be unstructured, N:M \(N of M"),
        ({"method": "wanda", "calibration": None}, r"wanda needs activations or gradients; no calibration"),
        ({"method": "obert", "calibration": None}, r"obert needs activations or gradients"),
        ({"method": "sparsegpt", "calibration": windows.float()}, r"calibration must be int64 token ids"),
        ({"allocation": "owl"}, r"got 'owl'. Compute owl and sensitivity first"),
        (
            {"method": "wanda++", "options": {"alpha": -1}},
            r"option alpha of wanda\+\+ must be greater than or equal to 0, got -1. The paper uses 100; 0 is wanda",
        ),
        (
            {"method": "admm", "allocation": "global"},
            r"admm is a solver: .* cannot compare by global",
        ),
        ({"method": "sparsegpt", "allocation": "row"}, r"cannot compare by row. Use uniform"),
        ({"allocation": {some: 0.5}}, r"7 are missing and 0 are not pruned"),
        ({"allocation": dict.fromkeys([*views, "x"], 0.5)}, r"0 are missing and 1 are not pruned; the first is x"),
        (
            {"method": "sparsegpt", "options": {"dampling": 1}},
            r"unknown option of sparsegpt 'dampling'. Did you mean 'damping'",
        ),
        ({"method": "sparsegpt", "options": {"damping": 7}}, r"must be less than or equal to 1, got 7"),
        ({"options": {"damping": 1}}, r"unknown option of magnitude 'damping'. Valid: none"),
    ]
    for given, message in cases:
        given = {"method": "magnitude", "sparsity": 0.5, "calibration": windows, **given}
        with pytest.raises(PruningError, match=message):
            prune_oneshot(gpt2, views, **given)
    with pytest.raises(PruningError, match=r"needs at least one layer"):
        prune_oneshot(gpt2, {}, method="magnitude", sparsity=0.5)
    for name, weight in weights(gpt2).items():
        assert torch.equal(weight, before[name])


def test_activations_that_overflow_are_refused(gpt2: Any, windows: Tensor) -> None:
    with torch.no_grad():
        gpt2.transformer.wte.weight[windows[0, 0]] = torch.nan
    for method in ACTIVATION_METHODS:
        with pytest.raises(PruningError, match="must be finite"):
            pruned(gpt2, windows, method)


def test_a_pattern_may_be_given_as_one(gpt2: Any, windows: Tensor) -> None:
    _, by_name = pruned(gpt2, windows, "sparsegpt", pattern="2:4")
    _, as_one = pruned(gpt2, windows, "sparsegpt", pattern=NOfM(2, 4), sparsity=None)
    for name, mask in by_name.masks.items():
        assert torch.equal(mask, as_one.masks[name])
    assert sparsegpt is SPARSEGPT.solve
