"""Experts of fused parameters, against the same model with one nn.Linear for each of their matrices."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunegpt.errors import PruningError
from prunegpt.lm.views import WeightView, block_matrices, matrices, outline, select
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.evidence import Evidence, evidence
from prunegpt.pruning.gradients import GATHERED
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import load_method, resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import check, load_masks, measure_sparsity, save_masks
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.statistics import block_statistics, evaluating
from prunegpt.registry import ACTIVATIONS, CRITERIA, GRADIENTS, SOLVERS
from prunegpt.spec.methods import method_entry
from prunegpt.spec.schedules import Clock
from tests.support.families import VOCABULARY, tiny

METHODS = [name for name in [*CRITERIA.names(), *SOLVERS.names()] if name != "movement"]
SLOW = pytest.mark.slow
STORED = {  # [in, out]?
    **dict.fromkeys(("mixtral", "qwen2_moe", "jetmoe"), frozenset({False})),
    **dict.fromkeys(("gpt_oss", "llama4_text"), frozenset({True})),
    "dbrx": {False, True},  # one below the other, in two dimensions
    "deepseek_v4": {False},  # and a projection by groups of its outputs
}


class Unfused(nn.Module):
    """The experts of a Mixtral layer, each matrix a Linear layer of its own."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.act_fn = fused.act_fn
        self.gate_up_proj = nn.ModuleList(_linear(matrix) for matrix in fused.gate_up_proj)
        self.down_proj = nn.ModuleList(_linear(matrix) for matrix in fused.down_proj)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)  # [tokens, width]
        for expert, (first, second) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            place, token = torch.where((chosen == expert).t())
            if len(token):
                gate, up = first(hidden[token]).chunk(2, dim=-1)
                total.index_add_(0, token, second(self.act_fn(gate) * up) * weights[token, place, None])
        return total


def _linear(matrix: Tensor) -> nn.Linear:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer


@pytest.fixture
def mixtral() -> Any:
    return tiny("mixtral")


@pytest.fixture
def twin(mixtral: Any) -> Any:
    found = copy.deepcopy(mixtral)
    for layer in found.model.layers:
        layer.mlp.experts = Unfused(layer.mlp.experts)
    return found.eval()


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(2, VOCABULARY, (6, 16), generator=torch.Generator().manual_seed(0))  # [windows, length]


def unfused_name(name: str) -> str:
    """What the twin calls a matrix."""
    if not name.endswith("]"):
        return name
    stem, _, index = name.removesuffix("]").rpartition("[")
    return f"{stem}.{index}.weight"


def experts_of(model: Any) -> dict[str, WeightView]:
    return {name: view for name, view in block_matrices(model).items() if view.expert is not None}


def test_the_twin_is_the_same_model(mixtral: Any, twin: Any, windows: Tensor) -> None:
    assert [unfused_name(name) for name in block_matrices(mixtral)] == list(block_matrices(twin))
    assert len(experts_of(mixtral)) == 2 * 2 * 4
    with torch.no_grad(), evaluating(mixtral):
        ours, theirs = mixtral(input_ids=windows).logits, twin(input_ids=windows).logits
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_fused_and_unfused_experts_are_equal(
    mixtral: Any, twin: Any, windows: Tensor, method: str, pattern: str
) -> None:
    sparsity = None if pattern == "2:4" else 0.5
    results = [
        prune_oneshot(
            model, block_matrices(model), method=method, sparsity=sparsity, pattern=pattern, calibration=windows
        )
        for model in (mixtral, twin)
    ]
    fused, unfused = results
    for name, mask in fused.masks.items():
        other = unfused.masks[unfused_name(name)]
        differ = int((mask != other).sum())
        assert differ == 0 or (method in SOLVERS.names() and differ <= 0.02 * mask.numel()), name
    assert fused.sparsity == pytest.approx(0.5, abs=0.01)


