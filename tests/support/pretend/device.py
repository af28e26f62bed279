"""A pretend CUDA device: tensors that say they lie on cuda:0 and hold processor data.

Real code runs on it with real numbers: autograd, autocast, optimizers, the branches for a GPU. Operands of both devices
raise as they do on a GPU; what makes the host wait for the device is counted by the function that asked for it; and
bytes on the device are counted, now and at their peak. There are no kernels, no streams and no speed, and what an
operation takes while it runs is not counted.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from transformers import PreTrainedModel

import prunegpt

DEVICE = torch.device("cuda", 0)
PACKAGE = str(Path(prunegpt.__file__).parent) + "/"
_LIBRARIES = ("transformers/", "accelerate/", "torch/optim/", "torch/nn/utils/", "torch/amp/")

# Operations that hand the host a number or a shape that only the device knows.
_WAITING = {
    "_local_scalar_dense",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "linalg_cholesky",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
_ON_HOST = {"_local_scalar_dense", "equal", "is_nonzero"}  # what they give is no tensor of the device
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Counts:
    """What was done on the device since it was last reset.

    Attributes:
        waits: "FILE:FUNCTION OPERATION" -> how often the host waited for the device there.
        now: bytes on the device.
        peak: the most bytes on it at a time.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.now = self.peak = 0
        self._held: set[int] = set()

    def reset(self) -> None:
        self.waits.clear()
        self.peak = self.now

    def hold(self, real: Tensor) -> None:
        """Counts the storage of a tensor until it is freed."""
        storage = real.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


COUNTS = Counts()
doubles = [True]  # whether the device has float64; Metal has not


def asked_by() -> str:
    """FILE:FUNCTION of the package, or of a library where no function of the package called it."""
    frame, library = sys._getframe(1), "?"
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            return f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_qualname}"
        if library == "?" and any(f"/{part}" in code.co_filename for part in _LIBRARIES):
            library = f"{code.co_filename.rpartition('site-packages/')[2]}:{code.co_qualname}"
        frame = frame.f_back
    return library


def calls_library() -> str:
    """The library's FILE:FUNCTION through which the package waited; empty where it did so itself."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        name = frame.f_code.co_filename
        if any(f"/{part}" in name for part in _LIBRARIES):
            return f"{name.rpartition('site-packages/')[2]}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return ""


def _waited(operation: str) -> None:
    library = calls_library()
    COUNTS.waits[f"{library or asked_by()} {operation}"] += 1


class Pretended(Tensor):
    """A tensor on the pretend device, around the one that holds its numbers."""

    _real: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: Tensor, requires_grad: bool = False) -> "Pretended":
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made._real = real
        COUNTS.hold(real)
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self._real!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pretended":
        copy = Pretended(self._real.clone(), self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._real.__reduce_ex__(protocol)  # a file holds numbers; who loads it moves them

    def data_ptr(self) -> int:
        return self._real.data_ptr()

    def untyped_storage(self) -> Any:
        return self._real.untyped_storage()

    def is_pinned(self, *_: Any) -> bool:
        return False

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        _waited("tolist")
        return self._real.tolist()


class Pretending(TorchDispatchMode):
    """Makes tensors for the device that are asked for by its name, while it is entered."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device that it would be on."""
    name = function._schema.name.partition("::")[2]
    operands = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    ours = [value for value in operands if isinstance(value, Pretended)]
    device = kwargs.get("device")
    wanted = None if device is None else torch.device(device).type
    if not ours and wanted != "cuda":
        return function(*args, **kwargs)
    if ours:
        _check_devices(function, name, args, operands)
        if name in _WAITING or (name in _INDEXING and _by_truth(args)):
            _waited(name)
    real_args, real_kwargs = tree_map(
        lambda value: value._real if isinstance(value, Pretended) else value, (args, kwargs)
    )
    if wanted in ("cuda", "cpu"):
        real_kwargs["device"] = torch.device("cpu")
    if (name == "_to_copy" and ours and wanted == "cpu") or (name == "copy_" and _leaves(args)):
        _waited("to the host")
    found = function(*real_args, **real_kwargs)
    if name in _ON_HOST or (name == "copy_" and not isinstance(args[0], Pretended)):
        return args[0] if name == "copy_" else found
    if not doubles[0] and any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in tree_iter(found)):
        raise TypeError(f"the device has no float64, which {asked_by()} asks for")
    if wanted == "cpu":
        return found.clone() if found is real_args[0] else found
    known = {id(one._real): one for one in ours}

    def ours_again(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Pretended) or wanted == "meta":
            return value
        return known[id(value)] if id(value) in known else Pretended(value)

    return tree_map(ours_again, found)


def _by_truth(args: Any) -> bool:
    """Whether an index is bool: how many elements it picks is known to the device only."""
    return any(isinstance(one, Pretended) and one.dtype in (torch.bool, torch.uint8) for one in args[1] or ())


def _leaves(args: Any) -> bool:
    return isinstance(args[1], Pretended) and not isinstance(args[0], Pretended)


