"""Where to compute, and in which precision: by name, or the best there is."""

import torch

from prunegpt.errors import ModelError, unknown

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; for `auto` the first of cuda, mps and cpu that this machine has.

    Args:
        name: auto, cuda (or cuda:INDEX), mps or cpu.

    Raises:
        ModelError: no such name, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in DEVICES[1:] or (index and not (kind == "cuda" and index.isdigit())):
        raise ModelError(unknown("device", name, DEVICES))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(_absent(name, "torch sees no CUDA device"))
    if index and int(index) >= torch.cuda.device_count():
        raise ModelError(_absent(name, f"torch sees {torch.cuda.device_count()} CUDA devices"))
    if kind == "mps" and not _has_mps():
        raise ModelError(_absent(name, "torch sees no Metal device"))
    return torch.device(name)


def pick_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The precision of that name; for `auto` bfloat16 on a CUDA device that has it natively, float32 elsewhere.

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


def _has_mps() -> bool:
    return bool(torch.backends.mps.is_available())


def has_native_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _absent(name: str, why: str) -> str:
    return f"device {name!r} is not available: {why}. Use device auto, or cpu."
