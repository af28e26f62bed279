"""How a pruning spends its sparsity: every allocation is used by its name, and says what the plan says."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from prunegpt.errors import PruningError
from prunegpt.lm.views import block_matrices, matrices
from prunegpt.planning.inputs import Inputs
from prunegpt.registry import ALLOCATIONS, CRITERIA, SOLVERS
from prunegpt.root import Root
from prunegpt.spec.methods import reads_text
from prunegpt.spec.pruning import prune_problems
from prunegpt.spec.schema import PruneSpec
from prunegpt.stages import prune as stage
from prunegpt.stages.base import ModelState, Pruned
from prunegpt.stages.measure import check_ledger
from tests.support.plug_in import PlugIn, steep

METHODS = [*CRITERIA.names(), *SOLVERS.names()]
PATTERNS = {"unstructured": 0.5, "2:4": None, "3:7": None, "[4, 4]": 0.5}
CURVES = {str(block): ((0.5, 0.1 + block), (1.0, 1.0 + block)) for block in range(2)}


@pytest.fixture(autouse=True)
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration text without a tokeniser."""
    tokens = torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("prunegpt.stages.text.calibration", lambda *_: tokens)


def spec_of(**fields: Any) -> PruneSpec:
    spec = PruneSpec.model_validate(fields)
    data = {"path": "builtin:text"}
    if reads_text(spec):
        spec = PruneSpec.model_validate({**fields, "calibration": {"data": data}})
    return spec


def applied(model: Any, *specs: PruneSpec, root: Root) -> dict[str, float]:
    """Sparsity by tensor after these stages."""
    state = ModelState(model, None, Pruned())  # type: ignore[arg-type]
    for spec in specs:
        stage.apply(spec, state, Inputs(None), seed=0, root=root, progress=lambda *_: None)
        check_ledger(state)
    return {name: mask.pruned / mask.weights for name, mask in state.pruned.masks.items()}


def test_an_allocation_of_a_plug_in_is_used(tiny_gpt2: Any, root: Any, plug_in: PlugIn) -> None:
    plug_in("allocation", "steep", steep)
    found = applied(tiny_gpt2, spec_of(sparsity=0.3, allocation="steep", options={"slope": 0.25}), root=Root(root))
    assert {round(value, 2) for name, value in found.items() if ".h.0." in name} == {0.3}
    assert {round(value, 2) for name, value in found.items() if ".h.1." in name} == {0.55}


def test_an_allocation_of_a_plug_in_must_give_every_tensor_a_sparsity(
    tiny_gpt2: Any, root: Any, plug_in: PlugIn
) -> None:
    def none(sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        return {}

    plug_in("allocation", "none", none)
    with pytest.raises(PruningError, match="must give the sparsity of every pruned tensor; none gives none to"):
        applied(tiny_gpt2, spec_of(sparsity=0.3, allocation="none"), root=Root(root))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("allocation", [None, *ALLOCATIONS.names(), "mapping"])
@pytest.mark.parametrize("method", METHODS)
def test_what_the_plan_accepts_the_stage_prunes_and_what_it_refuses_the_stage_refuses(
    method: str, allocation: str | None, pattern: str, tiny_gpt2: Any, root: Any
) -> None:
    """The same function is asked, so that a part which fails where it was accepted fails here."""
    chosen = {"*attn*": 0.5, "*mlp*": 0.5} if allocation == "mapping" else allocation
    spec = spec_of(method=method, sparsity=PATTERNS[pattern], pattern=pattern, allocation=chosen)
    if allocation == "sensitivity":
        spec = spec.model_copy(update={"curves": CURVES})
    problems = list(prune_problems(spec, matrices(tiny_gpt2)))
    if problems:
        with pytest.raises(PruningError, match=re.escape(problems[0][1])):
            applied(tiny_gpt2, spec, root=Root(root))
        return
    found = applied(tiny_gpt2, spec, root=Root(root))
    sizes = {name: view.parameter.numel() for name, view in block_matrices(tiny_gpt2).items()}
    assert sum(found[name] * size for name, size in sizes.items()) / sum(sizes.values()) == pytest.approx(0.5, abs=0.01)


SHAPES = {"unstructured": 0.4, "2:4": None, "1:4": None, "[4, 4]": 0.6, "[2, 2]": 0.6, "[2, 4]": 0.6}


@pytest.mark.parametrize("allocation", ["uniform", "row", "global"])
@pytest.mark.parametrize("second", SHAPES)
@pytest.mark.parametrize("first", SHAPES)
def test_one_pattern_over_another_keeps_the_ledger(
    first: str, second: str, allocation: str, tiny_gpt2: Any, root: Any
) -> None:
    """What an earlier stage pruned stays so, whatever shape a later one prunes to."""
    before = spec_of(sparsity=SHAPES[first], pattern=first)
    after = spec_of(sparsity=SHAPES[second], pattern=second, allocation=allocation)
    found = applied(tiny_gpt2, before, after, root=Root(root))
    assert min(found.values()) > 0
