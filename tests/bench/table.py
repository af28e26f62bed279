"""The table of docs/results/benchmarks.md, made from latest.json.

    python -m tests.bench.table               # prints it
    python -m tests.bench.table --update docs/results/benchmarks.md
    python -m tests.bench.table --check docs/results/benchmarks.md

It stands between the lines <!-- prunegpt:bench --> and <!-- /prunegpt:bench -->; the one of the peers, which --peers
asks for, between those of prunegpt:peers.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench import region
from tests.bench.history import RESULTS, Latest, elsewhere, read_latest
from tests.bench.peers import completed
from tests.bench.rows import Row


def read(name: str, results: Path) -> Latest | None:
    """What a table shows; the one of the peers has rows that were never measured, too."""
    latest = read_latest(results)
    return replace(latest, rows=tuple(completed(latest.rows))) if latest and name == "peers" else latest


def markdown(latest: Latest, others: Mapping[str, Sequence[Row]] | None = None) -> str:
    """The table, what its rows say for themselves, and where it was measured.

    Args:
        others: by row, its figures on other machines: the table has the range over all of them.
    """
    lines = ["| What | Beside | Wanted | Measured | |", "| --- | --- | ---: | ---: | --- |"]
    notes: list[str] = []
    for row in latest.rows:
        machines = [row, *(others or {}).get(row.name, ())]
        met = sum(one.is_met is True for one in machines)
        verdict = row.verdict if met in (0, len(machines)) else f"met on {met} of {len(machines)} machines"
        said = row.skipped or row.note
        if said:
            notes += [said] * (said not in notes)
            verdict += f"<sup>{notes.index(said) + 1}</sup>"
        lines.append(f"| {row.what} | {row.beside or '–'} | {_wanted(row)} | {_measured(machines)} | {verdict} |")
    place = latest.place
    clock = "CPU" if place.clock == "processor" else place.clock
    where = (
        f"{place.processor}, {place.cores} cores, {place.device}, {place.threads} threads, {clock} clock; "
        f"{', '.join(f'{name} {version}' for name, version in latest.versions.items())}; {latest.commit}; {latest.date}"
    )
    quick = ["**Made with --quick: these figures mean nothing.**", ""] if place.quick else []
    footnotes = [f"<sup>{number}</sup> {note}<br>" for number, note in enumerate(notes, start=1)]
    legend = "A ratio is the median of paired runs, in brackets its quartiles, or all there are of fewer than four."
    return "\n".join([*quick, *lines, "", f"{legend}<br>", *footnotes, f"<sub>{where}</sub>"]) + "\n"


def replaced(
    text: str, latest: Latest, others: Mapping[str, Sequence[Row]] | None = None, *, name: str = "bench"
) -> str:
    """The text with the table between the markers of that name.

    Raises:
        ValueError: the markers are not there, or more than once.
    """
    return region.replaced(text, name, markdown(latest, others))


def _wanted(row: Row) -> str:
    if row.wanted is None:
        return "–"
    return f"{'≤' if row.better == 'lower' else '≥'} {row.wanted:g} {row.unit}"


def _measured(machines: Sequence[Row]) -> str:
    row, values = machines[0], [one.value for one in machines]
    if row.skipped:
        return "–"
    if len(machines) > 1:
        return f"{_number(min(values))} to {_number(max(values))} {row.unit} on {len(machines)} machines"
    spread = f" \\[{_number(row.low)}, {_number(row.high)}\\]" if row.rounds > 1 else ""
    return f"{_number(row.value)} {row.unit}{spread}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="folder with latest.json")
    parser.add_argument("--peers", action="store_true", help="the table of the peers")
    parser.add_argument("--update", type=Path, metavar="FILE", help="write the table into this file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail where that file's table is another")
    arguments = parser.parse_args()
    name = "peers" if arguments.peers else "bench"
    results = arguments.results or (RESULTS / "peers" if arguments.peers else RESULTS)
    latest = read(name, results)
    if latest is None:
        print(f"{results} holds no latest.json. Run `make bench` first.", file=sys.stderr)
        return 1
    path = arguments.update or arguments.check
    if path is None:
        print(markdown(latest, elsewhere(latest, results)), end="")
        return 0
    before = path.read_bytes().decode("utf-8")
    after = replaced(before, latest, elsewhere(latest, results), name=name)
    if arguments.update:
        path.write_bytes(after.encode("utf-8"))
    elif before != after:
        print(f"{path} holds another table than {results}. Run with --update {path}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
