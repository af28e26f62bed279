"""Memory of the process: large blocks on a CPU, mapped files, and the collector of unreachable objects.

Large blocks are used again from step to step, and given back at the end of a stage. By itself the C library asks the
kernel for each block of 32 MiB or more, and gives it back as soon as it is free. The logits of every step are such
blocks: the kernel then clears gigabytes a step, page by page.
"""

import ctypes
import gc
import mmap
import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 2**31 - 1  # bytes, the most that mallopt takes
_MAPPED = 2**30  # bytes of a block that is still asked for by itself
_MAPPED_BEFORE = 2**25  # the most that glibc before 2.35 takes
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # of torch: tensors of 2 MiB and more in pages of 2 MiB


def reuse_memory() -> None:
    """Lets this process use its large blocks again, where its C library is glibc. Variables of the user go first."""
    os.environ.setdefault(_HUGE_PAGES, "1")
    mallopt = _of_glibc("mallopt")
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if mallopt(_MMAP_THRESHOLD, _MAPPED) or mallopt(_MMAP_THRESHOLD, _MAPPED_BEFORE):
        mallopt(_TRIM_THRESHOLD, _KEPT)  # alone it would have each block over 128 KiB asked for


def give_back() -> None:
    """Gives the free blocks of this process back to the system, where its C library is glibc."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def mapped_files() -> list[range]:
    """Addresses of this process that map files, in order; none where the system is not Linux."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    ends = [words[0].split("-") for line in lines if len(words := line.split(maxsplit=5)) > 5 and words[4] != "0"]
    return [range(int(first, 16), int(last, 16)) for first, last in ends]


def let_go(part: range, files: Sequence[range]) -> None:
    """Takes pages of a mapped file out of this process; they are read again where they are asked for.

    Args:
        part: addresses; those outside of `files`, and pages that are not wholly in it, stay.
        files: see `mapped_files`. What was written to a private mapping is lost.
    """
    first, last = -(-part.start // mmap.PAGESIZE) * mmap.PAGESIZE, part.stop // mmap.PAGESIZE * mmap.PAGESIZE
    place = bisect(files, first, key=lambda file: file.start) - 1  # the last that begins at it or before
    madvise = _of_glibc("madvise")
    if madvise and first < last and place >= 0 and last <= files[place].stop:
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


@contextmanager
def without_collector(*, lasting: bool = False) -> Iterator[None]:
    """No search for unreachable objects in cycles, which walks all objects again and again while many are made.

    Args:
        lasting: what is made stays and has no cycles, so that no later search walks it either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if lasting:
                gc.freeze()
            gc.enable()


def _of_glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # there is no such handle on Windows
        return None
