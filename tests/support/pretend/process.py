"""Starts the process with the pretend device, once a session, and asks it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("guard.cpp")
CHECKOUT = SOURCE.parents[3]
Ask = Callable[..., Any]


def compiled() -> Path:
    """The guard as a library; made once for a version of torch, in the folder for temporary files."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("a pretend device is compiled, and there is no g++ and no clang++")
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    name = f"prunegpt-guard-{os.getuid()}-{version('torch')}-{digest}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        own = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [
                compiler,
                *("-O0", "-std=c++20", "-shared", "-fPIC", "-o", str(own), str(SOURCE)),
                *(f"-I{torch / folder}" for folder in ("include", "include/torch/csrc/api/include")),
                *(f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"),
            ],
            check=True,
        )
        own.replace(library)
    return library


@pytest.fixture(scope="session")
def pretend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Calls a function of `tests.support.pretend.checks` where there is a pretend device, and gives what it found."""
    log = tmp_path_factory.mktemp("pretend") / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.pretend.worker", str(compiled())],
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(function: str, **arguments: Any) -> Any:
            asked = {"function": function, "arguments": arguments}
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                pytest.fail(f"the process with the pretend device died:\n{log.read_text()[-5000:]}")
            answer = json.loads(line)
            if "trace" in answer:
                pytest.fail(answer["trace"])
            return answer["found"]

        yield ask
        process.stdin.close()
