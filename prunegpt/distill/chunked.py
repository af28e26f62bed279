"""Cross-entropy and distillation together, a chunk of tokens at a time.

    total = (1 - hardness) CE + hardness KD

CE and KD are sums over the same tokens (those whose label is not -100) divided by the same number. Logits exist for
one chunk only, of the student as of the teacher: beside the model this needs the gradient of the output matrix, which
any training needs, and a few chunks. The gradients are computed together with the loss, while the chunk's logits are at
hand: recomputing them in the backward pass would cost two more products with the output matrix.

With `hardness` 0 and no teacher this is a lean cross-entropy. It sums in another order than `transformers` does; who
needs its loss bit for bit calls the model with labels instead (see `objective.py`, which decides).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prunegpt.distill.head import Head
from prunegpt.distill.losses.base import DistillationLoss
from prunegpt.distill.losses.classes import class_divergence, class_value_and_gradient
from prunegpt.distill.targets import IGNORE, HiddenTargets, Targets, TopKTargets
from prunegpt.errors import DistillationError

# Of one float32 array [chunk, vocab]: rows enough for the products with the output matrix to be worth its reading.
CHUNK_BYTES = {"cpu": 24 * 2**20}
CHUNK_BYTES_ELSEWHERE = 256 * 2**20
CHUNK_ROWS = 64


class ChunkedLosses(NamedTuple):
    """`total` can be differentiated; `ce` and `kd`, in nats per token (KD times T²), carry no gradient."""

    total: Tensor
    ce: Tensor
    kd: Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_losses(
    student_hidden: Tensor,
    student_head: Head,
    labels: Tensor,
    teacher: Targets | None = None,
    *,
    loss: DistillationLoss | None = None,
    hardness: float = 0.0,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    denominator: Tensor | float | None = None,
    vocabulary: int | None = None,
    compact: bool | None = None,
) -> ChunkedLosses:
    """The blend (1 - hardness) CE + hardness KD over the tokens whose label is not -100.

    Under autocast all products run in its dtype, else each model's in its own; softmax and sums run in float32
    always (float64 stays float64). A call is a graph break for torch.compile; compile the body of the model
    (`model.base_model.compile()`), which is all that profits. `backward()` works once.

    Args:
        student_hidden: [tokens, width], what the student's output layer is applied to.
        student_head: its output layer.
        labels: [tokens], already shifted (`targets.shift_labels`).
        teacher: what the student is to match at the same positions. Ignored if `hardness` is 0.
        loss: the divergence.
        hardness: the weight of KD, 0 to 1.
        temperature: divides both logits in KD; above 0.
        chunk_tokens: rows of logits that exist at a time. None takes as many as make 24 MiB in float32 on a CPU and
            256 MiB elsewhere, at least 64.
        denominator: what both sums are divided by: the number of labels in all micro-batches of an optimizer step.
            None: the number of labels that are not -100 here (1 where there are none).
        compact: whether tokens without a label are left out at once, which has the host wait for a device to count
            them; else they are computed and weigh nothing. None: on a CPU only.
        vocabulary: KD uses the tokens below this id only, where one head has more rows for padding.

    Raises:
        DistillationError: `hardness` or `temperature` out of range, no teacher where one is needed, or shapes that
            do not fit.
    """
    _check(student_hidden, student_head, labels, hardness, temperature)
    rows = student_head.rows(student_hidden)
    if hardness == 0:
        teacher = None
    elif teacher is None or loss is None:
        raise DistillationError(
            f"hardness {hardness} needs a teacher and a loss, got no {'teacher' if teacher is None else 'loss'}. Give "
            "both, or set hardness to 0."
        )
    else:
        teacher.check(rows, vocabulary)
        if teacher.tokens != student_hidden.shape[0]:
            raise DistillationError(
                f"student and teacher must cover the same positions; they have {student_hidden.shape[0]} and "
                f"{teacher.tokens} tokens."
            )
    dtype = _product_dtype(student_hidden)
    if isinstance(teacher, HiddenTargets) and torch.is_autocast_enabled(student_hidden.device.type):
        teacher = teacher.cast(dtype)
    labelled, kept = labels != IGNORE, None  # [tokens]
    if labels.device.type == "cpu" if compact is None else compact:
        kept = labelled.nonzero().squeeze(-1)  # [kept]
    count: Tensor | float
    if denominator is not None:
        count = denominator
    else:
        count = labelled.sum().clamp(min=1) if kept is None else max(kept.numel(), 1)
    plan = _Plan(
        scale=student_head.scale,
        softcap=student_head.softcap,
        teacher=teacher,
        loss=loss,
        hardness=hardness,
        temperature=temperature,
        chunk=chunk_tokens or _chunk_rows(rows, student_hidden.device),
        vocabulary=vocabulary or rows,
        dtype=dtype,
        differentiate=torch.is_grad_enabled(),
    )
    inputs = (student_hidden, student_head.weight, student_head.bias, labels, kept, count, plan)
    return ChunkedLosses(*_Chunked.apply(*inputs))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Plan:
    """What stays the same from chunk to chunk."""

    scale: float
    softcap: float | None
    teacher: Targets | None
    loss: DistillationLoss | None
    hardness: float
    temperature: float
    chunk: int
    vocabulary: int
    dtype: torch.dtype
    differentiate: bool


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        labels: Tensor,
        kept: Tensor | None,
        count: Tensor | float,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [plan.differentiate and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            ce, kd, gradients = _run(hidden, weight, bias, labels, kept, plan, wanted)
        ctx.gradients, ctx.count, ctx.kept, ctx.tokens = gradients, count, kept, hidden.shape[0]
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        ce, kd = ce / count, kd / count
        ctx.mark_non_differentiable(ce, kd)
        return (1 - plan.hardness) * ce + plan.hardness * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise DistillationError(
                "the gradients of a chunked loss are handed out once; backward() ran a second time. Compute the loss "
                "again instead of retaining its graph."
            )
        # With no other reference to these arrays, autograd keeps them as .grad instead of copying them.
        (rows, by_weight, by_bias), ctx.gradients = ctx.gradients, None
        factor = grad_total / ctx.count
        by_hidden = None
        if rows is not None:
            by_hidden = rows.mul_(factor).to(ctx.dtypes[0])  # [kept, width]
            if ctx.kept is not None:
                by_kept = by_hidden
                by_hidden = by_kept.new_zeros(ctx.tokens, rows.shape[1])  # [tokens, width]
                by_hidden.index_copy_(0, ctx.kept, by_kept)
        if by_weight is not None:
            by_weight = by_weight.mul_(factor).to(ctx.dtypes[1])  # [vocab, width]
        if by_bias is not None:
            by_bias = by_bias.mul_(factor).to(ctx.dtypes[2])  # [vocab]
        return by_hidden, by_weight, by_bias, None, None, None, None


def _run(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    labels: Tensor,
    kept: Tensor | None,
    plan: _Plan,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Sums of CE and KD over the kept tokens, and the gradients of their blend.

    Where `kept` is None all tokens are, and those without a label weigh nothing.

    Gradients stay sums, in float32, until `backward` scales them: divided by the number of tokens they would underflow
    in float16.
    """
    exact = torch.float64 if plan.dtype == torch.float64 else torch.float32
    ignored = None
    if kept is None:
        ignored = labels == IGNORE  # [tokens]
        hidden, labels = hidden.to(plan.dtype), labels.clamp(min=0)
    else:
        hidden, labels = hidden[kept].to(plan.dtype), labels[kept]  # [kept, width], [kept]
    head = Head(weight, bias, plan.scale, plan.softcap).cast(plan.dtype)
    weight = head.weight  # [vocab, width]
    by_hidden = torch.empty_like(hidden, dtype=exact) if wanted[0] else None  # [kept, width]
    by_weight = torch.empty_like(weight, dtype=exact) if weight is not None and wanted[1] else None  # [vocab, width]
    by_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and wanted[2] else None  # [vocab]
    if by_weight is not None and not len(labels):
        by_weight.zero_()
    ce, kd = (torch.zeros(len(labels), dtype=exact, device=hidden.device) for _ in range(2))  # [kept] twice
    for start in range(0, len(labels), plan.chunk):
        rows = slice(start, start + plan.chunk)
        logits = head.logits(hidden[rows]).to(exact)  # [chunk, vocab]
        target = _target(plan, rows if kept is None else kept[rows], exact)
        ce[rows], kd[rows], slope = _blend(logits, labels[rows], target, plan, differentiate=any(wanted))
        del logits, target
        if ignored is not None:
            for value in (ce[rows], kd[rows]):
                value.masked_fill_(ignored[rows], 0)
        if slope is None:
            continue
        if ignored is not None:
            slope.masked_fill_(ignored[rows].unsqueeze(-1), 0)
        if by_bias is not None:
            by_bias += slope.sum(0)
        slope = slope.to(plan.dtype)  # [chunk, vocab]
        if by_hidden is not None:
            by_hidden[rows] = slope if weight is None else slope @ weight
        if by_weight is not None:
            _add_product(by_weight, slope.t(), hidden[rows], fresh=start == 0)
    return ce.sum(), kd.sum(), (by_hidden, by_weight, by_bias)


