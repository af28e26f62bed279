"""Which names globs mean."""

import pytest

from prunegpt.errors import SpecError
from prunegpt.spec.only import matches, refuse_unmatched


@pytest.mark.parametrize("none", [None, (), []])
def test_no_globs_mean_all(none: tuple[str, ...] | list[str] | None) -> None:
    assert matches("one", none)
    refuse_unmatched(none, [])


def test_each_glob_must_match() -> None:
    assert matches("one", "o*")
    assert matches("one", ["two", "o*"])
    assert not matches("one", ["two", "three"])
    with pytest.raises(SpecError, match=r"'three' matches none\. There are: one, two"):
        refuse_unmatched(["o*", "three"], ["one", "two"])