def test_statistics_are_of_the_tokens_that_were_routed_to_an_expert(mixtral: Any, windows: Tensor) -> None:
    routed: list[tuple[Tensor, Tensor]] = []  # by layer: [tokens, width] and [tokens, experts per token]
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, args: routed.append((args[0], args[1])))
        for layer in mixtral.model.layers
    ]
    with torch.no_grad():
        mixtral(input_ids=windows)
    for handle in handles:
        handle.remove()
    with evaluating(mixtral):
        found = [*block_statistics(mixtral, experts_of(mixtral), windows, gram=True, propagate=False)]
    for index, ((hidden, chosen), block) in enumerate(zip(routed, found, strict=True)):
        for expert in range(4):
            inputs = hidden[(chosen == expert).any(dim=1)]  # [tokens, width]
            statistics = block[f"model.layers.{index}.mlp.experts.gate_up_proj[{expert}]"]
            assert statistics.tokens == len(inputs) > 0
            torch.testing.assert_close(statistics.gram, inputs.t() @ inputs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", STORED)
def test_both_layouts_are_seen_as_out_by_in(family: str, windows: Tensor) -> None:
    model = tiny(family)
    views = experts_of(model)
    assert {view.transposed for view in views.values()} == STORED[family]
    with evaluating(model):  # inputs that do not have the width of the matrix would fail
        found = {
            name: statistics
            for block in block_statistics(model, views, windows, gram=False, propagate=True)
            for name, statistics in block.items()
        }
    for name, view in views.items():
        assert view.matrix.shape[1] == len(found[name].input_norm), name
        assert view.expert is not None
        assert view.matrix.data_ptr() == view.parameter.data_ptr() + view.expert * view.matrix.nbytes


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_without_tokens_is_pruned_by_magnitude_and_reported(
    mixtral: Any, windows: Tensor, method: str
) -> None:
    for layer in mixtral.model.layers:
        with torch.no_grad():
            layer.mlp.gate.weight[3] = 0.0
            layer.mlp.gate.weight[:3] = torch.ones_like(layer.mlp.gate.weight[:3]) * torch.tensor([[1.0], [2.0], [3.0]])
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.mlp.gate.register_forward_pre_hook(lambda _, args: (args[0].abs(),))
    before = {name: view.matrix.clone() for name, view in experts_of(mixtral).items()}
    result = prune_oneshot(mixtral, experts_of(mixtral), method=method, sparsity=0.5, calibration=windows)
    unseen = {name for name in before if name.endswith(("[0]", "[3]"))}
    reported = {row.name for row in result.rows if any("no calibration token" in note for note in row.notes)}
    looks = method not in ("magnitude", "random")
    assert reported == (unseen if looks else set())
    for name in unseen if looks else ():
        kept, size = result.masks[name], before[name].abs()
        rowwise = method_entry(method).scope == "row"
        threshold = size.median(dim=1, keepdim=True).values if rowwise else size.median()
        assert bool((kept == (size > threshold)).all()), name


def test_each_group_of_outputs_has_its_own_inputs(windows: Tensor) -> None:
    model = tiny("deepseek_v4")
    views = {name: view for name, view in block_matrices(model).items() if "o_a_proj" in name and view.block == 0}
    module = next(iter(views.values())).module
    seen: list[Tensor] = []  # [windows, length, groups, in]
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with evaluating(model):
        (found,) = block_statistics(model, views, windows, gram=True, propagate=False)
    assert len(views) == module.n_groups > 1
    assert sum(view.matrix.numel() for view in views.values()) == module.get_parameter("weight").numel()
    for index, name in enumerate(views):
        inputs = seen[-1][:, :, index].flatten(0, 1)  # [tokens, in]
        assert name.endswith(f"o_a_proj.weight[{index}]")
        torch.testing.assert_close(found[name].gram, inputs.t() @ inputs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "router"), [("dbrx", "router.layer"), ("mixtral", "mlp.gate")])
def test_routers_are_dense_by_default(family: str, router: str) -> None:
    assert not [name for name in block_matrices(tiny(family)) if f"{router}.weight" in name]


