import pytest
import torch

from prunegpt.errors import ModelError, PruneGPTError
from prunegpt.lm import ranks
from prunegpt.lm.device import PRECISIONS, PRODUCTS, exact_products, overlooked, pick_device, pick_dtype


def test_auto_takes_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("xpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


def test_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match=r"'cuda:2' is not available: .* 2 CUDA devices\. Use device auto, or cpu"):
        pick_device("cuda:2")


def test_device_that_is_absent_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"'cuda' is not available: torch sees no CUDA device"):
        pick_device("cuda")
    with pytest.raises(ModelError, match=r"'mps' is not available: torch sees no Metal device"):
        pick_device("mps")
    with pytest.raises(ModelError, match=r"'xpu' is not available: torch sees no Intel GPU"):
        pick_device("xpu")
    for name in ("gpu", "cpu:1", "cuda:x"):
        with pytest.raises(ModelError, match=rf"unknown device '{name}'\..*Valid: .*cuda"):
            pick_device(name)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_needs_native_bfloat16(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr("prunegpt.lm.device.has_native_bfloat16", lambda device: native)
    assert pick_dtype("auto", torch.device("cuda")) == expected


def test_auto_precision_on_the_cpu_is_float32() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype() == torch.float32


def test_precision_by_name() -> None:
    assert len(PRECISIONS) == 3
    for name, dtype in PRECISIONS.items():
        assert pick_dtype(name) == dtype
    with pytest.raises(ModelError, match=r"unknown precision 'bf16'.*Did you mean 'bfloat16'|unknown precision 'bf16'"):
        pick_dtype("bf16")


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_a_trial_that_was_given_a_gpu_and_runs_without_says_so(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        monkeypatch.delenv(other, raising=False)
    assert overlooked(torch.device("cpu")) == ""
    monkeypatch.setenv(name, "-1")
    assert overlooked(torch.device("cpu")) == ""
    monkeypatch.setenv(name, "0,1")
    assert overlooked(torch.device("cpu")).startswith(f"runs on the CPU although {name} is 0,1: torch")
    assert overlooked(torch.device("cuda")) == ""


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PruneGPTError, match=r"device of its own; 3 processes of this machine see 2\. Set"):
        ranks.check_device(torch.device("cuda"))
    ranks.check_device(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ranks.check_device(torch.device("cuda"))


def test_solvers_compute_in_float32_where_training_may_not() -> None:
    before = [owner.fp32_precision for owner in PRODUCTS]
    torch.backends.fp32_precision = "tf32"
    try:
        training = [owner.fp32_precision for owner in PRODUCTS]
        assert "tf32" in training
        with exact_products():
            assert {owner.fp32_precision for owner in PRODUCTS} == {"ieee"}
        assert [owner.fp32_precision for owner in PRODUCTS] == training
    finally:
        for owner, precision in zip(PRODUCTS, before, strict=True):
            owner.fp32_precision = precision
    with exact_products():
        assert [owner.fp32_precision for owner in PRODUCTS] == before
