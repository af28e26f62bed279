"""prunegpt shrink: a smaller model, from the shell."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prunegpt.cli import complete
from prunegpt.cli.models import (
    BlockOption,
    BosOption,
    CalibrationModeOption,
    CalibrationOption,
    CalibrationWindowsOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    KeepDtypeOption,
    ModelArgument,
    NameOption,
    PrecisionOption,
    ProtocolOption,
    SplitOption,
    StrideOption,
    WindowsOption,
    as_dict,
    check_out,
    save,
)
from prunegpt.cli.options import ROOT, JsonOption, TrustOption, app, goes_with, number, numbers, print_json
from prunegpt.cli.speed import GenerateOption, PromptOption, ThreadsOption
from prunegpt.errors import PruneGPTError, alternatives
from prunegpt.registry import EXPERT_CHOICES, IMPORTANCES, LAYER_CHOICES
from prunegpt.root import Root


def size(text: str) -> int | float:
    """A number of layers and the like, or a share: `1` is one and `1.0` all."""
    try:
        return int(text) if text.strip().isdecimal() else float(text)
    except ValueError as error:
        raise typer.BadParameter(f"a size must be a number such as 24 or a share such as 0.75, got {text}.") from error


def _given(**values: Any) -> dict[str, Any]:
    """What was given."""
    return {name: value for name, value in values.items() if value is not None}


def _size(help_text: str) -> Any:
    return typer.Option(metavar="SIZE", parser=size, help=help_text)


@app.command(epilog="Example: prunegpt shrink gpt2 ./gpt2-9 --layers 9 --calibration train.txt --data test.txt")
def shrink(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder for the model.", show_default=False)],
    layers: Annotated[Any, _size("Decoder layers that stay: a number such as 24, or a share such as 0.8.")] = None,
    drop: Annotated[list[int] | None, typer.Option(help="Decoder layer that goes, by index. Repeatable.")] = None,
    ffn: Annotated[Any, _size("Feed-forward neurons that stay.")] = None,
    heads: Annotated[Any, _size("Key-value heads that stay, with their query heads.")] = None,
    hidden: Annotated[Any, _size("Channels of the hidden state that stay.")] = None,
    experts: Annotated[Any, _size("Experts that stay in every layer.")] = None,
    parameters: Annotated[Any, _size("Parameters that stay at most, in place of --layers or --ffn.")] = None,
    latency: Annotated[
        float | None, typer.Option(help="Time per generated token at most, measured: a share of that of MODEL.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What --parameters or --latency makes smaller: layers (default) or ffn.",
            autocompletion=complete.choice("layers", "ffn"),
        ),
    ] = None,
    prompt: PromptOption = None,
    generate: GenerateOption = None,
    threads: ThreadsOption = None,
    choice: Annotated[
        str | None,
        typer.Option(
            help=f"Layers that stay: {', '.join(LAYER_CHOICES.builtin_names())} (default: influence).",
            autocompletion=complete.registered("LAYER_CHOICES"),
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            help=f"Neurons, heads, channels: {', '.join(IMPORTANCES.builtin_names())} (default: activation).",
            autocompletion=complete.registered("IMPORTANCES"),
        ),
    ] = None,
    expert_choice: Annotated[
        str | None,
        typer.Option(
            help=f"Experts: {', '.join(EXPERT_CHOICES.builtin_names())} (default: reap).",
            autocompletion=complete.registered("EXPERT_CHOICES"),
        ),
    ] = None,
    multiple_of: Annotated[int | None, typer.Option(min=1, help="Shares are rounded to a multiple of it.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it is an empty folder or a model that we wrote.")
    ] = False,
    calibration: CalibrationOption = None,
    calibration_windows: CalibrationWindowsOption = 128,
    calibration_mode: CalibrationModeOption = None,
    keep_dtype: KeepDtypeOption = False,
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
    """Cut layers, neurons, heads, channels or experts.

    Saves an ordinary transformers folder of the smaller shape; perplexity is measured before and after.
    """
    asked = {"protocol": protocol, "stride": stride, "bos": bos, "max_windows": max_windows}
    if data is None:
        goes_with("--data", data_name=data_name, text_column=text_column, split=split, **asked)
    from prunegpt.cli.measure import check_shrink, measure, open_model, positions_of, text_of
    from prunegpt.cli.progress import bar
    from prunegpt.cli.tables import print_table
    from prunegpt.lm.device import pick_dtype
    from prunegpt.lm.models import round_to
    from prunegpt.planning.inputs import Inputs
    from prunegpt.stages.measure import check_ledger, count_zeros
    from prunegpt.stages.shrink import apply

    check_out(out, overwrite)
    speed = _given(prompt=prompt, generate=generate, threads=threads)
    limits = _given(parameters=parameters, latency=latency, by=by, speed=speed or None)
    if limits and parameters is None and latency is None:
        without = alternatives(f"--{name}" for name in _given(by=by, **speed))
        raise PruneGPTError(
            f"--by, --prompt, --generate and --threads go with --parameters or --latency, got {without} alone. Add one "
            "of the two."
        )
    given: dict[str, Any] = {
        "layers": layers,
        "drop": drop,
        "ffn": ffn,
        "heads": heads,
        "hidden": hidden,
        "experts": experts,
        "budget": limits or None,
        "choice": choice,
        "importance": importance,
        "expert_choice": expert_choice,
        "multiple_of": multiple_of,
    }
    spec = check_shrink(given, calibration, calibration_windows, calibration_mode, block_size)
    if unused := [one for one in ("choice", "importance", "expert_choice") if given[one] and not spec.decides(one)]:
        decided = {"choice": "--layers", "importance": "--ffn, --heads or --hidden", "expert_choice": "--experts"}
        goes_with(decided[unused[0]], **{unused[0]: given[unused[0]]})
    text = text_of(data, data_name, text_column, block_size, split, **asked) if data else None
    state = open_model(model, root, device, trust_remote_code=trust_remote_code)
    if block_size is None and spec.calibration.length is not None:
        length = min(spec.calibration.length, positions_of(state.model))
        spec = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"length": length})})
    before = measure(state.model, state.tokenizer, text, precision) if text else None
    whole = count_zeros(state).parameters
    with bar("shrinking") as progress:
        dtype = pick_dtype(precision, state.model.device)
        result = apply(spec, state, Inputs(None), root=root, dtype=dtype, tried=progress)
    if keep_dtype:  # what is measured is what is saved
        round_to(state.model, state.stored)
    check_ledger(state)
    after = measure(state.model, state.tokenizer, text, precision) if text else None
    save(state, out, overwrite, "shrink", keep_dtype=keep_dtype)
    notes = [*state.notes, *result.notes]
    if state.stored != "float32" and not keep_dtype:
        notes.append(f"the weights are stored in {state.stored} and were saved in float32; --keep-dtype saves theirs")
    if as_json:
        print_json(
            {
                "perplexity_before": before[0].perplexity if before else None,
                "perplexity_after": after[0].perplexity if after else None,
                "before": as_dict(*before) if before else None,
                "after": as_dict(*after) if after else None,
                "parameters_before": whole,
                "parameters": count_zeros(state).parameters,
                "rows": [dict(row) for row in result.layers],
                "notes": notes,
                "seconds": result.seconds,
                "out": str(out),
            }
        )
        return
    if result.layers:
        columns = list(dict.fromkeys(name for row in result.layers for name in row))
        print_table(columns, ([row.get(name) for name in columns] for row in result.layers), title="What could go")
    print(f"shrunk in {number(result.seconds)} s")
    if before and after:
        print("perplexity {} → {}".format(*numbers(before[0].perplexity, after[0].perplexity)))
        print(f"protocol {after[0].protocol}")
    for note in notes:
        print(f"note: {note}")
    print(f"saved {out}; transformers loads it with AutoModelForCausalLM.from_pretrained({str(out)!r})")
