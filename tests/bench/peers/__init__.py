"""What people use instead: each peer a process in a virtual environment of its own, on the same model and text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module

from tests.bench.rows import Row

# Name -> what measures it, in the order of the table. A module has `measure`, and `planned`: its rows without figures.
PEERS = {
    **{
        f"llmcompressor-{way}": f"tests.bench.peers.llmcompressor:{way}"
        for way in ("wanda-50%", "wanda-2:4", "sparsegpt-50%", "sparsegpt-2:4")
    },
    "lmeval": "tests.bench.peers.lmeval",
    **{f"raytune-{way}": f"tests.bench.peers.raytune:{way}" for way in ("trials", "grid")},
}


def completed(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of every peer, in order: those that were never measured say so."""
    found = {row.name: row for row in rows}
    for place in PEERS.values():
        module, *way = place.split(":", maxsplit=1)
        for row in import_module(module).planned(*way):
            yield found.get(row.name) or replace(row, skipped="It was never measured here.")
