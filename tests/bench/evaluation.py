"""Evaluation of GPT-2 small's shape: tokens per second, beside the causal-LM example's evaluation.

The example calls Trainer.evaluate with the metric of accuracy, in batches of 8; how it fares without that metric is
told too, and how long the model's products alone take, which neither side can do without. Both sides must come to the
same sum of nats; the Trainer divides it by all labels, of which the first of a block predicts nothing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, default_data_collator

from prunegpt.lm.perplexity import evaluate
from prunegpt.lm.windows import Windows
from tests.bench.harness import Settings, rounds
from tests.bench.models import example_arguments, example_dataset, gpt2, random_blocks
from tests.bench.rows import Row

BATCH = 8  # the example's default


def measure(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(settings.threads)
    length, count = settings.pick(512, 32), BATCH
    model = gpt2(settings, positions=length).eval()
    tokens = random_blocks(model, count, length)
    found: dict[str, float] = {}
    with_metric, without = (_trainer(settings, model, tokens, metric=metric) for metric in (True, False))

    def ours() -> None:
        found["ours"] = evaluate(model, _windows(tokens), device=torch.device(settings.device))[0].loss

    def example() -> None:
        found["example"] = with_metric.evaluate()["eval_loss"]

    @torch.no_grad()
    def products() -> None:
        hidden = model.transformer(torch.from_numpy(tokens).long().to(settings.device)).last_hidden_state
        for rows in hidden.flatten(0, 1).split(1024):  # [1024, width]: more logits at once would be slower
            rows @ model.lm_head.weight.T

    times = rounds(
        {
            "ours": ours,
            "example": example,
            "example without accuracy": without.evaluate,
            "products alone": products,
        },
        count=settings.pick(3, 2), clock=settings.clock,
    )  # fmt: skip
    ratio = found["example"] / found["ours"]
    if min(abs(ratio - 1), abs(ratio * length / (length - 1) - 1)) > 1e-3:
        raise AssertionError(f"both must measure the same loss, got {found}.")
    yield Row.of(
        "evaluation",
        f"Evaluation, tokens per second, {count} × {length} tokens",
        "the same example's evaluation",
        times.ratio("example", "ours"),
        wanted=1.3,
        better="higher",
        floor=times.ratio("example", "products alone").median,
        note=(
            "A model of this size spends nearly all of an evaluation in its matrix products, which both sides do; "
            "the floor is the example beside those products alone."
        ),
        figures={
            **times.medians,
            "tokens per second": tokens.size / times.median("ours"),
            "× the example without accuracy": times.ratio("example without accuracy", "ours").median,
        },
    )


def _windows(tokens: np.ndarray[Any, Any]) -> Windows:
    count, length = tokens.shape
    each = np.ones(count, dtype=np.int64)
    return Windows(
        tokens.reshape(-1).astype(np.int64), np.arange(count) * length, each * length, each, each, each, "bench"
    )


def _trainer(settings: Settings, model: Any, tokens: np.ndarray[Any, Any], *, metric: bool) -> Trainer:
    """As the example sets it up: the predicted tokens are taken from the logits, and compared once all are there."""

    def predicted(logits: Any, _: Any) -> torch.Tensor:
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)

    def accuracy(results: Any) -> dict[str, float]:
        guesses, labels = results.predictions[:, :-1], results.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels).mean())}

    given = {"compute_metrics": accuracy, "preprocess_logits_for_metrics": predicted} if metric else {}
    trainer = Trainer(
        model=model,
        args=example_arguments(
            settings, settings.work / "evaluation", 1, per_device_eval_batch_size=BATCH, prediction_loss_only=not metric
        ),
        eval_dataset=example_dataset(tokens),
        data_collator=default_data_collator,
        **given,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
