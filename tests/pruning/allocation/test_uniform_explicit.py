import pytest

from prunegpt.errors import PruningError
from prunegpt.pruning.allocation.explicit import explicit
from prunegpt.pruning.allocation.uniform import uniform
from prunegpt.registry import ALLOCATIONS

SIZES = {"h.0.attn.weight": 10, "h.0.mlp.weight": 20, "h.1.attn.weight": 10, "h.1.mlp.weight": 20}


def test_every_registered_allocation_is_a_function() -> None:
    assert {"uniform", "row", "global", "explicit", "owl", "sensitivity"} <= set(ALLOCATIONS.names())
    assert all(callable(ALLOCATIONS.load(name)) for name in ALLOCATIONS.names())


def test_uniform_is_the_same_everywhere() -> None:
    assert uniform(SIZES, 0.7) == dict.fromkeys(SIZES, 0.7)
    with pytest.raises(PruningError, match=r"got 70\. Did you mean 0\.7\?"):
        uniform(SIZES, 70)


def test_names_globs_and_expressions_of_modules_and_parameters() -> None:
    found = explicit(SIZES, 0.1, sparsities={"h.0.attn": 0.9, "re:h\\.[01]\\.mlp": 0.5, "h.1.attn.w*": 0.3})
    assert list(found.items()) == list(zip(SIZES, [0.9, 0.5, 0.3, 0.5], strict=True))


def test_the_first_match_decides_and_the_rest_takes_the_common_sparsity() -> None:
    found = explicit(SIZES, 0.2, sparsities={"h.0.mlp": 0.9, "*.mlp": 0.5})
    assert list(found.values()) == [0.2, 0.9, 0.2, 0.5]


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ({"h.0.mpl": 0.5}, r"'h\.0\.mpl' matches none\. Nearest names: h\.0\.mlp,"),
        ({"re:h": 0.5}, "'re:h' matches none"),  # an expression matches a whole name
        ({"*.mlp": 0.5, "h.0.mlp": 0.9}, r"'h\.0\.mlp' decides nothing: all its 1 tensors match an earlier one"),
        ({"re:(": 0.5}, r"must be a regular expression; 're:\(' is not"),
        ({"*": 1.5}, r"between 0 and 1, got 1\.5"),
    ],
)
def test_patterns_that_say_nothing_are_refused(sparsities: dict[str, float], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        explicit(SIZES, 0.2, sparsities=sparsities)
