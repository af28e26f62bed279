"""Where to compute, and in which precision: by name, or the best there is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prunegpt.errors import ModelError, unknown

DEVICES = ("auto", "cuda", "mps", "xpu", "cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SINGLE = {"mps"}  # types of devices that have no float64
_ASSIGNED = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
# What holds a precision of float32 products; setting that of the first sets the others too.
_PRODUCTS: tuple[Any, ...] = (torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn)
PRODUCTS = tuple(owner for owner in _PRODUCTS if hasattr(owner, "fp32_precision"))  # torch 2.9


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; for `auto` the accelerator that torch finds, or else the CPU.

    Args:
        name: auto, cuda (or cuda:INDEX; ROCm answers to this name too), mps, xpu or cpu.

    Raises:
        ModelError: no such name, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if _has_mps() else "xpu" if torch.xpu.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in DEVICES[1:] or (index and not (kind == "cuda" and index.isdigit())):
        raise ModelError(unknown("device", name, DEVICES))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(_absent(name, "torch sees no CUDA device"))
    if index and int(index) >= torch.cuda.device_count():
        raise ModelError(_absent(name, f"torch sees {torch.cuda.device_count()} CUDA devices"))
    if kind == "mps" and not _has_mps():
        raise ModelError(_absent(name, "torch sees no Metal device"))
    if kind == "xpu" and not torch.xpu.is_available():
        raise ModelError(_absent(name, "torch sees no Intel GPU"))
    return torch.device(name)


def pick_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The precision of that name; for `auto` bfloat16 on a GPU that has it natively, float32 elsewhere.

    Args:
        name: auto, float32, bfloat16 or float16.
        device: where the model will be; needed for `auto` only (default: cpu).

    Raises:
        ModelError: no such name.
    """
    if name == "auto":
        return torch.bfloat16 if device is not None and has_native_bfloat16(device) else torch.float32
    if name not in PRECISIONS:
        raise ModelError(unknown("precision", name, ("auto", *PRECISIONS)))
    return PRECISIONS[name]


def memory_of(device: torch.device) -> int:
    """Bytes of an accelerator's memory; 0 of the CPU, and of Metal, which has the host's."""
    if device.type not in ("cuda", "xpu"):
        return 0
    return int(getattr(torch, device.type).get_device_properties(device).total_memory)


def free_memory(device: torch.device) -> int | None:
    """Bytes of an accelerator's memory that nobody holds; None of the CPU, and of Metal, which has the host's.

    What this process has freed and keeps for itself is free.
    """
    if device.type not in ("cuda", "xpu"):
        return None
    part = getattr(torch, device.type)
    return int(part.mem_get_info(device)[0] + part.memory_reserved(device) - part.memory_allocated(device))


def overlooked(device: torch.device) -> str:
    """What to say where a trial was given GPUs and runs on the CPU; empty where it is as it should be."""
    given = [(name, os.environ[name]) for name in _ASSIGNED if os.environ.get(name, "-1") not in ("", "-1")]
    if device.type != "cpu" or not given:
        return ""
    name, value = given[0]
    return (
        f"runs on the CPU although {name} is {value}: torch {torch.__version__} sees no GPU. Install a build of torch "
        "for the GPU and its driver, or set device: cpu."
    )


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products are computed in float32 while the context lasts, where training was allowed TF32.

    Sums over calibration data and what solvers make of them decide masks: eleven bits of a product do not do.
    """
    before = [owner.fp32_precision for owner in PRODUCTS]
    try:
        if set(before) - {"none", "ieee"}:
            for owner in PRODUCTS:
                owner.fp32_precision = "ieee"
        yield
    finally:
        for owner, precision in zip(PRODUCTS, before, strict=True):
            if owner.fp32_precision != precision:
                owner.fp32_precision = precision


def in_double(tensor: Tensor) -> Tensor:
    """The tensor in float64: where it is, or on the CPU where its device has none."""
    return tensor.cpu().double() if tensor.device.type in SINGLE else tensor.double()


def sums_in(device: torch.device) -> torch.dtype:
    """The type that sums over many tokens are kept in on a device."""
    return torch.float32 if device.type in SINGLE else torch.float64


def _has_mps() -> bool:
    return bool(torch.backends.mps.is_available())


def has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "xpu":
        return bool(torch.xpu.is_bf16_supported())
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _absent(name: str, why: str) -> str:
    return f"device {name!r} is not available: {why}. Use device auto, or cpu."
