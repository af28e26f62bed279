"""The notation of sparsity patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegpt.pruning.patterns import parse_pattern
from prunegpt.spec.patterns import canonical_pattern, fixed_sparsity


@given(group=st.integers(2, 64), data=st.data())
def test_kept_of_a_group_fixes_the_sparsity(group: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, group - 1))
    pattern = f"{kept}:{group}"
    assert fixed_sparsity(pattern) == pytest.approx(1 - kept / group)
    assert parse_pattern(canonical_pattern(pattern)).sparsity == pytest.approx(1 - kept / group)


@given(rows=st.integers(1, 64), columns=st.integers(1, 64), blanks=st.text(" ", max_size=2))
def test_a_block_has_one_spelling_that_pruning_reads(rows: int, columns: int, blanks: str) -> None:
    spellings = {canonical_pattern(text) for text in (f"[{rows},{blanks}{columns}]", [rows, columns], (rows, columns))}
    assert spellings == {f"[{rows}, {columns}]"}
    assert fixed_sparsity(spellings.copy().pop()) is None
    block = parse_pattern(spellings.pop())
    assert (block.rows, block.columns) == (rows, columns)  # type: ignore[attr-defined]


def test_unstructured_fixes_nothing() -> None:
    assert fixed_sparsity(canonical_pattern("unstructured")) is None


BAD = ["0:4", "4:4", "5:4", "2:", "a:b", "[0, 4]", "[4]", "[1, 2, 3]", "", "half", "2:4:8", "[-1, 4]"]
assert BAD


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|block sides"):
        canonical_pattern(text)


@pytest.mark.parametrize("value", [5, None, 1.5, ["a", 2], {"a": 1}, [True, False]])
def test_what_is_no_text_is_left_to_the_reader(value: object) -> None:
    assert canonical_pattern(value) is value
