"""prunegpt train: the study's own command line, as one trial of the store."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegpt.cli.options import ROOT, SetOption, app, goes_with, say
from prunegpt.root import Root

if TYPE_CHECKING:
    from prunegpt.records import TrialResult


def _option(name: str, text: str, *others: str) -> Any:
    """An option in both spellings, with underscores as the example has it and with dashes."""
    names = dict.fromkeys(f"--{one}" for each in (name, *others) for one in (each, each.replace("_", "-")))
    return typer.Option(*names, help=text, show_default=False)


@app.command(
    epilog="Example: prunegpt train --model_name_or_path gpt2 --do_train --do_eval --output_dir baseline "
    "--dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 --num_train_epochs 10",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    model_name_or_path: Annotated[str, _option("model_name_or_path", "Hub id, folder, .gguf file or builtin:NAME.")],
    output_dir: Annotated[Path, _option("output_dir", "Folder for the trained model and its results.")],
    do_train: Annotated[bool, _option("do_train", "Train.")] = False,
    do_eval: Annotated[bool, _option("do_eval", "Evaluate perplexity on the validation set.")] = False,
    evaluation_strategy: Annotated[
        str, _option("evaluation_strategy", "When to evaluate during training: no, steps or epoch.", "eval_strategy")
    ] = "no",
    eval_steps: Annotated[int | None, _option("eval_steps", "Steps between evaluations.")] = None,
    overwrite_output_dir: Annotated[bool, _option("overwrite_output_dir", "Replace what is in output_dir.")] = False,
    per_device_train_batch_size: Annotated[
        int | None, _option("per_device_train_batch_size", "Training batch size per device (default: 8).")
    ] = None,
    per_device_eval_batch_size: Annotated[
        int | None, _option("per_device_eval_batch_size", "Evaluation batch size per device (default: by memory).")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None, _option("gradient_accumulation_steps", "Gradient accumulation steps (default: 1).")
    ] = None,
    cache_dir: Annotated[Path | None, _option("cache_dir", "Cache directory for hub models and datasets.")] = None,
    save_strategy: Annotated[
        str | None,
        _option(
            "save_strategy",
            "When to save checkpoints in output_dir: no, steps or epoch (default: steps with --save_steps, else no).",
        ),
    ] = None,
    save_steps: Annotated[int | None, _option("save_steps", "Steps between checkpoints.")] = None,
    seed: Annotated[int, _option("seed", "Random seed.")] = 42,
    recipe: Annotated[str | None, _option("recipe", "Recipe for pruning and distillation.")] = None,
    distill_teacher: Annotated[str | None, _option("distill_teacher", "Teacher model, if the recipe distils.")] = None,
    dataset_name: Annotated[str | None, _option("dataset_name", "Dataset on the hub, or builtin:text.")] = None,
    dataset_config_name: Annotated[str | None, _option("dataset_config_name", "Dataset configuration.")] = None,
    train_file: Annotated[Path | None, _option("train_file", "Local training file.")] = None,
    validation_file: Annotated[Path | None, _option("validation_file", "Local validation file.")] = None,
    block_size: Annotated[
        int | None, _option("block_size", "Sequence length (default: 1024, or the model's maximum if smaller).")
    ] = None,
    num_train_epochs: Annotated[
        float | None, _option("num_train_epochs", "Training epochs (default: the recipe's, or 3).")
    ] = None,
    max_steps: Annotated[int | None, _option("max_steps", "Optimizer steps; overrides num_train_epochs.")] = None,
    learning_rate: Annotated[
        float | None, _option("learning_rate", "Peak learning rate (default: the recipe's, or 5e-5).")
    ] = None,
    overrides: SetOption = None,
    root: Root = ROOT,
) -> None:
    """Fine-tune, prune and distil with run_clm.py's flags.

    They are those of the causal language modelling example of transformers. Those that are not listed, such as
    --weight_decay and --warmup_steps, are taken too, or refused with the reason; --set sets any other field.

    Flags override the recipe, and the recipe overrides the defaults. The run is an ordinary trial: it
    is stored, resumed and shown as the trial of a sweep named after output_dir.
    """
    from prunegpt.cli.example_flags import example_flags
    from prunegpt.cli.progress import follow
    from prunegpt.errors import PruneGPTError
    from prunegpt.launch.local import LocalLauncher
    from prunegpt.planning.resolve import plan_data
    from prunegpt.spec.expand import slug
    from prunegpt.store import Store
    from prunegpt.sweep.coordinator import run_sweep
    from prunegpt.sweep.interrupt import Interrupt
    from prunegpt.sweep.queue import turn

    more = example_flags(context.args, [name for name in context.params if name != "overrides"])
    do_eval = do_eval or evaluation_strategy != "no"  # as transformers has it
    if not do_train:
        goes_with("--do_train", recipe=recipe, distill_teacher=distill_teacher)
    if evaluation_strategy == "no":
        goes_with("--evaluation_strategy steps", eval_steps=eval_steps)
    if not (do_train or do_eval):
        raise PruneGPTError("train needs --do_train, --do_eval or both. Add one.")
    if output_dir.exists() and any(output_dir.iterdir()) and not overwrite_output_dir:
        raise PruneGPTError(
            f"output_dir must be new or empty; {output_dir} is not. Choose another or pass --overwrite_output_dir."
        )
    if cache_dir:
        os.environ["HF_HUB_CACHE"] = str((cache_dir / "hub").absolute())
        os.environ["HF_DATASETS_CACHE"] = str((cache_dir / "datasets").absolute())
    save_strategy = save_strategy or ("no" if save_steps is None else "steps")
    flags = {
        "per_device_train_batch_size": per_device_train_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "num_train_epochs": num_train_epochs,
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "eval_strategy": evaluation_strategy,
        "eval_steps": eval_steps,
        "save_strategy": save_strategy,
        "save_steps": save_steps,
    }
    arguments = {**more.train, **{name: value for name, value in flags.items() if value is not None}}
    stage: dict[str, Any] = {"train": arguments, "keep_checkpoints": save_strategy != "no"}
    if recipe:
        stage["recipe"] = recipe
    kind = "finetune"
    if distill_teacher:
        kind, stage["teacher"] = "distill", {"model": distill_teacher}
    name = slug(output_dir.absolute().name)
    spec: dict[str, Any] = {
        "name": name,
        "base": {
            "model": model_name_or_path,
            "data": _data(dataset_name, dataset_config_name, train_file, validation_file, block_size),
            "evaluate": {"batch_size": per_device_eval_batch_size or "auto", "skip": not do_eval},
            "seeds": [seed],
        },
        "trials": [{"name": "train", "stages": [{kind: stage}] if do_train else []}],
    }
    more.into(spec["base"])
    plan = plan_data(spec, source="the command line", overrides=overrides or [], root=root, strict=True)
    interrupt = Interrupt()
    with follow(plan) as on_event, turn(root, name, interrupt=interrupt, on_wait=on_event) as came:
        if not came:
            say(f"{name}: left the queue before its turn. Run the same command again.")
            raise typer.Exit(1)
        with Store.open(root) as store:
            launcher = LocalLauncher(root)
            outcome = run_sweep(plan, root, store, launcher, on_event=on_event, interrupt=interrupt, held=True)
            result = store.result(f"{name}/train")
    if outcome.failed or outcome.interrupted:
        say(f"{name}/train: {result.state}. {result.error}")
        say(f"Log: {result.folder}/log.txt. Run the same command again to resume from the last checkpoint.")
        raise typer.Exit(1)
    _export(result, output_dir, root, do_train=do_train)
    if result.evaluation:
        print(f"perplexity {result.evaluation.perplexity:.4f} ({result.evaluation.protocol})")
    say(f"Results: {output_dir}; show again with: {root.command('trial', 'show', f'{name}/train')}")


def _data(
    dataset: str | None, config: str | None, train_file: Path | None, validation_file: Path | None, block: int | None
) -> dict[str, Any]:
    from prunegpt.errors import PruneGPTError

    if dataset and (train_file or validation_file):
        raise PruneGPTError("--dataset_name and --train_file/--validation_file are mutually exclusive. Remove one.")
    size = {} if block is None else {"block_size": block}
    if not dataset:
        goes_with("--dataset_name", dataset_config_name=config)
    if dataset:
        return {"path": dataset, **size, **({"name": config} if config else {})}
    files = {"train": train_file, "validation": validation_file}
    named = {split: str(file.absolute()) for split, file in files.items() if file}
    if not named:
        raise PruneGPTError("train needs a dataset: --dataset_name, or --train_file and --validation_file.")
    return {"files": named, **size}


def _export(result: "TrialResult", output_dir: Path, root: Root, *, do_train: bool) -> None:
    """Copies the published model to where the command line wants it, with its figures beside it."""
    from prunegpt.planning.sources import MASKS
    from prunegpt.root import write_json

    output_dir.mkdir(parents=True, exist_ok=True)
    stage = result.stages[-1]
    folder = root.stage(stage.key)
    if do_train:
        for file in (folder / "model").iterdir():
            shutil.copy2(file, output_dir / file.name)
        if (folder / MASKS).exists():
            shutil.copy2(folder / MASKS, output_dir)
        for checkpoint in folder.glob("checkpoints/checkpoint-*"):
            shutil.copytree(checkpoint, output_dir / checkpoint.name, dirs_exist_ok=True)
    figures = stage.model_dump(mode="json", include={"train_tokens", "steps", "seconds", "sparsity", "evaluation"})
    write_json(output_dir / "all_results.json", figures)
