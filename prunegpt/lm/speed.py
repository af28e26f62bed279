"""How fast a model generates: prompt and tokens with a KV cache, in turns with a reference, in this process.

The loop is as plain as it can be: the model's own forward, greedy choice, no end at an end-of-text token, no batching
or compiling of ours. What runs a model faster than that is another program, and is measured there.

Runs of the model and of its reference take turns, and every other pair is turned round (reference, model, model,
reference, …), so that a machine that slows down favours neither. The ratio is that of the two runs of a pair; the
noise is the same figure of the reference alone, from runs that follow each other.
"""

import copy
import gc
import inspect
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from scipy.special import bdtr
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from prunegpt.errors import ModelError
from prunegpt.lm.modes import evaluation_mode
from prunegpt.memory import without_collector
from prunegpt.planning.fingerprint import processor, versions
from prunegpt.records import Evaluation, Speed, Timed
from prunegpt.spec.evaluate import SpeedSpec, length_problem, threads_problem

LEVEL = 0.95
FEWEST = 6  # measurements below which no pair of them is an interval of that level
_SEED = 0  # of the tokens of the prompt
_CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")  # what models call what they keep of the tokens
_TIMES = 3  # of a run: seconds to the first token, of all later ones, and of the middle one of these


class Stopwatch(Protocol):
    """Marks moments of the device's work."""

    def mark(self) -> Any:
        """This moment."""

    def between(self, first: Any, second: Any) -> float:
        """Seconds from one moment to another."""


