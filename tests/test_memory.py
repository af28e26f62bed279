"""Large blocks are used again, and given back when they are asked for."""

import json
import os
import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, json, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages hide how often a block is mapped
from prunegpt import memory
from prunegpt.usage import _resident
if "reuse" in sys.argv:
    memory.reuse_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(16):
    if step == 8:
        before = faults()
    torch.ones(2**24).sum()
found = {"faults": faults() - before}
small = [torch.ones(2**22) for _ in range(16)]
del small[:-1]
found["held"] = _resident()
memory.give_back()
found["left"] = _resident()
print(json.dumps(found))
"""
PAGE = os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def measured(*arguments: str, **variables: str) -> dict[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"THP_MEM_ALLOC_ENABLE": "0", **variables}
    command = [sys.executable, "-c", CODE, *arguments]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout))


def test_a_large_block_is_used_again_and_given_back_at_the_end() -> None:
    plain, reused = measured(), measured("reuse")
    assert plain["faults"] >= 8 * 2**26 // PAGE
    assert reused["faults"] < plain["faults"] / 2  # a few blocks are still at a place of their own at first
    assert reused["held"] - reused["left"] > 200 * 2**20


def test_variables_of_the_user_go_first() -> None:
    assert measured("reuse", MALLOC_MMAP_THRESHOLD_="1048576")["faults"] >= 8 * 2**26 // PAGE
