"""Every decoder family of transformers, tiny: all that is done with it, and that plain transformers loads the result.

A family that a newer transformers brings joins by itself. What stays out is listed with its reason, and fails as soon
as it works.
"""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.objective import DistillationObjective
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import ModelError, PruningError
from prunegpt.lm.blocks import Blocks
from prunegpt.lm.checks import check_own_loss
from prunegpt.lm.models import load_model, narrow_products, save_model
from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.skeleton import skeleton
from prunegpt.lm.views import block_matrices, matrices, outline
from prunegpt.lm.windows import Windows
from prunegpt.pruning.enforce import Enforcer
from prunegpt.pruning.gradual import GradualPruner
from prunegpt.pruning.job import resolve_gradual
from prunegpt.pruning.mask import Mask
from prunegpt.pruning.masks import check, masks_hash, measure_sparsity
from prunegpt.pruning.oneshot import prune_oneshot
from prunegpt.pruning.statistics import block_statistics, evaluating, gradient_statistics
from prunegpt.pruning.statistics.activations import WalkError
from prunegpt.pruning.statistics.layerwise import layer_gradients
from prunegpt.spec.schedules import Clock
from prunegpt.training import TrainingJob, train
from tests.support.families import ENCODERS, NEEDS, NOT_MADE, decoders, families, tiny

STEPS = 5
REFUSED = dict.fromkeys(ENCODERS, "a causal model must not see the tokens it is to predict")  # by prunegpt
OUTSIDE = {  # linear layers that are in no decoder layer, and stay dense by default
    "blt": "cross_attn_layers|embedding_projection|local_(en|de)coder|patcher",  # bytes to patches, and back
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "altup_|per_layer_model_projection"),
    **dict.fromkeys(("gemma4", "gemma4_text"), "per_layer_model_projection"),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), "hyper_connection_mixer"),
    "roc_bert": "map_inputs_layer",
}
OWN_LOSS = {"git": "Expected input batch_size"}  # transformers counts image tokens where there are none
NO_GRADIENTS = {"reformer": "runs its own without"}  # in its decoder layers, which wanda++ asks for
GATE = ("gpt2", "gpt_oss", "qwen2_moe", "jamba", "zamba", "bart", "gemma3n_text", "dory", "rwkv")


def _parametrised() -> list[Any]:
    return [pytest.param(name, marks=() if name in GATE else pytest.mark.slow) for name in decoders()]


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return torch.randint(2, 60, (4, 12), generator=torch.Generator().manual_seed(0))  # [windows, length]


@pytest.fixture(scope="module", params=_parametrised())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family")
    tiny(family).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load_model(folder, dtype="float32", device="cpu")


@pytest.fixture
def model(loaded: Any) -> Any:
    """The model as prunegpt loads it, to be changed."""
    return copy.deepcopy(loaded)


# -- what stays out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NOT_MADE)
def test_what_is_not_made_is_what_transformers_cannot_make(family: str, tmp_path: Path) -> None:
    def alone() -> None:
        made = tiny(family)
        made(input_ids=torch.full((1, 4), 2), use_cache=False)
        made.save_pretrained(tmp_path)
        AutoModelForCausalLM.from_pretrained(tmp_path)

    with pytest.raises(Exception, match=NOT_MADE[family]):
        alone()


@pytest.mark.parametrize("family", [pytest.param(name, marks=[pytest.mark.slow][name == "bert" :]) for name in REFUSED])
def test_what_is_refused_is_refused_with_the_reason(family: str, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"^{REFUSED[family]}"):
        load_model(tmp_path, dtype="float32", device="cpu")


def test_most_families_are_tried() -> None:
    known = set(families())
    assert known >= {*GATE, *NOT_MADE, *NEEDS, *REFUSED, *OUTSIDE, *OWN_LOSS, *NO_GRADIENTS}
    assert len(decoders()) >= 0.95 * len(known - set(ENCODERS))


# -- loading, coverage and measuring -----------------------------------------------------------------------------------


def same_logits(folder: Path, model: Any, windows: Tensor) -> None:
    """Plain transformers makes of a folder what the model gives."""
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.eval()
    with torch.no_grad():
        ours, theirs = (one(input_ids=windows, use_cache=False).logits for one in (model, again))
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_it_is_the_model_that_transformers_loads(folder: Path, model: Any, windows: Tensor) -> None:
    same_logits(folder, model, windows)


