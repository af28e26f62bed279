"""prunegpt eval and prune: one model, from the shell."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.options import (
    ROOT,
    JsonOption,
    TrustOption,
    app,
    goes_with,
    number,
    numbers,
    print_json,
)
from prunegpt.errors import alternatives, counted
from prunegpt.registry import CALIBRATION_MODES, NAMED_ALLOCATIONS, PROTOCOLS
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.records import Evaluation
    from prunegpt.report.statistics import Interval
    from prunegpt.stages.base import ModelState

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hub id, folder, .gguf file, builtin:NAME, or SWEEP/TRIAL.",
        show_default=False,
        autocompletion=complete.models,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|HUB",
        help="Dataset: text, jsonl or parquet file, folder, hub id, or builtin:text.",
        autocompletion=complete.datasets,
    ),
]
NameOption = Annotated[str | None, typer.Option("--data-name", help="Configuration of a hub dataset.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Dataset split (default: validation, or test where there is none).")
]
ColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="Column of the text (default: text, or the only one of strings).")
]
CalibrationOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Calibration dataset.", autocompletion=complete.datasets)
]
CalibrationWindowsOption = Annotated[int, typer.Option(min=1, help="Number of calibration windows.")]
CalibrationModeOption = Annotated[
    str | None,
    typer.Option(
        help=f"Calibration windows: {', '.join(CALIBRATION_MODES.builtin_names())} (default: random).",
        autocompletion=complete.calibration_modes,
    ),
]
KeepDtypeOption = Annotated[
    bool, typer.Option("--keep-dtype", help="Save in the dtype that MODEL is stored in, such as bfloat16.")
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help=f"{', '.join(PROTOCOLS.builtin_names())}; see docs/concepts/perplexity.md (default: blocks).",
        autocompletion=complete.protocols,
    ),
]
BlockOption = Annotated[
    int | None,
    typer.Option("--block-size", min=2, help="Tokens per window (default: the model's context, at most 1024)."),
]
StrideOption = Annotated[int | None, typer.Option("--stride", min=1, help="Tokens between windows of `sliding`.")]
BosOption = Annotated[
    bool, typer.Option("--bos", help="Begin each window with the tokenizer's bos token, as Gemma needs it.")
]
WindowsOption = Annotated[int | None, typer.Option("--max-windows", min=1, help="Evaluate only the first N windows.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, mps or xpu.",
        autocompletion=complete.choice("auto", "cpu", "cuda", "mps", "xpu"),
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, float32, bfloat16 or float16.",
        autocompletion=complete.choice("auto", "float32", "bfloat16", "float16"),
    ),
]


@app.command("eval", epilog="Example: prunegpt eval gpt2 --data test.txt --protocol stream --block-size 1024")
def evaluate(
    model: ModelArgument,
    data: DataOption = None,
    data_name: NameOption = None,
    text_column: ColumnOption = None,
    split: SplitOption = None,
    protocol: ProtocolOption = None,
    block_size: BlockOption = None,
    stride: StrideOption = None,
    bos: BosOption = False,
    max_windows: WindowsOption = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="Tasks of lm-evaluation-harness, by name; repeatable, or with commas between."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question of --tasks (default: the task's own).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N documents of each task.")] = None,
    include_path: Annotated[str | None, typer.Option(metavar="FOLDER", help="Further task files (YAML).")] = None,
    batch_size: Annotated[str, typer.Option(help="Windows or requests per batch, or auto.")] = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    trust_remote_code: TrustOption = False,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the perplexity of a model, or its scores of tasks.

    A perplexity comes with its confidence interval, bits per byte and protocol; scores with their standard errors.
    Tasks need lm-evaluation-harness: pip install 'prunegpt[tasks]'.

    Tasks: prunegpt eval gpt2 --tasks arc_easy,hellaswag
    """
    asked: dict[str, Any] = {"protocol": protocol, "stride": stride, "bos": bos, "max_windows": max_windows}
    if tasks and data is None:
        goes_with("--data", data_name=data_name, text_column=text_column, block_size=block_size, split=split, **asked)
    from prunegpt.cli.measure import measure, open_model, score_of, tasks_of, text_of

    batch = int(batch_size) if batch_size.isdigit() else batch_size
    scored = tasks_of(tasks, num_fewshot=num_fewshot, limit=limit, include_path=include_path, batch_size=batch)
    asked["batch_size"] = batch
    text = None if scored and data is None else text_of(data, data_name, text_column, block_size, split, **asked)
    run_in = "float32" if scored else precision  # the harness sees a model of one dtype
    state = open_model(model, root, device, trust_remote_code=trust_remote_code, precision=run_in)
    scores = score_of(state, scored, precision) if scored else None
    found, interval = measure(state.model, state.tokenizer, text, precision) if text else (None, None)
    if as_json:
        measured = as_dict(found, interval) if found else {}
        tasks_found = {"scores": [one.model_dump() for one in scores.scores]} if scores else {}
        print_json({**measured, **tasks_found, "notes": list(state.notes)})
        return
    if scores:
        print_scores(scores)
    if found:
        print_perplexity(found, interval)
    for note in state.notes:
        print(f"note: {note}")


