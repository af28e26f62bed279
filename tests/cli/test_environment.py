"""What the environment would decide and no key holds is not used."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunegpt import cli
from prunegpt.root import Root
from prunegpt.store import Store
from tests.support.small import Run

DECIDING = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
}


@pytest.mark.parametrize("name", DECIDING)
def test_no_command_has_it(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    monkeypatch.setenv(name, DECIDING[name])
    monkeypatch.setattr(cli, "app", lambda: seen.append(name in cli.os.environ))
    cli.main()
    assert seen == [False]
    assert f"{name} would change what is computed" in " ".join(capsys.readouterr().err.split())


def test_a_figure_is_the_one_of_its_key(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    """Accelerate's own precision came before that of the spec, and the record said float32."""
    spec["base"] |= {"precision": "float32", "evaluate": {"max_windows": 2}}
    spec["base"]["train"]["max_steps"] = 3
    spec["trials"], spec["tables"] = spec["trials"][1:2], []
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    figures = []
    for root, given in (("one", {}), ("two", DECIDING)):
        run("sweep", "run", "spec.yaml", PRUNEGPT_ROOT=str(tmp_path / root), **given)
        with Store.open(Root(tmp_path / root)) as store:
            (result,) = store.results("small")
        figures.append([(stage.key, stage.evaluation and stage.evaluation.loss) for stage in result.stages])
    assert figures[0] == figures[1]