def _target(plan: _Plan, rows: Tensor | slice, exact: torch.dtype) -> Tensor | TopKTargets | None:
    """What the tokens `rows` are compared with: logits [chunk, vocabulary], or the cached classes."""
    if isinstance(plan.teacher, HiddenTargets):
        teacher = plan.teacher[rows]
        return teacher.head.apply(teacher.hidden)[:, : plan.vocabulary].to(exact)  # [chunk, vocabulary]
    return plan.teacher[rows] if plan.teacher is not None else None


def _blend(
    logits: Tensor, labels: Tensor, target: Tensor | TopKTargets | None, plan: _Plan, *, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """CE and KD [chunk], and the derivative of their blend by the logits before scale and cap, [chunk, vocab].

    `logits` and those of `target` may be overwritten.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)  # [chunk, vocab]
    column = labels.unsqueeze(-1)  # [chunk, 1]
    ce = -log_probabilities.gather(-1, column).squeeze(-1)  # [chunk]
    kd = torch.zeros_like(ce)
    if not differentiate:
        if target is not None:
            kd = _divergence(logits[:, : plan.vocabulary], target, plan)  # [chunk]
        return ce, kd, None
    slope = log_probabilities.exp_()  # [chunk, vocab]
    slope.scatter_add_(-1, column, torch.full_like(column, -1, dtype=slope.dtype))
    inner = _inner_slope(logits, plan)
    if target is not None:
        kd, by_logits = _divergence_and_slope(logits[:, : plan.vocabulary], target, plan)
        slope.mul_(1 - plan.hardness)[:, : plan.vocabulary].add_(by_logits, alpha=plan.hardness)
    return ce, kd, slope if inner is None else slope.mul_(inner)


def _inner_slope(logits: Tensor, plan: _Plan) -> Tensor | float | None:
    """The derivative of scale and cap at the (capped) logits; None where it is 1."""
    if plan.softcap is not None:
        return (1 - (logits / plan.softcap).square()).mul_(plan.scale)  # [chunk, vocab]
    return plan.scale if plan.scale != 1.0 else None


def _divergence(logits: Tensor, target: Tensor | TopKTargets, plan: _Plan) -> Tensor:
    assert plan.loss is not None
    if isinstance(target, TopKTargets):
        classes = target.indices, target.log_probabilities
        return class_divergence(logits, *classes, loss=plan.loss, temperature=plan.temperature)
    return plan.loss.divergence(logits, target, temperature=plan.temperature)


def _divergence_and_slope(logits: Tensor, target: Tensor | TopKTargets, plan: _Plan) -> tuple[Tensor, Tensor]:
    assert plan.loss is not None
    if isinstance(target, TopKTargets):
        classes = target.indices, target.log_probabilities
        return class_value_and_gradient(logits, *classes, loss=plan.loss, temperature=plan.temperature)
    return plan.loss.value_and_gradient(logits, target, temperature=plan.temperature)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """total += left @ right, or total = left @ right where `fresh`, which spares filling it with zeros first."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=0 if fresh else 1, out=total)
    elif fresh:
        total.copy_(left @ right)
    else:
        total.add_(left @ right)


def _chunk_rows(vocabulary: int, device: torch.device) -> int:
    size = CHUNK_BYTES.get(device.type, CHUNK_BYTES_ELSEWHERE)
    return max(CHUNK_ROWS, size // (4 * vocabulary))


def _product_dtype(hidden: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _check(hidden: Tensor, head: Head, labels: Tensor, hardness: float, temperature: float) -> None:
    if not 0 <= hardness <= 1:
        raise DistillationError(f"hardness is the share of the teacher's term, 0 to 1, got {hardness}.")
    if not temperature > 0:
        raise DistillationError(f"the temperature must be above 0, got {temperature}. 1 leaves the logits alone.")
    width = hidden.shape[-1] if head.weight is None else head.weight.shape[1]
    if hidden.ndim != 2 or labels.shape != hidden.shape[:1] or width != hidden.shape[1]:
        raise DistillationError(
            "hidden states [tokens, width], labels [tokens] and head [vocab, width] must agree, got "
            f"{list(hidden.shape)}, {list(labels.shape)} and [{head.rows(hidden)}, {width}]. Flatten batch and length."
        )