def print_scores(found: "Evaluation") -> None:
    """The scores of tasks as a table."""
    from prunegpt.cli.tables import print_table

    rows = [
        [one.task, one.metric, one.filter, _share(one.value), _share(one.stderr), one.shots, one.documents]
        for one in found.scores
    ]
    print_table(["task", "metric", "filter", "value", "stderr", "shots", "documents"], rows)
    print(found.protocol)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def print_perplexity(found: "Evaluation", interval: "Interval | None") -> None:
    """A perplexity with its interval, in lines."""
    low, high = (interval.low, interval.high) if interval else (None, None)
    print("perplexity {} (95% interval {} to {})".format(*numbers(found.perplexity, low, high)))
    print(f"bits per byte {number(found.bits_per_byte)}, word perplexity {number(found.word_perplexity)}")
    print(f"{counted(found.tokens, 'token')} in {counted(found.windows, 'window')}, {found.seconds:.1f} s")
    print(f"protocol {found.protocol}")


def as_dict(found: "Evaluation", interval: "Interval | None") -> dict[str, Any]:
    """What --json prints of one measurement."""
    names = {"perplexity", "loss", "protocol", "tokens", "windows", "bits_per_byte", "word_perplexity"}
    return {**found.model_dump(include=names), "interval": (interval.low, interval.high) if interval else None}


# What transformers and we write into a model's folder.
_OURS = re.compile(
    r"(generation_)?config\.json|export\.json|README\.md|unpack\.py|packed\.safetensors|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|masks\.safetensors"
    r"|tokenizer(_config)?\.json|(special_tokens_map|added_tokens|vocab)\.json|(vocab|merges)\.txt"
    r"|((video_)?pre)?processor_config\.json|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.(jinja|json)"
)


