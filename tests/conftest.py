"""Fixtures every suite shares: tiny random models of three families, and the real text and model where at hand.

Those of `tests/support` are seen everywhere too.
"""

import gc
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from tests.support.plug_in import PlugIn, declaring, forget

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"  # their tensors are tiny, and threads do not outlive a fork
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = [
    "tests.support.running",
    "tests.support.small",
    "tests.support.finished_root",
    "tests.support.pretend.process",
]

CHECKOUT = Path(__file__).resolve().parent.parent


_frozen = [0]  # modules, when it was last done


def pytest_collection_finish() -> None:
    _freeze()


def pytest_runtest_teardown() -> None:
    if len(sys.modules) > _frozen[0] + 50:
        _freeze()


def _freeze() -> None:
    """What was collected and imported stays to the end: no collection of garbage looks through it again.

    Every training ends in one, which costs a third of a second where transformers is imported.
    """
    gc.collect()
    gc.freeze()
    _frozen[0] = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def no_disk_is_waited_for() -> Iterator[None]:
    """A disk is waited for so that a power failure loses nothing, which no test sees; bad descriptors are refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        for moment in _MOMENTS:
            event.listen(Pool, moment, _unsynced)
        yield
        for moment in _MOMENTS:
            event.remove(Pool, moment, _unsynced)


_MOMENTS = ("connect", "checkout")  # before and after the store has configured a connection


def _unsynced(connection: Any, *_: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.OperationalError):  # a database that cannot be opened: the store says so
            connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def synced() -> Iterator[None]:
    """SQLite syncs as the store asks."""
    for moment in _MOMENTS:
        event.remove(Pool, moment, _unsynced)
    yield
    for moment in _MOMENTS:
        event.listen(Pool, moment, _unsynced)


@pytest.fixture(scope="session")
def wikitext2() -> Path:
    """The folder with WikiText-2 `validation.txt` and `test.txt`."""
    folder = Path(os.environ.get("PRUNEGPT_WIKITEXT2", CHECKOUT.parent / "shared" / "data" / "wikitext-2"))
    if not (folder / "test.txt").exists():
        pytest.skip(f"WikiText-2 is not at {folder}; set PRUNEGPT_WIKITEXT2 to a folder with test.txt")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A transformers folder with SmolLM2-135M."""
    folder = Path(os.environ.get("PRUNEGPT_SMOLLM2", CHECKOUT.parent / "smollm2"))
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"SmolLM2 is not at {folder}; set PRUNEGPT_SMOLLM2 to its folder")
    return folder


@pytest.fixture
def tiny_gpt2() -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_opt() -> Any:
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=128,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return OPTForCausalLM(config).eval()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root of its own for a test that runs sweeps."""
    return tmp_path / "runs"


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlugIn]:
    """Declares a part as an installed package would, for one test."""
    yield declaring(monkeypatch)
    monkeypatch.undo()
    forget()
