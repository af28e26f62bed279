"""Agents that we start: their environment is the user's own, with their share of the machine."""

import os
from pathlib import Path

import pytest

from prunegpt.tracking.agents import agent_environment, run_agents

OWN = {
    "WANDB_BASE_URL": "https://wandb.example",
    "WANDB_API_KEY": "k" * 40,
    "WANDB_MODE": "offline",
    "WANDB_ENTITY": "team",
    "WANDB_PROJECT": "theirs",
    "WANDB_DIR": "/somewhere",
}


def test_an_agent_has_the_users_own_environment_and_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_AGENT_DISABLE_FLAPPING", raising=False)
    before = dict(os.environ)
    made = agent_environment(1, 2, ["4", "5"])
    assert {name: made[name] for name in OWN} == OWN
    assert made["WANDB_AGENT_DISABLE_FLAPPING"] == "true"
    assert made["CUDA_VISIBLE_DEVICES"] == "5"
    assert dict(os.environ) == before


CLIENT = """
import os, pathlib, sys
with open({told!r}, "a") as file:
    file.write(os.environ["WANDB_BASE_URL"] + " " + " ".join(sys.argv[1:]) + "\\n")
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 3])
def test_one_agent_a_slot_and_the_worst_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    package = tmp_path / "wandb"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(CLIENT.format(told=str(tmp_path / "told"), code=code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    said: list[str] = []
    assert run_agents("team/study/abc", slots=2, count=3, say=said.append) == code
    assert (tmp_path / "told").read_text() == "https://wandb.example agent --count 3 team/study/abc\n" * 2
    assert said[0].startswith("2 agents of team/study/abc run")