@app.command(epilog="Example: prunegpt prune gpt2 ./gpt2-50 --method magnitude --sparsity 0.5 --data test.txt")
def prune(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder for the pruned model.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="Criterion or solver, such as magnitude or sparsegpt.",
            autocompletion=complete.methods,
        ),
    ],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Fraction of weights to prune, 0 to 1.")
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="unstructured, N:M (N kept) or [a, b].", autocompletion=complete.choice("unstructured", "2:4", "4:8")
        ),
    ] = "unstructured",
    allocation: Annotated[
        str | None,
        typer.Option(help=f"{alternatives(NAMED_ALLOCATIONS)}.", autocompletion=complete.allocations),
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="Tensors to prune: name, glob or re: pattern. Repeatable.")
    ] = None,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Decoder layer to prune, by index. Repeatable.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it is an empty folder or a model that prune wrote.")
    ] = False,
    calibration: CalibrationOption = None,
    calibration_windows: CalibrationWindowsOption = 128,
    calibration_mode: CalibrationModeOption = None,
    propagate: Annotated[
        bool, typer.Option(help="Calibrate each layer on the outputs of the pruned layers before it.")
    ] = True,
    refine: Annotated[
        str | None,
        typer.Option(
            help="Exchange weights of the mask for better ones, by the calibration windows: swaps or dsnot.",
            autocompletion=complete.refinements,
        ),
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(
            help="Train the kept weights of each layer on the calibration windows: block, attention, mlp or sublayers.",
            autocompletion=complete.choice("block", "attention", "mlp", "sublayers"),
        ),
    ] = None,
    keep_dtype: KeepDtypeOption = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Leave the model on the host in the dtype that it is stored in, and save it so; one layer at a time "
            "is on the device.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    data: DataOption = None,
    data_name: NameOption = None,
    text_column: ColumnOption = None,
    split: SplitOption = None,
    protocol: ProtocolOption = None,
    block_size: BlockOption = None,
    stride: StrideOption = None,
    bos: BosOption = False,
    max_windows: WindowsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    trust_remote_code: TrustOption = False,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Prune a model in one shot.

    Saves an ordinary transformers folder with masks; perplexity is measured before and after.
    """
    asked = {"protocol": protocol, "stride": stride, "bos": bos, "max_windows": max_windows}
    if data is None:
        goes_with("--data", data_name=data_name, text_column=text_column, split=split, **asked)
    from prunegpt.cli.measure import check_prune, measure, open_model, text_of
    from prunegpt.cli.progress import bar
    from prunegpt.cli.tables import print_sparsities
    from prunegpt.lm.device import pick_device
    from prunegpt.lm.models import round_to
    from prunegpt.planning.inputs import Inputs
    from prunegpt.stages.measure import check_ledger, count_zeros
    from prunegpt.stages.prune import apply

    check_out(out, overwrite)
    given = {
        "method": method,
        "sparsity": sparsity,
        "pattern": pattern,
        "allocation": allocation,
        "targets": targets or (),
        "layers": layers or (),
        "propagate": propagate,
        "refine": refine,
        "repair": repair,
    }
    spec = check_prune(given, calibration, calibration_windows, calibration_mode, block_size)
    text = text_of(data, data_name, text_column, block_size, split, **asked) if data else None
    place = pick_device(device) if stream else None
    home, keep_dtype = "cpu" if stream else device, keep_dtype or stream
    state = open_model(model, root, home, trust_remote_code=trust_remote_code, as_stored=stream)
    loaded, tokenizer = state.model, state.tokenizer
    before = measure(loaded, tokenizer, text, precision) if text else None
    with bar(f"pruning with {method}") as progress:
        result = apply(
            spec,
            state,
            Inputs(None),
            seed=seed,
            root=root,
            place=place,
            scratch=out.absolute().with_name(f".{out.absolute().name}.gradients"),  # where there is room for the model
            progress=lambda done, total, _: progress(done, total),
            calibrated=lambda done, total: progress(done, total, "calibrating"),
        )
    if keep_dtype:  # what is measured is what is saved
        round_to(loaded, state.stored)
    check_ledger(state)
    zeros = count_zeros(state)
    after = measure(loaded, tokenizer, text, precision) if text else None
    save(state, out, overwrite, "prune", keep_dtype=keep_dtype)
    notes = [*state.notes, *result.notes]
    if state.stored != "float32" and not keep_dtype:
        notes.append(f"the weights are stored in {state.stored} and were saved in float32; --keep-dtype saves theirs")
    report: dict[str, Any] = {
        "perplexity_before": before[0].perplexity if before else None,
        "perplexity_after": after[0].perplexity if after else None,
        "before": as_dict(*before) if before else None,
        "after": as_dict(*after) if after else None,
        "sparsity": zeros.pruned,
        "sparsity_of_all_parameters": zeros.overall,
        "coverage": zeros.coverage,
        "by_layer": dict(zeros.by_tensor),
        "layers": [dict(row) for row in result.layers],
        "notes": notes,
        "seconds": result.seconds,
        "out": str(out),
    }
    if as_json:
        print_json(report)
        return
    print_sparsities(zeros.by_tensor)
    print(f"sparsity {number(zeros.pruned)} of the pruned tensors, {number(zeros.overall)} of all parameters")
    if zeros.coverage is not None:
        print(f"coverage: {zeros.coverage:.1%} of the decoder's weights outside the embeddings were pruned")
    print(f"pruned in {result.seconds:.1f} s")
    if before and after:
        print("perplexity {} → {}".format(*numbers(before[0].perplexity, after[0].perplexity)))
        print(f"protocol {after[0].protocol}")
    for note in notes:
        print(f"note: {note}")
    print(f"saved {out}")


def save(state: "ModelState", out: Path, overwrite: bool, made_by: str, *, keep_dtype: bool = False) -> None:
    """A model with its tokenizer and masks as a folder, which appears whole; `made_by`: the command."""
    from prunegpt.exporting.folder import write_masks
    from prunegpt.lm.models import save_model
    from prunegpt.planning.fingerprint import versions
    from prunegpt.planning.sources import ABOUT
    from prunegpt.root import publishing, write_json

    check_out(out, overwrite)  # once more: what came before may have taken hours
    with publishing(out.resolve(), replace=overwrite) as folder:
        dtype = state.stored if keep_dtype else None
        save_model(state.model, state.tokenizer, folder, processor=state.processor, dtype=dtype)
        write_masks(state, folder)
        write_json(folder / ABOUT, {"made_by": f"prunegpt {made_by}", "versions": versions()})


def check_out(out: Path, overwrite: bool) -> None:
    """Refuses an OUT that is there, but for a model of ours that may be replaced.

    Raises:
        PruneGPTError: it must stay.
    """
    from prunegpt.errors import PruneGPTError
    from prunegpt.planning.sources import ABOUT, MASKS

    if not os.path.lexists(out):
        return
    if not overwrite:
        raise PruneGPTError(f"{out} exists already. Choose another folder or pass --overwrite.")
    if out.suffix == ".gguf" and out.is_file():
        with out.open("rb") as file:
            if file.read(4) == b"GGUF":
                return
    names = sorted(os.listdir(out)) if out.is_dir() else [out.name]
    others = [name for name in names if not _OURS.fullmatch(name) or (out / name).is_dir()]
    if not out.is_dir() or others or (names and not ("config.json" in names and {MASKS, ABOUT} & set(names))):
        held = f"holds {', '.join(others[:3])}" if others else "is none"
        raise PruneGPTError(
            f"--overwrite replaces an empty folder or a model that `prune`, `shrink` or `export` wrote; {out} {held}. "
            "Choose another folder, or remove that one yourself."
        )
    if Path.cwd().is_relative_to(out.resolve()):
        raise PruneGPTError(f"OUT must not be the current folder, got {out}. Name another, or go elsewhere.")