class HostStopwatch:
    """The clock of the host, for a device whose work is done when a call returns, or is waited for."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self._wait = wait

    def mark(self) -> float:
        self._wait()
        return time.perf_counter()

    def between(self, first: float, second: float) -> float:
        return second - first


class CudaStopwatch:
    """Events in the stream of a GPU: nothing waits while tokens are generated."""

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000


def clock_of(device: torch.device) -> Stopwatch:
    """How time is measured on a device."""
    if device.type == "cuda":
        return CudaStopwatch()
    return HostStopwatch(torch.mps.synchronize) if device.type == "mps" else HostStopwatch()


def measure_speed(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    spec: SpeedSpec,
    *,
    key: str = "",
    called: str = "itself",
    dtype: torch.dtype = torch.float32,
    clock: Stopwatch | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Evaluation, dict[str, NDArray[np.float64]]]:
    """Measures a model in turns with a reference.

    Args:
        model: on its device; left as it was.
        reference: on the same device; the model itself measures the noise alone.
        key: evaluation key of the record.
        called: what the reference is called; with all that differs between references, for it is part of the protocol.
        dtype: of weights and arithmetic; a copy is converted.
        clock: default: that of the device.
        progress: gets the runs done, and their total.
        say: gets a line where it has to wait until another process of this user and host has measured.

    Returns:
        The evaluation, and the seconds of every run: `model` and `reference`, float64 [repeats, 3]: to the first token,
        of all later ones, and the median of one of these.

    Raises:
        ModelError: a model cannot generate with a cache, or has too few positions.
    """
    device, done, total = model.device, 0, 2 * spec.repeats + 2
    measured_by = clock or clock_of(device)

    def run(one: PreTrainedModel) -> tuple[float, float, float]:
        nonlocal done
        with _explained(one):
            times = generate(one, prompt, spec.generate, measured_by)
        done += 1
        if progress:
            progress(done, total)
        return times

    for one in (model, reference):
        _check(one, spec)
    gc.collect()  # now, and not in the middle of a run
    with _alone(say), _threads(spec.threads), torch.inference_mode(), without_collector():
        pair = _as(dtype, model, reference)
        with evaluation_mode(pair[0]), evaluation_mode(pair[1]):
            prompt = _prompt(pair, spec).to(device)  # [batch, prompt]
            with _peak(device) as peak:
                run(pair[0])
            memory = _bytes(pair[0]) + peak()
            run(pair[1])
            times = np.empty((2, spec.repeats, _TIMES))
            for repeat in range(spec.repeats):
                for place in (0, 1) if repeat % 2 else (1, 0):
                    times[place, repeat] = run(pair[place])
        protocol = _protocol(spec, device, dtype, called)
    evaluation = Evaluation(
        key=key,
        protocol=protocol,
        perplexity=None,
        loss=None,
        bits_per_byte=None,
        word_perplexity=None,
        tokens=0,
        windows=0,
        seconds=float(times[..., :2].sum()),
        speed=_speed(*times, spec=spec, memory=memory, called=called),
    )
    return evaluation, dict(zip(("model", "reference"), times, strict=True))


def generate(
    model: PreTrainedModel, prompt: torch.Tensor, count: int, clock: Stopwatch, tokens: list[torch.Tensor] | None = None
) -> tuple[float, float, float]:
    """Generates greedily, whatever the tokens are.

    Args:
        prompt: token ids [batch, prompt].
        count: tokens to generate, at least 2.
        tokens: takes the tokens [batch, 1] of every step.

    Returns:
        Seconds to the first token, of all later ones, and the median of one of these.

    Raises:
        ModelError: the model gives no cache.
    """
    parameters = inspect.signature(model.forward).parameters
    first = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    marks = [clock.mark()]
    found = model(input_ids=prompt, use_cache=True, **first)
    token = found.logits[:, -1:].argmax(dim=-1)  # [batch, 1]
    marks.append(clock.mark())
    if tokens is not None:
        tokens.append(token)
    for _ in range(count - 1):
        found = model(input_ids=token, use_cache=True, **_cache(model, found))
        token = found.logits[:, -1:].argmax(dim=-1)  # [batch, 1]
        marks.append(clock.mark())
        if tokens is not None:
            tokens.append(token)
    times = [clock.between(before, after) for before, after in pairwise(marks)]
    return times[0], sum(times[1:]), float(np.median(times[1:]))


def _cache(model: PreTrainedModel, found: Any) -> dict[str, Any]:
    """What a model has kept of the tokens so far, as the argument that takes it.

    Raises:
        ModelError: it keeps nothing.
    """
    takes = inspect.signature(model.forward).parameters
    for name in _CACHES:
        if (kept := getattr(found, name, None)) is not None:
            return {next((taken for taken in _CACHES if taken in takes), name): kept}
    raise ModelError(
        f"a speed is that of generating with a cache; {type(model).__name__} gives none. Measure a model of another "
        "family."
    )


@contextmanager
def _explained(model: PreTrainedModel) -> Iterator[None]:
    """Turns what a model raises that cannot continue from its cache into a ModelError."""
    try:
        yield
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:  # code of any family
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{type(model).__name__} cannot generate token by token with a cache: {reason}") from error


def _check(model: PreTrainedModel, spec: SpeedSpec) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if problem := length_problem(spec, positions, type(model).__name__) or threads_problem(spec):
        raise ModelError(problem)


def _prompt(models: Sequence[PreTrainedModel], spec: SpeedSpec) -> torch.Tensor:
    """Token ids that all models know, the same for equal specs and vocabularies, [batch, prompt]."""
    known = min(model.config.get_text_config().vocab_size for model in models)
    return torch.randint(known, (spec.batch, spec.prompt), generator=torch.Generator().manual_seed(_SEED))


def _as(dtype: torch.dtype, model: PreTrainedModel, reference: PreTrainedModel) -> tuple[Any, Any]:
    """Both in a dtype; copies where they are in another, one where they are the same."""
    made = {
        id(one): in_memory(one) if one.dtype == dtype else copy.deepcopy(one).to(dtype) for one in (model, reference)
    }
    return made[id(model)], made[id(reference)]


def in_memory(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its weights in memory of their own, and not in that of the file they were read from.

    On a CPU, safetensors gives weights as parts of the mapped file. Where its pages are depends on who wrote the file
    and when, so that a copy of a file can be some percent slower than the file.
    """
    if model.device.type != "cpu":
        return model
    moved: dict[int, torch.UntypedStorage] = {}
    with torch.inference_mode(False):
        for one in (*model.parameters(), *model.buffers()):
            storage = one.untyped_storage()
            if storage.data_ptr() not in moved:
                moved[storage.data_ptr()] = storage.clone()
            place = (moved[storage.data_ptr()], one.storage_offset(), one.size(), one.stride())
            one.data = torch.empty(0, dtype=one.dtype).set_(*place)
    return model


