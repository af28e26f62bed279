"""A teacher's most probable tokens on disk, so that distillation runs no teacher.

Of each position are kept the k most probable tokens, their log-probabilities in float16, and for each temperature the
mass of all the others: 4 k bytes per token (6 k where the vocabulary exceeds 65,536) and 4 for each temperature. For
GPT-2 and k = 64 that is 0.27 MB a block of 1,024, against 206 MB of logits.

A temperature above 1 moves mass to the tokens that are not kept, so what a cache loses has to be checked
(:class:`Truncation`): of SmolLM2-135M on WikiText-2, k = 64 leaves out 18% at temperature 1, but 80% at 2.

    FOLDER/cache.json           keys, shapes, and what the truncation loses
    FOLDER/indices.npy          [blocks, length, k] uint16 or uint32
    FOLDER/log_probs.npy        [blocks, length, k] float16, at temperature 1
    FOLDER/log_rest.npy         [temperatures, blocks, length] float32: log Σ p^(1/T) over the tokens not kept
    FOLDER/fingerprints.npy     [blocks] uint32: CRC-32 of each block's tokens
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunegpt.distill.targets import TopKTargets
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import DistillationError, listed
from prunegpt.lm.device import sums_in
from prunegpt.root import publishing, read_json, seal, whole, write_json

FORMAT = 2
ARRAYS = ("indices", "log_probs", "log_rest", "fingerprints")
CHUNK = 128  # positions whose logits exist at a time
_TOKENS = 16384  # that a teacher sees at a time on an accelerator
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Truncation:
    """What keeping k tokens loses at one temperature, as means over all positions.

    Attributes:
        rest_mass: the probability of the tokens that were not kept.
        tail_divergence: KL, in nats, of the teacher from itself with the rest spread evenly over the tokens not kept:
            the part of the full divergence (before T²) that the cache cannot see of a student whose tail is flat.
            At most rest_mass · ln(vocab - k).
    """

    temperature: float
    rest_mass: float
    tail_divergence: float


@dataclass(frozen=True)
class Meta:
    """What cache.json holds."""

    teacher_key: str
    data_key: str
    k: int
    vocabulary: int
    blocks: int
    length: int
    truncation: tuple[Truncation, ...]
    format: int = FORMAT

    @property
    def temperatures(self) -> tuple[float, ...]:
        return tuple(each.temperature for each in self.truncation)


class TopKCache:
    """An opened cache; its arrays are memory-mapped."""

    def __init__(self, folder: Path, meta: Meta, arrays: dict[str, Array]) -> None:
        self.folder = folder
        self.meta = meta
        self._arrays = arrays

    @classmethod
    def open(cls, folder: Path, *, teacher_key: str | None = None, data_key: str | None = None) -> "TopKCache":
        """Opens a finished cache.

        Raises:
            DistillationError: there is none, it is damaged, or it belongs to another teacher or other data.
        """
        path = folder / "cache.json"
        if not path.exists():
            raise DistillationError(f"there is no cache of teacher logits at {folder}. Build it with build_cache.")
        try:
            stored = read_json(path)
            truncation = tuple(Truncation(**each) for each in stored.pop("truncation"))
            meta = Meta(**stored, truncation=truncation)
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
            raise DistillationError(
                f"the cache of teacher logits at {folder} is damaged ({error}). Remove the folder; it is rebuilt."
            ) from error
        if meta.format != FORMAT:
            raise DistillationError(
                f"the cache of teacher logits at {folder} has format {meta.format}; this version reads {FORMAT}. "
                "Remove the folder; it is rebuilt."
            )
        expected = _shapes(meta.blocks, meta.length, meta.k, len(meta.temperatures))
        for name, array in arrays.items():
            if array.shape != expected[name]:
                raise DistillationError(
                    f"the cache of teacher logits at {folder} is damaged: {name} must be {expected[name]}, got "
                    f"{array.shape}. Remove the folder; it is rebuilt."
                )
        for what, asked, found in (("teacher", teacher_key, meta.teacher_key), ("data", data_key, meta.data_key)):
            if asked is not None and asked != found:
                raise DistillationError(
                    f"the cache of teacher logits at {folder} must be of {what} {asked}; it is of {found}. Use another "
                    "folder for each teacher and data."
                )
        return cls(folder, meta, arrays)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def describe(self) -> str:
        """One line for a log: its size, and what it loses."""
        losses = "; ".join(
            f"T = {each.temperature:g}: rest {each.rest_mass:.2e}, tail {each.tail_divergence:.2e} nats"
            for each in self.meta.truncation
        )
        return f"top-{self.meta.k} cache of {self.meta.blocks} blocks, {self.size / 1e6:.1f} MB ({losses})"

    def check_temperature(self, temperature: float) -> int:
        """The place of a temperature in the cache.

        Raises:
            DistillationError: the cache does not have it.
        """
        if temperature not in self.meta.temperatures:
            raise DistillationError(
                f"the cache at {self.folder} holds the rest for the temperatures "
                f"{listed(f'{each:g}' for each in self.meta.temperatures)}; the loss asks for {temperature:g}. "
                "Choose one of them, or build the cache with it."
            )
        return self.meta.temperatures.index(temperature)

    def lookup(
        self, blocks: Tensor | Array, temperature: float, input_ids: Tensor, seen: Array | None = None
    ) -> TopKTargets:
        """The targets of some blocks, flattened, on the device of `input_ids`.

        Args:
            blocks: [batch], the place of each block in the data that the cache was built from, on the host.
            temperature: of the loss.
            input_ids: [batch, length], the blocks' tokens, compared with those the teacher saw.
            seen: the same on the host, where they are there already: no device is waited for.

        Returns:
            indices [batch · length, k] and log-probabilities [batch · length, k + 1].

        Raises:
            DistillationError: a block or temperature that the cache does not have, or other tokens.
        """
        place = self.check_temperature(temperature)
        numbers = np.asarray(blocks)  # [batch]
        self._check_blocks(numbers, input_ids.cpu().numpy() if seen is None else seen)
        indices = torch.from_numpy(self._arrays["indices"][numbers].astype(np.int64))  # [batch, length, k]
        kept = torch.from_numpy(self._arrays["log_probs"][numbers].astype(np.float32))  # [batch, length, k]
        rest = torch.from_numpy(self._arrays["log_rest"][place, numbers])  # [batch, length]
        device = input_ids.device
        tempered = torch.cat([kept.to(device) / temperature, rest.to(device).unsqueeze(-1)], dim=-1)
        return TopKTargets(indices.to(device).flatten(0, 1), tempered.log_softmax(-1).flatten(0, 1))

    def _check_blocks(self, numbers: Array, input_ids: Array) -> None:
        if input_ids.shape[1] != self.meta.length or numbers.shape != (len(input_ids),):
            raise DistillationError(
                f"a batch must have a number for each block, and blocks of {self.meta.length} tokens as the cache has, "
                f"got {list(numbers.shape)} numbers and tokens {list(input_ids.shape)}. Train on the data it was built "
                "from."
            )
        if numbers.min() < 0 or numbers.max() >= self.meta.blocks:
            raise DistillationError(
                f"the cache has the blocks 0 to {self.meta.blocks - 1}, got {numbers.min()} to {numbers.max()}. Train "
                "on the data it was built from."
            )
        for number, tokens in zip(numbers, input_ids, strict=True):
            if _fingerprint(tokens) != self._arrays["fingerprints"][number]:
                raise DistillationError(
                    f"block {number} must hold the tokens that the teacher saw; it holds others. The cache at "
                    f"{self.folder} is of other data, or the blocks are numbered otherwise; build another."
                )


def build_cache(
    folder: Path,
    teacher: Teacher,
    blocks: Array,
    *,
    teacher_key: str,
    data_key: str,
    k: int = 64,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> TopKCache:
    """Runs the teacher over all blocks once; opens the cache instead where `folder` has it already.

    Args:
        folder: of this teacher, data and k alone; appears when it is finished.
        teacher: is moved to `device`.
        blocks: tokens [blocks, length].
        teacher_key: what identifies the teacher.
        data_key: what identifies the blocks and their order.
        k: tokens kept at each position.
        temperatures: at which it can be used; each costs 4 bytes per token.
        batch_size: blocks that the teacher sees at a time; None: one on a CPU, elsewhere about 16,384 tokens.
        progress: is called with the number of sequences done, and their total.

    Raises:
        DistillationError: k or the temperatures are out of range, or `folder` holds another teacher's or data's.
    """
    if whole(folder, "cache.json", deep=True):
        found = TopKCache.open(folder, teacher_key=teacher_key, data_key=data_key)
        if found.meta.k != k:
            raise DistillationError(
                f"the cache of teacher logits at {folder} must have k {k}; it has {found.meta.k}. Use another folder."
            )
        return found
    if not 1 <= k < teacher.vocabulary:
        raise DistillationError(f"k must be 1 to {teacher.vocabulary - 1}, below the vocabulary, got {k}. Try 64.")
    if not temperatures or min(temperatures) <= 0:
        raise DistillationError(f"temperatures must be above 0, one at least, got {list(temperatures)}.")
    temperatures = sorted({float(each) for each in temperatures})
    count, length = blocks.shape
    if batch_size is None:
        batch_size = 1 if torch.device(device).type == "cpu" else max(1, _TOKENS // length)
    lost = torch.zeros(len(temperatures), 2, dtype=torch.float64)
    with publishing(folder) as temporary:
        arrays = _create(temporary, count, length, k, len(temperatures), teacher.vocabulary)
        for start in range(0, count, batch_size):
            tokens = np.asarray(blocks[start : start + batch_size]).astype(np.int64)  # [batch, length]
            states = teacher.run({"input_ids": torch.from_numpy(tokens).to(device)})
            flat = states.last.flatten(0, 1)  # [batch · length, width]
            parts = [
                truncate(teacher.common_head.apply(flat[row : row + CHUNK])[:, : teacher.vocabulary], k, temperatures)
                for row in range(0, len(flat), CHUNK)
            ]
            shape = tokens.shape
            rows = slice(start, start + batch_size)
            arrays["indices"][rows] = torch.cat([part.indices for part in parts]).view(*shape, k).cpu().numpy()
            arrays["log_probs"][rows] = torch.cat([part.log_probs for part in parts]).view(*shape, k).cpu().numpy()
            arrays["log_rest"][:, rows] = torch.cat([part.log_rest for part in parts], 1).view(-1, *shape).cpu().numpy()
            arrays["fingerprints"][rows] = [_fingerprint(row) for row in tokens]
            lost += sum(part.lost.cpu() for part in parts)
            if progress:
                progress(min(start + batch_size, count), count)
        for array in arrays.values():
            array.flush()
        truncation = tuple(
            Truncation(temperature, *(lost[place] / (count * length)).tolist())
            for place, temperature in enumerate(temperatures)
        )
        meta = Meta(teacher_key, data_key, k, teacher.vocabulary, count, length, truncation)
        write_json(temporary / "cache.json", asdict(meta))
        seal(temporary)
    return TopKCache.open(folder, teacher_key=teacher_key, data_key=data_key)


@dataclass(frozen=True)
class TruncatedLogits:
    """k tokens of each position.

    Attributes:
        indices: [tokens, k], most probable first.
        log_probs: of these, at temperature 1, [tokens, k], float16.
        log_rest: log Σ p^(1/T) over the others, [temperatures, tokens].
        lost: sums of rest mass and tail divergence over the tokens, [temperatures, 2].
    """

    indices: Tensor
    log_probs: Tensor
    log_rest: Tensor
    lost: Tensor


def truncate(logits: Tensor, k: int, temperatures: Sequence[float]) -> TruncatedLogits:
    """Cuts logits [tokens, vocab] to their k largest."""
    full = logits.float().log_softmax(-1)  # [tokens, vocab]
    log_probs, indices = full.topk(k, dim=-1)  # [tokens, k] twice
    rest = full.scatter(-1, indices, -torch.inf)  # [tokens, vocab]
    log_rest, lost = [], []
    for temperature in temperatures:
        tail = rest / temperature  # [tokens, vocab]
        mass = tail.logsumexp(-1)  # [tokens]
        log_rest.append(mass)
        share = (mass - (full / temperature).logsumexp(-1)).exp()  # [tokens]: of the rest, at this temperature
        within = tail - mass.unsqueeze(-1)  # [tokens, vocab]
        entropy = -torch.where(within.isfinite(), within.exp() * within, 0.0).sum(-1)  # [tokens]
        flat = math.log(logits.shape[-1] - k)
        lost.append(torch.stack([share.sum(), (share * (flat - entropy)).sum()]).to(sums_in(logits.device)))
    return TruncatedLogits(indices, log_probs.half(), torch.stack(log_rest), torch.stack(lost))


def _create(
    folder: Path, blocks: int, length: int, k: int, temperatures: int, vocabulary: int
) -> dict[str, np.memmap[Any, Any]]:
    kinds = {
        "indices": np.uint16 if vocabulary <= 2**16 else np.uint32,
        "log_probs": np.float16,
        "log_rest": np.float32,
        "fingerprints": np.uint32,
    }
    shapes = _shapes(blocks, length, k, temperatures)
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kinds[name], shape=shapes[name])
        for name in ARRAYS
    }


def _shapes(blocks: int, length: int, k: int, temperatures: int) -> dict[str, tuple[int, ...]]:
    return {
        "indices": (blocks, length, k),
        "log_probs": (blocks, length, k),
        "log_rest": (temperatures, blocks, length),
        "fingerprints": (blocks,),
    }


def _fingerprint(tokens: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens, dtype=np.int64).tobytes())
