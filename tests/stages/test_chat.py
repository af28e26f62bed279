"""Chat data in a chain: trained on, distilled on, calibrated with, measured on; and what is refused before it runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunegpt.cli import app
from prunegpt.planning.resolve import plan_data
from prunegpt.spec.plan import TrialPlan
from tests.support.chats import TEMPLATE, chat_file
from tests.support.running import RunTrials
from tests.support.specs import problems_of


@pytest.fixture
def chat_model(model_folder: Path, tmp_path: Path) -> str:
    folder = Path(shutil.copytree(model_folder, tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


@pytest.fixture
def chats(tmp_path: Path) -> dict[str, Any]:
    files = {split: str(chat_file(tmp_path / f"{split}.jsonl")) for split in ("train", "validation")}
    return {"files": files, "messages": "messages", "block_size": 32}


def test_only_responses_are_trained_on_and_counted(
    run_trials: RunTrials, chat_model: str, chats: dict[str, Any]
) -> None:
    wanda = {"method": "wanda", "sparsity": 0.5, "calibration": {"windows": 3, "length": 16, "mode": "document"}}
    responses = {"loss_on": "responses"}
    taught = {"teacher": "all", "hidden_gain": 0.1, **responses}
    records = run_trials(
        {"name": "all", "stages": ["finetune"]},
        {"name": "tuned", "stages": [{"finetune": responses}]},
        {
            "name": "taught",
            "stages": [{"prune": wanda}, {"distill": taught}],
        },
        model=chat_model,
        data=chats,
    )
    assert {record.state for record in records.values()} == {"finished"}, [record.trace for record in records.values()]
    everything, tuned, distilled = (records[name].stages[-1] for name in ("all", "tuned", "taught"))
    assert everything.train_tokens == 6 * 2 * 32
    assert 0 < tuned.train_tokens < everything.train_tokens / 2
    assert any(note.startswith("loss on responses: ") for note in tuned.notes)
    assert tuned.train_tokens == distilled.train_tokens  # the same sequences in the same order
    assert tuned.evaluation is not None
    assert "special-none" in tuned.evaluation.protocol
    assert tuned.evaluation.protocol.endswith("/column-messages/first-4")


def plan(model: str, data: dict[str, Any], **finetune: Any) -> TrialPlan:
    trial = {"name": "a", "stages": [{"finetune": finetune}]}
    return plan_data({"name": "s", "base": {"model": model, "data": data}, "trials": [trial]}).trials[0]


def test_what_is_trained_on_decides(chat_model: str, chats: dict[str, Any]) -> None:
    usual, responses = plan(chat_model, chats), plan(chat_model, chats, loss_on="responses")
    assert usual.stages[0].key == responses.stages[0].key
    assert usual.key == plan(chat_model, chats, loss_on="all").key != responses.key


def test_the_check_counts_what_is_trained_on(chat_model: str, chats: dict[str, Any], tmp_path: Path) -> None:
    train = {"max_steps": 3, "per_device_train_batch_size": 2}
    base = {"model": chat_model, "data": chats, "train": train}
    trials = [
        {"name": name, "stages": [{"finetune": {"loss_on": loss_on}}]}
        for name, loss_on in (("a", "all"), ("b", "responses"))
    ]
    spec = tmp_path / "chats.yaml"
    spec.write_text(json.dumps({"name": "chats", "base": base, "trials": trials}))
    done = CliRunner().invoke(app, ["sweep", "check", str(spec), "--root", str(tmp_path / "runs"), "--json"])
    assert done.exit_code == 0, done.exception
    tokens = json.loads(done.stdout)["train_tokens"]
    everything = 3 * 2 * 32
    assert everything < tokens < 1.5 * everything


def test_what_chat_data_lacks_is_found_when_it_is_planned(
    model_folder: Path, chats: dict[str, Any], text_files: dict[str, str]
) -> None:
    tune = {"name": "a", "stages": [{"finetune": {"loss_on": "responses"}}]}

    def told(model: str, data: dict[str, Any], trial: dict[str, Any] = tune) -> str:
        found = problems_of(trial, base={"model": model, "data": data})
        return "\n".join(f"{problem.where}: {problem.message}" for problem in found)

    assert "data.messages: chat messages need a tokeniser with a chat template; that of" in told(
        str(model_folder), chats
    )
    plain = {"files": text_files, "block_size": 32}
    assert "finetune.loss_on: loss_on: responses needs chat messages; the dataset is plain" in told(
        str(model_folder), plain
    )
    assert "unknown column of messages 'turns'" in told(str(model_folder), {**chats, "messages": "turns"})
    both = {**chats, "text_column": "text"}
    assert "data must name either text_column or messages; it has both" in told(str(model_folder), both)
