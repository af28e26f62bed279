"""Which tensors a pattern means, without the model."""

import re

import pytest

from prunegpt.errors import PruningError
from prunegpt.spec.names import Matrix, block_index, matches, select_names

BLOCKS = [f"h.{block}.{part}.weight" for block in (0, 1, 10) for part in ("attn.q", "mlp.up")]
OTHERS = ["wte.weight", "lm_head.weight"]
MATRICES = [Matrix(name, block_index(name), (4, 4)) for name in [*BLOCKS, *OTHERS]]

MATCHES = {
    ("h.0.attn.q.weight", "h.0.attn.q.weight"): True,
    ("h.0.attn.q.weight", "h.0.attn.q"): True,
    ("h.0.attn.q.weight", "h.0.attn"): False,
    ("h.0.attn.q.weight", "*attn*"): True,
    ("h.0.attn.q.weight", "h.?.attn.q"): True,
    ("h.10.attn.q.weight", "h.?.attn.q"): False,
    ("h.0.attn.q.weight", "re:attn"): False,  # the whole name
    ("h.0.attn.q.weight", r"re:.*\.attn\..*"): True,
    ("h.0.attn.q.weight", r"re:h\.\d+\.attn\.q"): True,
    ("h.0.attn.q.weight", "H.0.attn.q"): False,
}
assert MATCHES


@pytest.mark.parametrize(("pair", "expected"), MATCHES.items(), ids=map(" ~ ".join, MATCHES))
def test_matches(pair: tuple[str, str], expected: bool) -> None:
    assert matches(*pair) is expected


@pytest.mark.parametrize(
    ("name", "index"), [("h.0.x.weight", 0), ("model.layers.12.mlp", 12), ("wte.weight", None), ("h2.x", None)]
)
def test_block_index(name: str, index: int | None) -> None:
    assert block_index(name) == index


def test_what_is_no_regular_expression_is_an_error() -> None:
    with pytest.raises(PruningError, match=r"re: must be a regular expression; 're:\(' is not"):
        matches("a", "re:(")


@pytest.mark.parametrize("pattern", ["re:(a|aa)+b", r"re:(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3b"])
def test_a_pattern_that_takes_forever_is_an_error(pattern: str) -> None:
    with pytest.raises(PruningError, match="must match a name within"):
        matches("a" * 300 + "!b", pattern)


CHOSEN = {
    "all decoder weight matrices": ({}, BLOCKS),
    "a glob means decoder weight matrices": ({"targets": ["*"]}, BLOCKS),
    "a glob that only others match": ({"targets": ["*wte*"]}, ["wte.weight"]),
    "an exact name": ({"targets": ["lm_head"]}, ["lm_head.weight"]),
    "a block": ({"layers": [10]}, BLOCKS[4:]),
    "a block of a target": ({"targets": ["*.q"], "layers": [0, 1]}, [BLOCKS[0], BLOCKS[2]]),
    "without some": ({"exclude": ["*attn*", "re:h\\.1\\..*"]}, [BLOCKS[1], BLOCKS[5]]),
    "twice named": ({"targets": ["*.q", "h.0*"]}, [BLOCKS[0], BLOCKS[1], BLOCKS[2], BLOCKS[4]]),
}
assert CHOSEN


@pytest.mark.parametrize(("request_", "expected"), CHOSEN.values(), ids=CHOSEN.keys())
def test_chosen_names(request_: dict[str, list[str]], expected: list[str]) -> None:
    assert select_names(MATRICES, **request_) == (expected, [])  # type: ignore[arg-type]


WRONG = {
    "a target": ({"targets": ["*qq*"]}, [r"every pattern must match a tensor; '\*qq\*' matches none\. Nearest: "]),
    "an exclusion": ({"exclude": ["attn"]}, ["'attn' matches none. Nearest: "]),
    "a layer": ({"layers": [2]}, [r"layers must be indices of decoder layers \(0 to 10\), got 2"]),
    "an expression": ({"targets": ["re:["]}, ["re: must be a regular expression"]),
    "nothing left": ({"targets": ["wte"], "layers": [0]}, ["together leave none"]),
    "all excluded": ({"exclude": ["*"]}, ["must leave a tensor to prune"]),
    "several": ({"targets": ["x"], "layers": [5, 7], "exclude": ["y"]}, ["'x'", "got 5", "got 7", "'y'"]),
}
assert WRONG


@pytest.mark.parametrize(("request_", "messages"), WRONG.values(), ids=WRONG.keys())
def test_all_that_is_wrong_is_told(request_: dict[str, list[str]], messages: list[str]) -> None:
    _, problems = select_names(MATRICES, **request_)  # type: ignore[arg-type]
    assert len(problems) == len(messages)
    assert all(re.search(message, problem) for message, problem in zip(messages, problems, strict=True))


def test_a_tensor_goes_by_all_its_names() -> None:
    tied = [Matrix("wte.weight", None, (8, 4), ("lm_head.weight",)), *MATRICES[:2]]
    assert select_names(tied, targets=["lm_head"]) == (["wte.weight"], [])
    assert select_names(tied, targets=["*head*", "wte"]) == (["wte.weight"], [])