def _check_devices(function: Any, name: str, args: Any, operands: list[Tensor]) -> None:
    """Raises what torch raises where operands lie on two devices; numbers and indices may come from the host."""
    if name in ("copy_", "_to_copy"):
        return
    strangers = [one for one in operands if not isinstance(one, Pretended)]
    if name in _INDEXING:
        if not isinstance(args[0], Pretended):
            raise RuntimeError(f"indices should be on the host, as the indexed tensor is: {name} in {asked_by()}")
        return
    if any(one.dim() for one in strangers):
        shapes = [tuple(one.shape) for one in strangers if one.dim()]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cpu and cuda:0 in {function} of {asked_by()}: "
            f"{shapes} are on the host"
        )
    first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
    if strangers and name.endswith("_") and not isinstance(first, Pretended):
        raise RuntimeError(f"a number of the host cannot be changed by one of the device: {function} in {asked_by()}")


_attention = torch.nn.functional.scaled_dot_product_attention


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What a GPU's kernel computes, which keeps no attention map; the host's own where that kernel would not do."""
    if not isinstance(query, Pretended) or attn_mask is not None or dropout_p:
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (one.to(torch.get_autocast_dtype("cuda")) for one in (query, key, value))
    found: Tensor = _Fused.apply(query, key, value, is_causal, scale)  # type: ignore[no-untyped-call]
    return found


class _Fused(torch.autograd.Function):
    """Attention that several heads share keys and values in; of what it keeps, these are there once."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> Tensor:
        ctx.groups = query.shape[1] // key.shape[1]
        wide = (one.repeat_interleave(ctx.groups, 1) if ctx.groups > 1 else one for one in (key, value))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        found, sums = kernel(query, *wide, 0.0, causal, scale=scale)
        ctx.save_for_backward(query, key, value, found, sums)
        ctx.given = causal, scale
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, found, sums = ctx.saved_tensors
        causal, scale = ctx.given
        wide = [one.repeat_interleave(ctx.groups, 1) for one in (key, value)]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        by_query, *others = kernel(gradient, query, *wide, found, sums, 0.0, causal, scale=scale)
        by_key, by_value = (one.unflatten(1, (-1, ctx.groups)).sum(2) for one in others)
        return by_query, by_key, by_value, None, None


@contextmanager
def pretending() -> Iterator[Counts]:
    """The device is there while the context lasts; what it did is counted from its beginning."""
    with Pretending():
        COUNTS.reset()
        yield COUNTS


def install(gigabytes: float = 24.0) -> None:
    """Lets torch say that it has one CUDA device of this memory. It stays so to the end of the process."""
    total = int(gigabytes * 2**30)
    torch._C._set_only_lift_cpu_tensors(True)
    state = torch.zeros(16, dtype=torch.uint8)
    card = SimpleNamespace(
        name="Pretended", total_memory=total, major=9, minor=0, uuid="0", multi_processor_count=1, gcnArchName=""
    )
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "_initialized": True,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda *_: (max(0, total - COUNTS.now), total),
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "synchronize": lambda *_: None,
        "device": lambda *_: nullcontext(),
        "get_device_name": lambda *_: card.name,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: card,
        "memory_allocated": lambda *_: COUNTS.now,
        "memory_reserved": lambda *_: COUNTS.now,
        "max_memory_allocated": lambda *_: COUNTS.peak,
        "reset_peak_memory_stats": lambda *_: None,
        "get_rng_state": lambda *_: state,
        "get_rng_state_all": lambda: [state],
        "set_rng_state": lambda *_, **__: None,
        "set_rng_state_all": lambda *_, **__: None,
        "manual_seed": lambda *_: None,
        "manual_seed_all": lambda *_: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.random.get_rng_state = answers["get_rng_state"]
    torch.cuda.random.set_rng_state = answers["set_rng_state"]
    torch.backends.cuda.is_built = lambda: True
    Tensor.pin_memory = lambda self, *_, **__: self.clone()  # type: ignore[method-assign]
    torch.nn.functional.scaled_dot_product_attention = _fused_attention
    torch.__future__.set_swap_module_params_on_conversion(
        True
    )  # data cannot change its class; a parameter stays itself
    _keep_modules_that_are_there()


def _keep_modules_that_are_there() -> None:
    """A module that is moved to where it is keeps its parameters, as on a GPU; tied ones are tied again."""
    moved, moved_model = nn.Module.to, PreTrainedModel.to

    def settled(module: nn.Module, args: Any, kwargs: Any) -> bool:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        tensors = [*module.parameters(), *module.buffers()]
        there = device is None or all(one.device.type == device.type for one in tensors)
        return there and all(dtype in (None, one.dtype) for one in tensors if one.is_floating_point())

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return self if settled(self, args, kwargs) else moved(self, *args, **kwargs)

    def to_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        if settled(self, args, kwargs):
            return self
        model = moved_model(self, *args, **kwargs)
        self.tie_weights()
        return model

    nn.Module.to = to  # type: ignore[method-assign]
    PreTrainedModel.to = to_model
