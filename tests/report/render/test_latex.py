"""LaTeX read back by a small reader that knows which characters are active."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegpt.report.cells import Cell, Footnote, Heading, Table, TableRow
from prunegpt.report.format import one_line
from prunegpt.report.render.latex import escape, render

COMMANDS = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
    "textbar": "|", "textasciigrave": "`", "textquotesingle": "'", "textquotedbl": '"', "textendash": "–",
    "textdagger": "†", "textdaggerdbl": "‡",
}  # fmt: skip
MATHS = {r"\pm": "±", r"\times": "×", r"\rightarrow": "→"}
LIGATURES = ("--", ",,", "``", "''", "<<", ">>")


def read(latex: str) -> str:
    """What TeX would set; an active character that is not escaped fails."""
    out, at = "", 0
    while at < len(latex):
        rest = latex[at:]
        if found := re.match(r"\\ensuremath\{(\\[a-z]+)\}", rest):
            out += MATHS[found[1]]
        elif found := re.match(r"\\([a-z]+)\{\}", rest):
            out += COMMANDS[found[1]]
        elif found := re.match(r"\\([{}$&%#_])", rest):
            out += found[1]
        elif found := re.match(r"\{\}", rest):
            pass
        elif found := re.match(r"[^\\{}$&%#_~^<>|`'\"]", rest):
            assert not rest.startswith(LIGATURES), f"{rest!r} would be joined"
            out += found[0]
        else:
            raise AssertionError(f"{rest!r} is active")
        at += found.end()
    return out


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="\\{}$&%#_~^<>|`'\"-,±×→†‡– a", max_size=20))
def test_text_is_set_as_it_was(text: str) -> None:
    assert read(escape(text)) == one_line(text)


@pytest.mark.parametrize("character", list("\\{}$&%#_~^<>|"))
def test_no_special_character_stays_bare(character: str) -> None:
    assert escape(character) != character


def table(*cells: Cell) -> Table:
    headings = tuple(Heading(f"H{i}", "loss" if i else "text") for i in range(len(cells)))
    return Table(
        "100 % & more", "a b", headings, (TableRow("a", "finished", cells),), (Footnote("†", "50 % off"),), "v_1"
    )


def test_structure() -> None:
    text = render([table(Cell("x_1", "x_1"), Cell(21.7, "21.7", ("best",), ("†", "1")))])
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    for part in (
        r"\caption{100 \% \& more}", r"\label{tab:a-b}", r"\begin{tabular}{lr}", r"\toprule",
        r"{}x\_1 & \textbf{21.7}\textsuperscript{\textdagger{},1} \\", r"50 \% off.", r"v\_1.",
    ):  # fmt: skip
        assert part in text
    lines = [line.strip() for line in text.splitlines()]
    assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"\bottomrule")


@given(st.lists(st.text(max_size=10), min_size=1, max_size=4))
def test_a_row_has_a_cell_for_every_column(texts: list[str]) -> None:
    text = render([table(*(Cell(t, t) for t in texts))])
    row = text.splitlines()[text.splitlines().index(r"    \midrule") + 1]
    cells = re.split(r"(?<!\\)&", row.strip().removeprefix("{}").removesuffix(r"\\"))
    assert [read(cell.strip()) for cell in cells] == [one_line(t) for t in texts]
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0


def test_a_cell_that_starts_with_a_bracket_is_no_argument() -> None:
    text = render([table(Cell("[1pt]", "[1pt]"))])
    assert "{}[1pt]" in text


def families() -> Table:
    columns = (
        Heading("Trial", "text"),
        Heading("Perplexity", "loss", family="Perplexity", short="test"),
        Heading("Perplexity (c4)", "loss", family="Perplexity", short="c4"),
        Heading("arc_easy", "percent", family="Tasks", short="arc_easy"),
    )
    cells = (Cell("a", "a"), Cell(1.0, "1.00", ("best",)), Cell(2.0, "2.00"), Cell(3.0, "3.0"))
    return Table("T", "t", columns, (TableRow("a", "finished", cells),))


def test_neighbours_of_one_family_share_a_head() -> None:
    lines = [line.strip() for line in render([families()]).splitlines()]
    at = lines.index(r"\toprule")
    assert lines[at + 1 : at + 4] == [
        r"{} & \multicolumn{2}{c}{Perplexity} &  \\",
        r"\cmidrule(lr){2-3}",
        r"{}Trial & test & c4 & arc\_easy \\",
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_it_compiles(tmp_path: Path) -> None:
    packages = r"\usepackage{booktabs}\usepackage[T1]{fontenc}\usepackage{textcomp}"
    body = render([families(), table(Cell(1.0, "1.0 ± 2 → †"))])
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
