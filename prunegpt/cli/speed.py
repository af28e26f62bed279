"""prunegpt measure: how fast a model generates beside another, and how large it is."""

from typing import TYPE_CHECKING, Annotated

import typer

from prunegpt.cli import complete
from prunegpt.cli.models import DeviceOption, ModelArgument, PrecisionOption
from prunegpt.cli.options import ROOT, JsonOption, TrustOption, app, print_json, say
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.records import Timed


PromptOption = Annotated[int | None, typer.Option(min=1, help="Tokens of the prompt of measured speed (default: 512).")]
GenerateOption = Annotated[int | None, typer.Option(min=2, help="Tokens generated there (default: 64).")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads there (default: one per core).")]


@app.command(epilog="Example: prunegpt measure ./smaller --reference gpt2 --threads 2")
def measure(
    model: ModelArgument,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What it is measured beside (default: of a trial the model that its chain starts from, else itself).",
            autocompletion=complete.models,
        ),
    ] = None,
    prompt: PromptOption = None,
    generate: GenerateOption = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences at a time (default: 1).")] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=6, help="How often both are measured in turns; more narrow the interval (default: 12)."),
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    trust_remote_code: TrustOption = False,
    root: Root = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and size of a model, beside a reference.

    Both are measured in turns in one process: time to the first token, tokens per second of the prompt and of
    generation, ratios with their intervals, and how noisy the machine was; memory, bytes on disk, parameters.
    A masked model of the same shape is as fast as the dense one: × 1.00.

    A trial beside the model that it started from: prunegpt measure shrink/depth24
    """
    from prunegpt.cli.measure import open_sized, start_of
    from prunegpt.cli.progress import bar
    from prunegpt.cli.tables import print_table
    from prunegpt.lm.device import pick_dtype
    from prunegpt.lm.speed import figures, measure_speed
    from prunegpt.report.speeds import NOISY
    from prunegpt.spec.evaluate import SpeedSpec

    given = {"prompt": prompt, "generate": generate, "batch": batch, "repeats": repeats, "threads": threads}
    spec = SpeedSpec.model_validate({name: value for name, value in given.items() if value is not None})
    opened = open_sized(model, root, device, trust_remote_code=trust_remote_code)
    beside = reference or start_of(model, root)
    other = opened if beside is None else open_sized(beside, root, device, trust_remote_code=trust_remote_code)
    with bar("measuring in turns") as progress:
        found, times = measure_speed(
            opened.model,
            other.model,
            spec,
            called=other.name,
            dtype=pick_dtype(precision, opened.model.device),
            progress=progress,
            say=say,
        )
    assert found.speed is not None
    speed = found.speed
    mine, theirs = (figures(times[side], spec) for side in ("model", "reference"))
    noise = max(speed.noise, speed.noise_prefill)
    if as_json:
        timed = [{name: one.model_dump() for name, one in found.items()} for found in (mine, theirs)]
        print_json(
            {
                "model": {"name": opened.name, **timed[0], "memory": speed.memory, **opened.sizes},
                "reference": {"name": other.name, **timed[1], **other.sizes},
                "speedup": speed.speedup.model_dump(),
                "speedup:prefill": speed.speedup_prefill.model_dump(),
                "noise": speed.noise,
                "noise_prefill": speed.noise_prefill,
                "noisy": noise > NOISY,
                "protocol": found.protocol,
                "seconds": found.seconds,
            }
        )
        return
    ratios = {"decode": speed.speedup, "prefill": speed.speedup_prefill}
    rows = [[_LABELS[name], mine[name].value, theirs[name].value, _ratio(ratios.get(name))] for name in mine]
    for name, one in opened.sizes.items():
        rows.append([_LABELS[name], one, other.sizes[name], _share(one, other.sizes[name])])
    rows.append(["memory, bytes", speed.memory, "", ""])
    print_table(["", "model", "reference", "ratio"], rows, title=f"{opened.name} beside {other.name}")
    print(f"In brackets: 95% interval of the median over {spec.repeats} pairs of runs, by the sign test.")
    off = f"{speed.noise:.1%} off in decoding, {speed.noise_prefill:.1%} in prefill"
    print(f"Noise: the reference beside itself is {off}.")
    if noise > NOISY:
        print(f"The machine is too noisy: two measurements may differ by more than {NOISY:.0%}. Repeat on an idle one.")
    print(f"protocol {found.protocol}")


_LABELS = {
    "prefill": "prefill, tokens/s",
    "decode": "decode, tokens/s",
    "first_token": "first token, s",
    "parameters": "parameters",
    "nonzero": "not zero",
    "bytes": "bytes on disk",
}


def _ratio(found: "Timed | None") -> str:
    return f"× {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if found else ""


def _share(one: int | None, other: int | None) -> str:
    return f"× {one / other:.3f}" if one is not None and other else ""