def test_routers_and_gates_are_left_alone_unless_they_are_named() -> None:
    model = tiny("qwen2_moe")
    names = set(block_matrices(model))
    assert not {name for name in names if "gate." in name.replace("gate_proj.", "")}
    gate = "model.layers.0.mlp.shared_expert_gate.weight"
    assert gate in {matrix.name for matrix in matrices(model)}
    assert list(select(model, targets=[gate])) == [gate]
    assert list(select(model, targets=["*shared_expert_gate"], layers=[0])) == [gate]
    assert gate not in select(model, targets=["*mlp*"])


@pytest.mark.parametrize(
    "pattern",
    [
        *("*experts.down_proj*", "*experts.down_proj", "model.layers.*.mlp.experts.down_proj[*]", "*down_proj[?]"),
        *(r"re:.*experts\.down_proj\[\d\]", r"re:.*experts\.down_proj"),
    ],
)
def test_patterns_reach_experts(mixtral: Any, pattern: str) -> None:
    assert list(select(mixtral, targets=[pattern])) == [
        f"model.layers.{layer}.mlp.experts.down_proj[{expert}]" for layer in range(2) for expert in range(4)
    ]
    one = "model.layers.1.mlp.experts.down_proj[2]"
    for pattern in (one, "*layers.1.*.down_proj[2]", "*.1.*.down_proj[[]2]"):
        assert list(select(mixtral, targets=[pattern])) == [one]
    together = "model.layers.1.mlp.experts.down_proj"
    assert list(select(mixtral, targets=[together])) == [f"{together}[{expert}]" for expert in range(4)]
    assert list(select(mixtral, targets=[together], exclude=["*[1]", "*[3]"])) == [f"{together}[0]", one]
    with pytest.raises(PruningError, match="matches none"):
        select(mixtral, targets=["model.layers.1.mlp.experts.down_proj[4]"])


def test_coverage_says_what_stays_dense(mixtral: Any) -> None:
    share, outside = outline(mixtral).coverage(block_matrices(mixtral))
    assert share > 0.98
    assert list(outside) == ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"]
    attention = {name: view for name, view in block_matrices(mixtral).items() if view.expert is None}
    share, outside = outline(mixtral).coverage(attention)
    assert share < 0.5
    assert next(iter(outside)).endswith("experts.gate_up_proj")


def test_a_ledger_of_experts(mixtral: Any, tmp_path: Any) -> None:
    """Masks are saved and checked, zeros counted once; a part of the experts may be pruned alone."""
    views = select(mixtral, targets=["*experts.down_proj*"], layers=[1])
    some = {name: view for name, view in views.items() if view.expert in (0, 2)}
    result = prune_oneshot(mixtral, some, method="magnitude", sparsity=0.75)
    masks = {name: Mask(kept) for name, kept in result.masks.items()}
    save_masks(masks, tmp_path / "masks.safetensors", method="magnitude")
    again = load_masks(tmp_path / "masks.safetensors").masks
    check(some, again)
    counted = measure_sparsity(some, dict(mixtral.named_parameters()))
    assert counted.pruned == 0.75
    zeros = sum(int((parameter == 0).sum()) for parameter in mixtral.parameters())
    assert counted.model_zeros == zeros
    assert counted.model_weights == sum(parameter.numel() for parameter in mixtral.parameters())
    next(iter(some.values())).matrix.fill_(1.0)
    with pytest.raises(PruningError, match=r"down_proj\[0\] has \d+ nonzero weights under its mask"):
        check(some, again)


def trained(model: Any, masks: dict[str, Mask], windows: Tensor) -> None:
    """Three steps of Adam with masks."""
    enforcer = Enforcer(block_matrices(model), masks)
    enforcer.mask_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        model(input_ids=windows, labels=windows).loss.backward()
        enforcer.mask_gradients()
        optimizer.step()
        enforcer.mask_weights()
        enforcer.verify()
        optimizer.zero_grad()