def test_nothing_large_is_silently_dense(model: Any, family: str) -> None:
    """All matrices of the decoder are pruned, or are of a kind that nobody prunes."""
    views = block_matrices(model)
    share, outside = outline(model).coverage(views)
    left = {matrix.name for matrix in matrices(model) if matrix.block is not None and not matrix.default}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stacks = {name for name, weight in model.named_parameters() if name in outside and weight.dim() == 3}
    named = re.compile(OUTSIDE.get(family, "$^"))
    assert views
    assert not [name for name in outside if name in linear - left and not named.search(name)]
    assert not [name for name in stacks if "experts" in name]
    assert 0 < share <= 1


def test_a_config_alone_says_what_the_loaded_model_consists_of(model: Any) -> None:
    """The model that is built without weights has the same tensors, of which the same are pruned."""
    assert outline(skeleton(json.loads(model.config.to_json_string(use_diff=False)))) == outline(model)


def test_perplexity_is_that_of_the_logits(folder: Path, model: Any, windows: Tensor) -> None:
    rows, length = windows.shape
    none = np.zeros(rows, dtype=np.int64)
    cut = Windows(
        tokens=windows.flatten().numpy(),
        starts=np.arange(rows) * length,
        lengths=none + length,
        first_scored=none + 1,
        scored_bytes=none,
        scored_words=none,
        protocol="rows",
    )
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = plain(input_ids=windows, use_cache=False).logits[:, :-1].double()  # [windows, length - 1, vocab]
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert evaluate(model, cut)[0].loss == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_one_layer_at_a_time_are_those_of_the_whole_model(
    model: Any, windows: Tensor, tmp_path: Path
) -> None:
    """Where its layers can be run by themselves: to what another order of sums leaves, and mostly to the bit."""
    views = block_matrices(model)
    try:
        with evaluating(model), torch.no_grad():
            parts = [*layer_gradients(model, views, windows, tmp_path)]
    except WalkError:
        return
    whole = gradient_statistics(model, views, windows)
    found = {name: known for part in parts for name, known in part.items()}
    for name, known in found.items():
        for ours, theirs in ((known.gradient, whole.gradient), (known.squared_gradient, whole.squared_gradient)):
            largest = float(theirs[name].abs().max())
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6 * largest)
    assert found.keys() == views.keys()


def test_products_in_bfloat16_give_the_same_perplexity_to_the_bit(model: Any, windows: Tensor) -> None:
    """Autocast copies their weights to it: what holds them in it computes the same."""
    rows, length = windows.shape
    none = np.zeros(rows, dtype=np.int64)
    starts = np.arange(rows) * length
    cut = Windows(windows.flatten().numpy(), starts, none + length, none + 1, none, none, "rows")
    narrow = copy.deepcopy(model)
    narrow_products(narrow, torch.bfloat16)
    narrowed = torch.bfloat16 in {one.dtype for one in narrow.parameters()}
    assert narrowed or model.config.model_type == "falcon"  # whose layers are of a class of its own
    with torch.autocast("cpu", torch.bfloat16):
        try:
            expected = evaluate(model, cut)[0]
        except RuntimeError as error:  # of DBRX, whose code adds what autocast has computed to float32
            with pytest.raises(RuntimeError, match=re.escape(str(error))):
                evaluate(narrow, cut)
            return
        found = evaluate(narrow, cut)[0]
    assert (found.loss, found.protocol) == (expected.loss, expected.protocol)


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_statistics_of_a_walk_are_those_of_the_forward_pass(model: Any, windows: Tensor) -> None:
    """With nothing pruned, what each layer is given on the way is what it is given in passes of the whole model."""
    views = block_matrices(model)
    found: list[dict[str, Tensor]] = []
    with evaluating(model):
        for propagate in (True, False):
            parts = block_statistics(model, views, windows, gram=False, propagate=propagate, micro_batch=2)
            found.append({name: one.input_norm for part in parts for name, one in part.items()})
    walked, whole = found
    assert walked.keys() == whole.keys() == views.keys()
    for name in views:
        torch.testing.assert_close(walked[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        *((method, "unstructured") for method in ("magnitude", "wanda", "wanda++", "sparsegpt")),
        *((method, "2:4") for method in ("wanda", "sparsegpt")),
    ],
)
def test_every_method_prunes_it(
    loaded: Any, model: Any, windows: Tensor, family: str, method: str, pattern: str, tmp_path: Path
) -> None:
    views = block_matrices(model)
    if method == "wanda++" and family in NO_GRADIENTS:
        with pytest.raises(PruningError, match=NO_GRADIENTS[family]):
            prune_oneshot(model, views, method=method, sparsity=0.5, calibration=windows)
        return
    sparsity = None if pattern == "2:4" else 0.5
    result = prune_oneshot(model, views, method=method, sparsity=sparsity, pattern=pattern, calibration=windows)
    masks = {name: Mask(kept) for name, kept in result.masks.items()}
    check(views, masks)
    zeros = sum(int((view.matrix == 0).sum()) for view in views.values())
    weights = sum(view.matrix.numel() for view in views.values())
    counted = measure_sparsity(views, dict(model.named_parameters()))
    assert result.sparsity == pytest.approx(0.5, abs=0.02)
    assert counted.pruned == pytest.approx(zeros / weights, rel=1e-9)
    assert counted.pruned >= result.sparsity  # some weights begin as zeros
    changed = {id(view.parameter) for view in views.values()}
    for (name, before), after in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert id(after) in changed or torch.equal(before, after), name
    if pattern == "unstructured":
        save_model(model, None, tmp_path)
        same_logits(tmp_path, model, windows)


