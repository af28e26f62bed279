"""prunegpt doctor --model: what a model is, what would be pruned, what it takes and what would not work."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunegpt.cli.options import number
from prunegpt.cli.tables import print_table
from prunegpt.errors import PruneGPTError
from prunegpt.lm.skeleton import build_empty
from prunegpt.lm.views import decoder_blocks, memory_sizes, outline
from prunegpt.planning import checks
from prunegpt.planning.facts import ModelFacts, model_facts
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.memory import EVALUATED, Memory
from prunegpt.spec.methods import method_entry
from prunegpt.spec.names import Matrix
from prunegpt.spec.outline import Coverage, Outline
from prunegpt.spec.patterns import read_pattern
from prunegpt.spec.schema import ModelSpec

_GIGABYTE = 1e9
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|(?<=\[)\d+(?=\])")  # of a layer or an expert, within a name
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB)", re.IGNORECASE)
_USUAL = ("2:4", "4:8")  # patterns that people ask for


@dataclass(frozen=True)
class Asked:
    """What memory is estimated for."""

    windows: int  # of calibration
    length: int  # tokens of a window and of a training sequence
    batch: int  # sequences trained on at a time
    device: str | None = None  # memory of a device that need not be there


class _Unread(Files):
    """Files that are not hashed: no key is made of them."""

    def hash(self, path: Path) -> str:
        return str(path)


def report(source: str, asked: Asked) -> dict[str, Any]:
    """What can be said of a model from its config and the names and shapes in its files; no weight is read.

    Raises:
        PruneGPTError: there is no such model, or it cannot be built.
    """
    facts = model_facts(ModelSpec(source=source), _Unread(None))
    model = build_empty(source)
    config, found = model.config.get_text_config(), outline(model)
    default = [matrix for matrix in found.matrices if matrix.block is not None and matrix.default]
    coverage = found.coverage(matrix.name for matrix in default)
    positions = getattr(config, "max_position_embeddings", None)
    length = min(asked.length, positions or asked.length)
    return {
        "model": source,
        "family": model.config.model_type,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": len(decoder_blocks(model)[1]),
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "positions": positions,
        "stored_in": str(model.config.dtype or "float32").removeprefix("torch."),
        "pruned": _kinds(default),
        "left_alone": _kinds([one for one in found.matrices if one.block is not None and not one.default]),
        "coverage": coverage.share,
        "outside": _grouped(coverage),
        "memory": _memory(found, model.config, asked, length),
        "memory_for": {"windows": asked.windows, "tokens": length, "batch": asked.batch},
        "devices": {**_devices(), **({asked.device: _size(asked.device)} if asked.device else {})},
        "problems": [*_problems(facts), *_misfits(default), *_uncovered(coverage)],
    }


def _problems(facts: ModelFacts) -> Iterator[str]:
    for check in (checks.model_problem, checks.shape_problem, checks.tokenizer_problem):
        try:
            if message := check(facts):
                yield message
        except PruneGPTError as error:
            yield str(error)
    if facts.unchecked:
        yield f"not checked: {facts.unchecked}"
    if facts.tokenizer_file is None and not facts.builtin:
        yield "no tokenizer.json was found: a tokenizer of another format is tried when the model is loaded"


def _memory(found: Outline, config: Any, asked: Asked, length: int) -> dict[str, int]:
    """Bytes on an accelerator by what is done, in float32 unless its name has another precision.

    One-shot pruning is in the dtype that the model is stored in, as that of sweeps is.
    """
    memory, half = Memory(sizes := memory_sizes(found, config)), Memory(sizes, half=True)
    stored = Memory(sizes, stored=(config.dtype or torch.float32).itemsize)
    tokens = asked.batch * length
    return {
        "evaluation": memory.evaluation(max(EVALUATED, length)),
        "evaluation in bfloat16": half.evaluation(max(EVALUATED, length), alone=True),
        **{
            name: stored.one_shot(name, method_entry(name).needs, asked.windows, length)
            for name in ("magnitude", "wanda", "sparsegpt", "taylor", "obert")
        },
        **{
            f"{name} streamed": stored.streamed(name, method_entry(name).needs, asked.windows, length)
            for name in ("sparsegpt", "taylor", "obert")
        },
        "training": memory.training(tokens),
        "distillation": memory.training(tokens, distilled=memory.weights),
        "training in bfloat16": half.training(tokens),
        "distillation in bfloat16": half.training(tokens, distilled=half.weights // 2),
    }


def _misfits(matrices: list[Matrix]) -> Iterator[str]:
    """Patterns that people ask for and whose groups some matrices do not divide into."""
    for pattern in _USUAL:
        group = read_pattern(pattern).second
        odd = dict.fromkeys(_kind(one.name) for one in matrices if one.shape[1] % group)
        if odd:
            yield f"{pattern} takes inputs in groups of {group}, which those of {', '.join(odd)} are not: exclude them"


def _uncovered(coverage: Coverage) -> Iterator[str]:
    if coverage.note:
        yield coverage.note


def _kind(name: str) -> str:
    """A name without the numbers of its layer and its expert, as a pattern that `targets` takes."""
    return _NUMBER.sub("*", name)


def _kinds(matrices: list[Matrix]) -> list[dict[str, Any]]:
    """Matrices of the same role in all layers, together."""
    found: dict[tuple[str, tuple[int, int]], int] = Counter((_kind(one.name), one.shape) for one in matrices)
    return [
        {"tensors": name, "shape": list(shape), "count": count, "weights": count * shape[0] * shape[1]}
        for (name, shape), count in found.items()
    ]


def _grouped(coverage: Coverage) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in coverage.outside.items():
        found[_kind(name)] += count
    return dict(found.most_common())


def _size(text: str) -> int:
    """Bytes of a size such as 24GiB."""
    found = _SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise PruneGPTError(f"a size must be a number of GiB or GB above 0, got {text!r}. Write it like 24GiB.")
    return int(float(found[1]) * (2**30 if found[2].lower() == "gib" else 10**9))


def _devices() -> dict[str, int]:
    """Bytes of memory by device."""
    import torch

    found = {"cpu": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_properties(index).total_memory
    return found


def print_report(found: dict[str, Any]) -> None:
    """The report for people."""
    print(
        f"{found['model']}: {found['architecture']}, {number(found['parameters'])} parameters in {found['stored_in']}"
    )
    print(
        f"{number(found['layers'])} decoder layers of width {number(found['width'])}, vocabulary "
        f"{number(found['vocabulary'])}, {number(found['positions'])} positions"
    )
    print_table(
        ["pruned by default", "shape [out, in]", "matrices", "weights"],
        map(_row, found["pruned"]),
    )
    if found["outside"]:
        nameable = {kind["tensors"] for kind in found["left_alone"]}
        print_table(
            ["stays dense by default", "weights", "may be named in targets"],
            ([name.removesuffix(".weight"), count, name in nameable] for name, count in found["outside"].items()),
        )
    print(f"Coverage: {found['coverage']:.1%} of the decoder's weights outside the embeddings.")
    asked, devices = found["memory_for"], found["devices"]
    print_table(
        ["memory for", "GB, about", *(f"fits {name}, {size / _GIGABYTE:.0f} GB" for name, size in devices.items())],
        (
            [name, f"{size / _GIGABYTE:.1f}", *("yes" if size < held else "no" for held in devices.values())]
            for name, size in found["memory"].items()
        ),
    )
    print(
        f"Estimated for {asked['windows']} calibration windows and sequences of {asked['tokens']} tokens, batch "
        f"{asked['batch']}, weights in float32. On a CPU masks and hidden states take more, and libraries about 0.7 GB."
    )
    for problem in found["problems"]:
        print(f"note: {problem}")


def _row(kind: dict[str, Any]) -> list[Any]:
    shape = " × ".join(map(str, kind["shape"]))
    return [kind["tensors"].removesuffix(".weight"), shape, kind["count"], kind["weights"]]
