import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prunegpt.distill import cache as cache_module
from prunegpt.distill.cache import TopKCache, build_cache, truncate
from prunegpt.distill.losses.classes import teacher_classes
from prunegpt.distill.losses.forward_kl import FORWARD_KL
from prunegpt.distill.teachers import Teacher
from prunegpt.errors import DistillationError

BLOCKS = np.random.default_rng(0).integers(0, 128, (5, 12)).astype(np.uint16)
KEYS = {"teacher_key": "t", "data_key": "d"}
# The spread of a random tiny model's logits is 0.2: times 20 it resembles a trained one.
SHARPER = 20.0


@pytest.fixture
def teacher(tiny_gpt2: Any) -> Teacher:
    with torch.no_grad():
        tiny_gpt2.transformer.ln_f.weight.mul_(SHARPER)
    return Teacher(tiny_gpt2)


def tokens(*blocks: int) -> Tensor:
    return torch.from_numpy(BLOCKS[list(blocks)].astype(np.int64))


def logits(teacher: Teacher, *blocks: int) -> Tensor:
    with torch.no_grad():
        return teacher.model(tokens(*blocks)).logits.flatten(0, 1)  # [blocks · length, vocab]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_comes_back_is_what_the_teacher_said(
    tmp_path: Path, teacher: Teacher, batch_size: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 7)
    done: list[tuple[int, int]] = []
    cache = build_cache(
        tmp_path / "c", teacher, BLOCKS, **KEYS, k=6, batch_size=batch_size, progress=lambda *at: done.append(at)
    )
    assert done[-1] == (5, 5)
    found = cache.lookup(torch.tensor([4, 1]), temperature, tokens(4, 1))
    indices, classes = teacher_classes(logits(teacher, 4, 1), 6, temperature)
    assert torch.equal(found.indices, indices)
    assert found.indices.dtype == torch.int64
    # float16 keeps 11 bits of log-probabilities that reach -16
    torch.testing.assert_close(found.log_probabilities, classes, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.log_probabilities.exp().sum(-1), torch.ones(24))


def test_what_the_truncation_loses_is_reported(tmp_path: Path, teacher: Teacher) -> None:
    """The tail divergence is the full KL from the teacher to its own truncation, whose k + 1 classes agree."""
    cache = build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=6, temperatures=[2.0, 1.0])
    full = logits(teacher, *range(5)).double()
    for loss in cache.meta.truncation:
        indices, classes = teacher_classes(full, 6, loss.temperature)
        rest = classes[:, -1:]  # [tokens, 1]
        flattened = (rest - np.log(128 - 6)).expand_as(full).scatter(-1, indices, classes[:, :-1])
        expected = FORWARD_KL.divergence(flattened, full / loss.temperature, temperature=1.0)
        assert loss.rest_mass == pytest.approx(rest.exp().mean().item(), rel=1e-5)
        assert loss.tail_divergence == pytest.approx(expected.mean().item(), rel=1e-4)
        assert 0 < loss.tail_divergence <= loss.rest_mass * np.log(128 - 6)
    assert cache.meta.temperatures == (1.0, 2.0)
    assert cache.meta.truncation[0].rest_mass < cache.meta.truncation[1].rest_mass
    assert cache.size == sum(path.stat().st_size for path in (tmp_path / "c").iterdir())
    assert f"{cache.size / 1e6:.1f} MB" in cache.describe()


def test_folder_and_types(tmp_path: Path, teacher: Teacher) -> None:
    build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    names = ["cache.json", "files.json", "fingerprints.npy", "indices.npy", "log_probs.npy", "log_rest.npy"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == names
    assert np.load(tmp_path / "c" / "indices.npy").dtype == np.uint16
    assert np.load(tmp_path / "c" / "log_probs.npy").dtype == np.float16
    arrays = cache_module._create(tmp_path, 1, 1, 1, 1, 2**16 + 1)
    assert arrays["indices"].dtype == np.uint32


def test_large_indices_survive_uint16(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.zeros(1, 2**16).index_fill(1, torch.tensor([2**16 - 1]), 5.0)
    kept = truncate(scores, 1, [1.0]).indices.numpy().astype(np.uint16).astype(np.int64)
    assert kept.item() == 2**16 - 1


def test_it_is_built_once(tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=6)
    monkeypatch.setattr(Teacher, "run", lambda *_, **__: pytest.fail("the teacher ran"))
    assert build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=6).meta.k == 6
    with pytest.raises(DistillationError, match="must be of data other; it is of d"):
        build_cache(tmp_path / "c", teacher, BLOCKS, teacher_key="t", data_key="other", k=6)
    with pytest.raises(DistillationError, match="must be of teacher u; it is of t"):
        TopKCache.open(tmp_path / "c", teacher_key="u")
    with pytest.raises(DistillationError, match="must have k 7; it has 6"):
        build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=7)


def test_a_build_that_breaks_off_leaves_nothing(tmp_path: Path, teacher: Teacher) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=6, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, r"k must be 1 to 127, below the vocabulary, got 0"),
        ({"k": 128}, r"k must be 1 to 127, below the vocabulary, got 128"),
        ({"temperatures": []}, r"temperatures must be above 0, one at least, got \[\]"),
        ({"temperatures": [0.0, 1.0]}, r"temperatures must be above 0"),
    ],
)
def test_requests_out_of_range(tmp_path: Path, teacher: Teacher, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillationError, match=message):
        build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, **settings)


def test_lookups_that_do_not_fit(tmp_path: Path, teacher: Teacher) -> None:
    cache = build_cache(tmp_path / "c", teacher, BLOCKS, **KEYS, k=6, temperatures=[2.0])
    with pytest.raises(DistillationError, match=r"temperatures 2; the loss asks for 3"):
        cache.lookup(torch.tensor([0]), 3.0, tokens(0))
    with pytest.raises(DistillationError, match=r"block 1 must hold the tokens that the teacher saw"):
        cache.lookup(torch.tensor([0, 1]), 2.0, tokens(0, 2))
    with pytest.raises(DistillationError, match=r"blocks 0 to 4, got 5"):
        cache.lookup(torch.tensor([5]), 2.0, tokens(0))
    with pytest.raises(DistillationError, match=r"blocks of 12 tokens .* got \[1\] numbers and tokens \[1, 7\]"):
        cache.lookup(torch.tensor([0]), 2.0, tokens(0)[:, :7])


def test_damage_is_found(tmp_path: Path, teacher: Teacher) -> None:
    with pytest.raises(DistillationError, match="there is no cache of teacher logits at"):
        TopKCache.open(tmp_path / "none")
    folder = tmp_path / "c"
    build_cache(folder, teacher, BLOCKS, **KEYS, k=6)
    np.save(folder / "indices.npy", np.zeros((1, 2, 3)))
    with pytest.raises(DistillationError, match=r"damaged: indices must be \(5, 12, 6\), got \(1, 2, 3\)"):
        TopKCache.open(folder)
    (folder / "indices.npy").write_bytes(b"")
    with pytest.raises(DistillationError, match="is damaged"):
        TopKCache.open(folder)
    meta = json.loads((folder / "cache.json").read_text()) | {"unknown": 1}
    (folder / "cache.json").write_text(json.dumps(meta))
    with pytest.raises(DistillationError, match=r"is damaged .*unknown"):
        TopKCache.open(folder)