# -- training ----------------------------------------------------------------------------------------------------------


def trained(model: Any, windows: Tensor, work: Path, objective: DistillationObjective | None) -> list[float]:
    """The cross-entropies of five optimizer steps; before each the masks change."""
    views = block_matrices(model)
    job = TrainingJob(
        key="0" * 16,
        steps=STEPS,
        per_epoch=STEPS,
        held=masks_hash({}),
        arguments={"max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1},
        prune=resolve_gradual(views, method="magnitude", clock=Clock(tuple(range(STEPS))), final=0.5),
    )
    assert job.prune is not None
    enforcer = Enforcer(views, {})
    points: list[tuple[str, float]] = []
    outcome = train(
        model,
        Blocks(windows.repeat(3, 1).numpy()),
        job,
        work=work,
        device=torch.device("cpu"),
        dtype=torch.float32,
        emit=lambda step, epoch, name, value, tokens: points.append((name, value)),
        enforcer=enforcer,
        pruner=GradualPruner(job.prune, enforcer),
        objective=objective,
    )
    assert outcome.steps == STEPS
    for name, view in views.items():
        kept = enforcer.mask(name).kept
        assert int(kept.sum()) == kept.numel() // 2 or kept.numel() % 2, name
        assert not view.matrix[~kept].any(), name
    return [value for name, value in points if name == "ce"]


def test_it_is_pruned_while_it_trains(family: str, model: Any, windows: Tensor, tmp_path: Path) -> None:
    if family in OWN_LOSS:
        with pytest.raises(ModelError, match=f"{OWN_LOSS[family]}.*Distil it"):
            check_own_loss(family, model)
        return
    check_own_loss(family, model)
    losses = trained(model, windows, tmp_path / "work", None)
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))
    save_model(model, None, tmp_path / "model")
    same_logits(tmp_path / "model", model, windows)


def test_it_is_distilled(loaded: Any, model: Any, windows: Tensor, tmp_path: Path) -> None:
    """With the weights of the head enlarged, so that caps and scales show."""
    head = model.get_output_embeddings()
    assert head is not None
    with torch.no_grad():
        head.weight.mul_(20.0)
    objective = DistillationObjective(Teacher(copy.deepcopy(loaded)), FORWARD_KL, hardness=0.5)
    inputs = {"input_ids": windows, "labels": windows, "attention_mask": torch.ones_like(windows)}
    model.train()
    torch.manual_seed(0)
    _, terms = objective(model, inputs)
    torch.manual_seed(0)
    own = model(input_ids=windows, attention_mask=inputs["attention_mask"], use_cache=False).logits[:, :-1]
    expected = F.cross_entropy(own.flatten(0, 1), windows[:, 1:].flatten())
    assert float(terms["ce"]) == pytest.approx(expected.item(), rel=1e-4)
    losses = trained(model, windows, tmp_path / "work", objective)
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))
