"""A process that has a pretend device, and checks what it is asked to: a line of JSON in, a line out."""

import ctypes
import gc
import json
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path


def main(guard: str) -> None:
    """Answers until its input ends. The guard must be loaded before torch asks what devices there are."""
    package = find_spec("torch")
    assert package is not None
    assert package.origin is not None
    for name in (
        *(str(Path(package.origin).parent / "lib" / f"{one}.so") for one in ("libc10", "libtorch_cpu")),
        guard,
    ):
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # what is checked may print
    from tests.support.pretend import checks, device

    device.install()
    gc.freeze()  # what is imported stays
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"found": getattr(checks, asked["function"])(**asked["arguments"])}
        except Exception:
            answer = {"trace": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
