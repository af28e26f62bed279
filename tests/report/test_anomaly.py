"""What a report says of published figures that are no perplexity, and that it says so only there."""

import math
from pathlib import Path

import pytest

from prunegpt.report.cells import Footnote, Table
from prunegpt.report.folder import blended, divergence_of, write_folder


def table(note: str) -> Table:
    return Table(title="T", name="t", columns=(), rows=(), footnotes=(Footnote("1", note),))


@pytest.mark.parametrize("published", [1.33e9, 1.43e13, 2.76e70])
def test_read_backwards_a_figure_is_a_small_divergence_and_forwards_the_figure(published: float) -> None:
    cross_entropy = math.log(21.76)
    found = divergence_of(published, cross_entropy)
    assert 0.009 < found < 0.16  # nats per token, as the study's other rows make plausible
    assert math.exp(blended(cross_entropy, found)) == pytest.approx(published)


def test_the_explanation_stands_in_a_report_that_needs_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [table("no perplexity: a blended loss")], title="A")
    page = (tmp_path / "a" / "index.html").read_text()
    assert 'href="#no-perplexity"' in page
    assert 'id="no-perplexity"' in page
    assert "0.0095 nats" in page
    write_folder(tmp_path / "b", [table("from another protocol")], title="B")
    assert "no-perplexity" not in (tmp_path / "b" / "index.html").read_text()