def _bytes(model: PreTrainedModel) -> int:
    """Of weights and buffers, shared ones once."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.state_dict().values()}
    return sum(storages.values())


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives, afterwards, the most bytes of tensors that were alive at once of those made while the context lasted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveTensors() as live:
            yield lambda: live.peak


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operators return, until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor):
                self._take(one.untyped_storage(), given)
        self.peak = max(self.peak, self.now)
        return found

    def _take(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self._known or place in given:
            return
        self._known.add(place)
        self.now += size
        weakref.finalize(storage, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


@contextmanager
def _alone(say: Callable[[str], None]) -> Iterator[None]:
    """Holds the right to measure time on this host, among the processes of this user."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"prunegpt-speed-{os.getuid()}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"speed is measured by one process at a time; another one of this host does ({lock.lock_file}): waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _protocol(spec: SpeedSpec, device: torch.device, dtype: torch.dtype, called: str) -> str:
    """All that a speed depends on beside the model: speeds are comparable where it is equal."""
    libraries = (f"{name}-{version}" for name, version in versions().items() if name in ("torch", "transformers"))
    computes = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()}-threads"
    lengths = f"{spec.prompt}+{spec.generate}/batch-{spec.batch}"
    kind = str(dtype).removeprefix("torch.")
    return "/".join(["speed", lengths, kind, device.type, computes, processor(), *libraries, f"against {called}"])


def figures(times: NDArray[np.float64], spec: SpeedSpec) -> dict[str, Timed]:
    """Tokens per second of the prompt (`prefill`) and after the first token (`decode`), and seconds to the first one.

    Args:
        times: seconds of runs, [repeats, 3], see `measure_speed`.
    """
    first, each = times[:, 0], times[:, 2]
    return {
        "prefill": median(spec.batch * spec.prompt / first),
        "decode": median(spec.batch / each),
        "first_token": median(first),
    }


def _speed(
    model: NDArray[np.float64], reference: NDArray[np.float64], *, spec: SpeedSpec, memory: int, called: str
) -> Speed:
    """What runs come to, [repeats, 3] of each."""
    return Speed(
        **figures(model, spec),
        speedup=ratio(model[:, 2], reference[:, 2]),
        speedup_prefill=ratio(model[:, 0], reference[:, 0]),
        memory=memory,
        noise=noise(reference[:, 2]),
        noise_prefill=noise(reference[:, 0]),
        repeats=spec.repeats,
        reference=called,
    )


def median(values: NDArray[np.float64]) -> Timed:
    """The median with its interval by the sign test: two order statistics that hold it with at least 95%.

    Args:
        values: [measurements], at least `FEWEST`, each as likely above the true median as below.
    """
    ordered, count = np.sort(values), len(values)
    within = [place for place in range(count // 2) if 2 * bdtr(place, count, 0.5) <= 1 - LEVEL]
    place = within[-1] if within else 0
    return Timed(value=float(np.median(ordered)), low=float(ordered[place]), high=float(ordered[count - 1 - place]))


def ratio(model: NDArray[np.float64], reference: NDArray[np.float64]) -> Timed:
    """How many times as fast the model is as its reference: the median over pairs.

    Args:
        model: seconds of its runs, [repeats].
        reference: of the run of the reference beside each, [repeats].
    """
    return median(reference / model)


def noise(reference: NDArray[np.float64]) -> float:
    """How far from 1 the ratio of a reference to itself may be: the farther end of its interval, from successive runs.

    Such runs are two turns apart on average, those of a pair one: the machine is at most as noisy as this says.

    Args:
        reference: seconds of its runs, in order, [repeats].
    """
    found = ratio(reference[1:], reference[:-1])
    return max(1 - found.low, found.high - 1)
