"""LaTeX with booktabs; needs \\usepackage{booktabs} and a UTF-8 document."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from prunegpt.report.cells import Heading, Table
from prunegpt.report.format import one_line

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "–": r"\textendash{}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "→": r"\ensuremath{\rightarrow}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
}
_ACTIVE = re.compile("|".join(re.escape(character) for character in _SPECIAL))
_JOINED = re.compile(r"([-,])(?=\1)")  # two of them would be set as one sign

_STRONG, _RAISED = r"\textbf{{{}}}", r"\textsuperscript{{{}}}"


def render(tables: Sequence[Table]) -> str:
    """A table environment each, with caption and label."""
    return "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}\n" + "\n".join(map(_table, tables))


def _table(table: Table) -> str:
    alignment = "".join("l" if heading.kind == "text" else "r" for heading in table.columns)
    notes = [note.marked(escape, _RAISED) for note in table.footnotes]
    if table.provenance:
        notes.append(f"{escape(table.provenance)}.")
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escape(table.caption or table.title)}}}",
        f"  \\label{{tab:{re.sub(r'[^A-Za-z0-9.-]+', '-', table.name)}}}",
        f"  \\begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        *_head(table.columns),
        r"    \midrule",
        *(f"    {_row(cell.marked(escape, _STRONG, _RAISED) for cell in row.cells)}" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *(f"  \\par {{\\footnotesize {note}}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _head(columns: Sequence[Heading]) -> Iterator[str]:
    """The head, of two rows where neighbours belong to one family."""
    families = [(family, list(group)) for family, group in groupby(columns, key=lambda heading: heading.family)]
    shared = {family for family, group in families if family and len(group) > 1}
    if shared:
        cells, rules, place = [], [], 1
        for family, group in families:
            end = place + len(group) - 1
            if family in shared and len(group) > 1:
                cells.append(f"\\multicolumn{{{len(group)}}}{{c}}{{{escape(family)}}}")
                rules.append(f"\\cmidrule(lr){{{place}-{end}}}")
            else:
                cells += [""] * len(group)
            place = end + 1
        yield f"    {_row(cells)}"
        yield f"    {' '.join(rules)}"
    grouped = [len(group) > 1 and bool(family) for family, group in families for _ in group]
    texts = [heading.short if within else heading.text for heading, within in zip(columns, grouped, strict=True)]
    yield f"    {_row(map(escape, texts))}"


def escape(text: str) -> str:
    """Text that is set as itself."""
    return _JOINED.sub(r"\1{}", _ACTIVE.sub(lambda found: _SPECIAL[found[0]], one_line(text)))


def _row(cells: Iterable[str]) -> str:
    # an empty group first: a cell that starts with [ or * would be read as an argument of the \\ before it
    return "{}" + " & ".join(cells) + r" \\"
