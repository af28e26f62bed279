"""What a process takes of its machine: against what the system says elsewhere."""

import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prunegpt import memory, usage
from prunegpt.points import HEARTBEAT, beating
from prunegpt.usage import EVERY, Usage
from tests.support.waiting import until

CPU = torch.device("cpu")


class Clock:
    """A clock and a processor's time that tests set."""

    def __init__(self) -> None:
        self.now, self.spent = 100.0, 7.0

    def usage(self) -> Usage:
        return Usage(clock=lambda: self.now, cpu=lambda: self.spent)


def test_the_first_measurement_is_fifteen_seconds_after_the_start() -> None:
    clock = Clock()
    measured = clock.usage()
    assert EVERY == 15
    assert measured.look() == {}
    clock.now += 14.9
    assert measured.look() == {}
    clock.now += 0.1
    clock.spent += 22.5
    assert measured.look()["system/processor_percent"] == pytest.approx(150)
    clock.now += 10
    assert measured.look() == {}
    clock.now += 10
    clock.spent += 5
    assert measured.look()["system/processor_percent"] == pytest.approx(25)  # of the twenty seconds since


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system has no /proc")
def test_memory_is_what_the_system_calls_resident() -> None:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    assert _due().look()["system/memory_mib"] == pytest.approx(kib / 1024, rel=0.05)
    ballast = bytearray(os.urandom(1)) * 2**28
    assert _due().look()["system/memory_mib"] == pytest.approx(kib / 1024 + 256, rel=0.05)
    del ballast


def _due() -> Usage:
    clock = Clock()
    found = clock.usage()
    clock.now += EVERY
    return found


@pytest.mark.realtime
def test_processor_time_is_that_of_all_threads() -> None:
    measured = Usage(every=0.0)
    before = os.times()
    began = time.monotonic()

    def burn() -> None:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass

    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    after = os.times()
    spent = after.user - before.user + after.system - before.system
    found = measured.look()["system/processor_percent"]
    assert found == pytest.approx(100 * spent / (time.monotonic() - began), rel=0.15, abs=5)
    assert spent > 0.15


def _graphics(initialized: bool) -> SimpleNamespace:
    reserved = [3 * 2**20, 0, 5 * 2**20]
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_initialized=lambda: initialized,
            device_count=lambda: len(reserved),
            memory_reserved=lambda device: reserved[device],
            get_device_properties=lambda device: SimpleNamespace(uuid=f"{device}"),
        )
    )


def test_gpus_are_those_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "busy_share", {"GPU-0": 40.0, "GPU-2": 90.0}.__getitem__)
    monkeypatch.setitem(sys.modules, "torch", _graphics(initialized=True))
    found = _due().look()
    assert (found["system/gpu_memory_mib"], found["system/gpu_percent"]) == (8.0, 65.0)
    monkeypatch.setitem(sys.modules, "torch", _graphics(initialized=False))
    assert not [name for name in _due().look() if "gpu" in name]


def test_without_the_drivers_library_memory_is_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> float:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(usage, "busy_share", missing)
    monkeypatch.setitem(sys.modules, "torch", _graphics(initialized=True))
    assert {name for name in _due().look() if "gpu" in name} == {"system/gpu_memory_mib"}


def test_the_heart_beats_on_when_a_measurement_fails(tmp_path: Path) -> None:
    beats: list[str] = []

    def fail() -> None:
        beats.append((tmp_path / HEARTBEAT).read_text().split()[1])
        raise RuntimeError("no measurement")

    with beating(tmp_path, every=0.01, then=fail):
        until(lambda: len(beats) >= 3, "the third beat")
    assert beats[:3] == ["0", "1", "2"]


@pytest.mark.skipif(usage.peak(CPU) is None, reason="only Linux reports the most memory that a process held")
def test_the_peak_of_a_process_counts_from_where_it_was_restarted() -> None:
    size = 2**28
    held = torch.ones(size // 4)
    usage.restart_peak(CPU)
    first = usage.peak(CPU)
    more = torch.ones(size // 4)
    second = usage.peak(CPU)
    del held, more
    memory.give_back()
    still = usage.peak(CPU)
    usage.restart_peak(CPU)
    last = usage.peak(CPU)
    assert first is not None
    assert second is not None
    assert last is not None
    assert second - first == pytest.approx(size, rel=0.05)
    assert still == pytest.approx(second, rel=0.01)
    assert second - last == pytest.approx(2 * size, rel=0.05)
