"""Code that a model brings: it is part of the key, and it runs from where the running trial says, and only there."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunegpt.cli.measure import open_model
from prunegpt.errors import ModelError, PruneGPTError
from prunegpt.lm.models import load_model
from prunegpt.planning.facts import model_facts
from prunegpt.planning.fingerprint import Files
from prunegpt.planning.inputs import Inputs
from prunegpt.planning.resolve import plan_data
from prunegpt.planning.sources import model_files
from prunegpt.records import AttemptRecord
from prunegpt.root import Root
from prunegpt.spec.plan import TrialPlan
from prunegpt.spec.schema import ModelSpec
from prunegpt.stages import cache
from prunegpt.sweep.reopened import trusting
from tests.support.running import run_attempt

CODE = """
import pathlib
from transformers import GPT2Config, GPT2LMHeadModel

from .scale import SCALE

with open({canary!r}, "a") as file:
    print(__file__, file=file)

class OwnConfig(GPT2Config):
    model_type = "own{number}"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig

    def forward(self, *args, **options):
        found = super().forward(*args, **options)
        found.logits = found.logits * SCALE
        return found
"""


@pytest.fixture
def own(tmp_path: Path, model_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A model with code of its own, which notes in a file where it ran from."""
    folder = tmp_path / "own"
    shutil.copytree(model_folder, folder)
    content = CODE.format(canary=str(tmp_path / "ran.txt"), number=abs(hash(request.node.name)) % 10**6)
    (folder / "modeling_own.py").write_text(content)
    (folder / "scale.py").write_text("SCALE = 1.0\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": content.partition('model_type = "')[2].partition('"')[0],
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def plan(own: Path, text_files: dict[str, str], tmp_path: Path) -> Callable[..., TrialPlan]:
    def make(root: str = "runs", *, trust: bool = True, source: Path = own) -> TrialPlan:
        spec = {
            "name": "own",
            "base": {
                "model": {"source": str(source), "trust_remote_code": trust},
                "data": {"files": text_files, "block_size": 32},
                "evaluate": {"max_windows": 2},
                "train": {"max_steps": 2, "per_device_train_batch_size": 2},
            },
            "trials": [{"name": "pruned", "stages": [{"prune": {"sparsity": 0.5}}, "finetune"]}],
        }
        return plan_data(spec, root=Root(tmp_path / root)).trials[0]

    return make


def run(plan: TrialPlan, root: Path, attempt: int = 1, *, trust: bool = True) -> AttemptRecord:
    return run_attempt(Root(root), plan, attempt, trust_remote_code=trust)


def perplexities(record: AttemptRecord) -> list[float | None]:
    assert record.state == "finished", record.trace
    return [stage.evaluation.perplexity if stage.evaluation else None for stage in record.stages]


def test_a_change_in_any_file_of_the_code_is_another_key(own: Path, plan: Any, tmp_path: Path) -> None:
    first = plan()
    before = perplexities(run(first, tmp_path / "runs"))
    (own / "scale.py").write_text("SCALE = 0.5\n")
    changed = plan()
    assert {stage.key for stage in changed.stages}.isdisjoint(stage.key for stage in first.stages)
    after = perplexities(run(changed, tmp_path / "runs", attempt=2))
    assert all(one != two for one, two in zip(before, after, strict=True))
    assert after == perplexities(run(plan("fresh"), tmp_path / "fresh"))


TOKENISER = """
from transformers import GPT2Tokenizer

class Own(GPT2Tokenizer):
    pass
"""


@pytest.mark.parametrize("trust", [True, False])
def test_the_code_of_a_tokeniser_elsewhere_is_in_the_key_where_it_may_run(
    own: Path, model_folder: Path, tmp_path: Path, trust: bool
) -> None:
    tokenizer = shutil.copytree(model_folder, tmp_path / "tokenizer")
    (tokenizer / "below").mkdir()
    model = ModelSpec(source=str(own), tokenizer=str(tokenizer), trust_remote_code=trust)
    for file in (tokenizer / "tokenization_own.py", tokenizer / "below" / "helper.py"):
        file.write_text(TOKENISER)
        before = model_facts(model, Files(None))
        file.write_text(TOKENISER + "# changed")
        after = model_facts(model, Files(None))
        assert (after.fingerprint != before.fingerprint, file in after.files, file in model_files(model)) == (
            trust,
        ) * 3


@pytest.mark.parametrize("place", ["model", "tokenizer"])
def test_the_code_of_a_tokeniser_in_another_repository_is_not_taken_as_it_comes(
    own: Path, model_folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = shutil.copytree(model_folder, tmp_path / "tokenizer")
    file = (own if place == "model" else tokenizer) / "tokenizer_config.json"
    named = {"AutoTokenizer": ["other/repository--tokenization_own.Own", None]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": named}))
    monkeypatch.setattr("prunegpt.planning.hub.commit", lambda name, revision, kind="model": f"commit of {name}")
    if place == "model":
        found = model_facts(ModelSpec(source=str(own), trust_remote_code=True), Files(None))
        assert found.model.code_revision == "commit of other/repository"
    else:
        model = ModelSpec(source=str(own), tokenizer=str(tokenizer), trust_remote_code=True)
        with pytest.raises(ModelError, match="a tokeniser's code must be next to it"):
            model_facts(model, Files(None))


def test_code_that_changed_after_planning_is_refused(own: Path, plan: Any, tmp_path: Path) -> None:
    planned = plan()
    (own / "scale.py").write_text("SCALE = 0.5\n")
    record = run(planned, tmp_path / "runs")
    assert record.state == "failed"
    assert f"{own / 'scale.py'} has another content now" in record.error


def test_a_published_stage_is_loaded_with_the_code_of_the_model_and_runs_none_of_the_root(
    own: Path, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, root = plan(), Root(tmp_path / "runs")
    perplexities(run(planned, root.path))
    stored = root.stage(planned.key) / "model"
    for file in stored.glob("*.py"):  # a root that came from elsewhere, sealed anew by who changed it
        file.write_text(f"raise AssertionError('{file} ran')")
    (root.stage(planned.key) / "files.json").unlink()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)  # as in another process: code that was run is not there
    ran = (tmp_path / "ran.txt").read_text()
    state = cache.load(root, planned.key, planned.model, Inputs.of(planned, root), device=torch.device("cpu"))
    assert type(state.model).__name__ == "OwnModel"
    assert (tmp_path / "ran.txt").read_text() != ran, "the code was run again"
    with pytest.raises(ModelError, match=r"modeling_own.py ran"):
        load_model(stored, trust_remote_code=True)


def test_a_root_brings_no_trust_with_it(own: Path, plan: Any, tmp_path: Path) -> None:
    trusted = plan()
    run(trusted, tmp_path / "runs")
    (tmp_path / "ran.txt").unlink()
    untrusting = trusted.model.model_copy(update={"trust_remote_code": False})
    root = Root(tmp_path / "runs")
    inputs = Inputs.of(trusted, root)
    with pytest.raises(PruneGPTError, match=r"runs its own code\. Set trust_remote_code: true"):
        cache.load(root, trusted.stages[0].key, untrusting, inputs, device=torch.device("cpu"))
    assert not (tmp_path / "ran.txt").exists()


def test_an_attempt_folder_brings_no_trust_with_it(own: Path, plan: Any, tmp_path: Path) -> None:
    record = run(plan(), tmp_path / "runs", trust=False)
    assert record.state == "failed"
    assert "--trust-remote-code" in record.error
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize("kept", ["model", "stage"])
def test_an_attempt_folder_may_ask_in_any_of_its_places(own: Path, plan: Any, tmp_path: Path, kept: str) -> None:
    """Trust is said of the trial's model and again of each stage's: one of them is enough to be asked."""
    planned = plan()
    plain = planned.model.model_copy(update={"trust_remote_code": False})
    stages = tuple(stage.model_copy(update={"model": plain}) for stage in planned.stages)
    changed = planned.model_copy(update={"stages": stages} if kept == "model" else {"model": plain})
    record = run(changed, tmp_path / "runs", trust=False)
    assert record.state == "failed"
    assert "--trust-remote-code" in record.error
    assert not (tmp_path / "ran.txt").exists()


TRUSTING = [
    {"base": {"model": {"source": "m", "trust_remote_code": True}}},
    {"trials": [{"search": {"n_trials": 2}, "model": {"trust_remote_code": True}}]},
    {"trials": [{"vary": {"model.trust_remote_code": [False, True]}}]},
    {"trials": [{"search": {"space": {"model.trust_remote_code": {"choices": [True]}}}}]},
    {"trials": [{"stages": [{"distill": {"teacher": {"model": {"source": "m", "trust_remote_code": "yes"}}}}]}]},
]


@pytest.mark.parametrize("spec", TRUSTING)
def test_a_stored_spec_that_asks_for_trust_anywhere_is_seen(spec: dict[str, Any]) -> None:
    assert trusting(spec)
    assert not trusting({"base": {"model": {"source": "m", "trust_remote_code": False}}, "trials": [{"name": "a"}]})


def test_the_command_line_opens_such_a_model_where_it_is_told_to(own: Path, tmp_path: Path) -> None:
    with pytest.raises(PruneGPTError, match="runs its own code"):
        open_model(str(own), Root(tmp_path / "runs"), "cpu")
    assert not (tmp_path / "ran.txt").exists()
    found = open_model(str(own), Root(tmp_path / "runs"), "cpu", trust_remote_code=True)
    assert type(found.model).__name__ == "OwnModel"