def test_masks_hold_in_training_as_those_of_the_twin(mixtral: Any, twin: Any, windows: Tensor) -> None:
    scores = {name: view.matrix.abs() for name, view in block_matrices(mixtral).items()}
    masks = {name: Mask(score > score.median()) for name, score in scores.items()}
    trained(mixtral, masks, windows)
    trained(twin, {unfused_name(name): mask for name, mask in masks.items()}, windows)
    theirs = block_matrices(twin)
    for name, view in block_matrices(mixtral).items():
        torch.testing.assert_close(view.matrix, theirs[unfused_name(name)].matrix, rtol=1e-3, atol=1e-3)
        assert torch.equal(view.matrix != 0, theirs[unfused_name(name)].matrix != 0)


def gradually(model: Any, windows: Tensor, method: str, pattern: str) -> dict[str, Mask]:
    """The masks after three updates, with a step of SGD after each; solvers prune to N:M in one."""
    views = block_matrices(model)
    updates = (1,) if pattern == "2:4" and method in SOLVERS.names() else (1, 2, 3)
    final = None if pattern == "2:4" else 0.5
    job = resolve_gradual(views, method=method, clock=Clock(updates), pattern=pattern, final=final)
    needs = load_method(method).needs - GATHERED

    def statistics(seed: int) -> Iterator[dict[str, Evidence]]:
        with evaluating(model):
            yield from evidence(model, views, windows, needs=needs, propagate=False, seed=seed)

    enforcer = Enforcer(views, {})
    pruner = GradualPruner(job, enforcer, statistics=statistics if needs - {"generator"} else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(4):
        pruner.before_step(step, optimizer)
        model(input_ids=windows, labels=windows).loss.backward()
        pruner.accumulate()
        enforcer.mask_gradients()
        optimizer.step()
        enforcer.mask_weights()
        optimizer.zero_grad()
    enforcer.verify()
    job.verify(enforcer.masks, {})
    return dict(enforcer.masks)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=SLOW if name in ("admm", "obert") else ()) for name in [*METHODS, "movement"]]
)
def test_masks_of_gradual_pruning_are_those_of_the_twin(
    mixtral: Any, twin: Any, windows: Tensor, method: str, pattern: str
) -> None:
    fused, unfused = (gradually(model, windows, method, pattern) for model in (mixtral, twin))
    assert {unfused_name(name) for name in fused} == unfused.keys()
    for name, mask in fused.items():
        differ = int((mask.kept != unfused[unfused_name(name)].kept).sum())
        assert differ == 0 or (method in SOLVERS.names() and differ <= 0.05 * mask.weights), (name, differ)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_router_is_pruned_only_where_it_is_named(family: str, method: str) -> None:
    model = tiny(family)
    assert not [name for name in block_matrices(model) if ".gate.weight" in name or ".router.weight" in name]
    views = select(model, targets=[r"re:.*\.(gate|router)"])
    assert views
    windows = torch.randint(2, 64, (4, 16), generator=torch.Generator().manual_seed(0))
    found = prune_oneshot(model, views, method=method, sparsity=0.5, calibration=windows)
    assert set(found.masks) == set(views)
    assert found.sparsity == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_notes_on_layers_are_notes_of_the_result(mixtral: Any, method: str) -> None:
    """By every method that is registered: experts that no token reaches are in what a stage records."""
    window = torch.randint(2, 64, (1, 2), generator=torch.Generator().manual_seed(0))  # [1, 2]
    found = prune_oneshot(
        mixtral, block_matrices(mixtral), method=method, sparsity=0.5, calibration=window, allocation=None
    )
    noted = [row.name for row in found.rows if any("by magnitude" in note for note in row.notes)]
    told = [note for note in found.notes if "by magnitude" in note]
    assert bool(noted) is bool(load_method(method).needs & (ACTIVATIONS | GRADIENTS))
    assert [note.partition(":")[0] for note in told] == noted[:1]
