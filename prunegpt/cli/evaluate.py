"""prunegpt eval: the perplexity of any model on any text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli.options import JsonOption, RootOption, number, numbers, print_json

if TYPE_CHECKING:
    from prunegpt.records import Evaluation
    from prunegpt.report.statistics import Interval

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id, folder, .gguf file, builtin:NAME, or SWEEP/TRIAL.", show_default=False
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE|HUB", help="Text, jsonl or parquet file, folder, hub id, builtin:text."),
]
NameOption = Annotated[str | None, typer.Option("--data-name", help="Configuration of a hub dataset.")]
SplitOption = Annotated[str, typer.Option("--split", help="Split of a folder, hub or built-in text.")]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="blocks, stream or sliding; see the README.")]
BlockOption = Annotated[
    int | None, typer.Option("--block-size", min=2, help="Tokens a window; the model's context, at most 1024.")
]
StrideOption = Annotated[int | None, typer.Option("--stride", min=1, help="Tokens between windows of `sliding`.")]
WindowsOption = Annotated[int | None, typer.Option("--max-windows", min=1, help="Only the first so many windows.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, float32, bfloat16 or float16.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the model brings; read it first.")
]


def register(app: typer.Typer) -> None:
    app.command("eval", epilog="Example: prunegpt eval gpt2 --data test.txt --protocol stream --block-size 1024")(
        evaluate
    )


def evaluate(
    model: ModelArgument,
    data: DataOption = None,
    data_name: NameOption = None,
    split: SplitOption = "test",
    protocol: ProtocolOption = "stream",
    block_size: BlockOption = None,
    stride: StrideOption = None,
    max_windows: WindowsOption = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", help="Windows at a time, or auto; not in the result.")
    ] = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    trust_remote_code: TrustOption = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a perplexity, with its interval, bits per byte, and the protocol it belongs to."""
    from prunegpt.cli.measure import Text, measure, open_model
    from prunegpt.root import Root

    where = Root.find(root)
    text = Text(data, data_name, split, protocol, block_size, stride, max_windows, batch_size)
    text.check()
    state = open_model(model, where, device, trust_remote_code=trust_remote_code)
    measured = measure(state.model, state.tokenizer, text, where, precision=precision)
    if as_json:
        print_json(as_dict(*measured))
    else:
        print_measured(*measured)


def as_dict(found: "Evaluation", interval: "Interval | None") -> dict[str, Any]:
    """What --json prints of one measurement."""
    return {
        "perplexity": found.perplexity,
        "interval": (interval.low, interval.high) if interval else None,
        "loss": found.loss,
        "protocol": found.protocol,
        "tokens": found.tokens,
        "windows": found.windows,
        "bits_per_byte": found.bits_per_byte,
        "word_perplexity": found.word_perplexity,
    }


def print_measured(found: "Evaluation", interval: "Interval | None") -> None:
    low, high = (interval.low, interval.high) if interval else (None, None)
    shown = numbers(found.perplexity, low, high)
    print("perplexity {} (95 % interval {} to {})".format(*shown))
    print(f"bits per byte {number(found.bits_per_byte)}, word perplexity {number(found.word_perplexity)}")
    print(f"{found.tokens:,} tokens in {found.windows:,} windows, {found.seconds:.1f} s")
    print(f"protocol {found.protocol}")
