"""The main job from the shell: a spec becomes a table, once."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.small import Run, make_model, status, write_spec


def test_a_spec_becomes_a_table_and_a_second_run_computes_nothing(
    run_program: Run, run: Run, spec: dict[str, Any], tmp_path: Path
) -> None:
    path = write_spec(tmp_path / "small.yaml", spec)
    checked = json.loads(run("sweep", "check", path, "--json").stdout)
    assert len(checked["trials"]) == 5
    assert checked["cached"] == 0
    assert checked["shared"] == 2  # the model itself, and the fine-tuned one
    tokens = 10 * 4 * 32
    assert checked["train_tokens"] == 3 * tokens
    assert checked["train_tokens_without_sharing"] == 4 * tokens

    run_program("sweep", "run", path)
    trials = status(run, "small")
    assert {trial["state"] for trial in trials.values()} == {"finished"}
    assert trials["finetuned"]["perplexity"] < trials["zero-shot"]["perplexity"]
    assert trials["pruned"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert trials["gradual"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert trials["distilled"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert [stage["kind"] for stage in trials["pruned"]["stages"]] == ["load", "finetune", "prune"]

    (table,) = json.loads(run("table", "small", "--format", "json").stdout)["tables"]
    assert table["title"] == "Small"
    rows = {row["trial"]: row for row in table["rows"]}
    assert rows["finetuned"]["perplexity"] == trials["finetuned"]["perplexity"]
    assert rows["gradual"]["sparsity"] == pytest.approx(80, abs=0.1)
    assert (rows["distilled"]["distilled"], rows["distilled"]["teacher"]) == ("Yes", "tiny(finetuned)")

    found = json.loads(run("compare", "small/zero-shot", "small/finetuned", "--json").stdout)
    assert found["ratio"][0] == pytest.approx(trials["zero-shot"]["perplexity"] / trials["finetuned"]["perplexity"])
    assert {"path": "stages.0.finetune.keep_masks", "first": None, "second": True} in found["settings"]
    run("report", "small", "--out", "report")
    assert "finetuned" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    run("sweep", "run", path)
    again = status(run, "small")
    assert again == trials  # the same numbers, and no further attempt
    assert json.loads(run("sweep", "check", path, "--json").stdout)["train_tokens_remaining"] == 0


def test_a_changed_trial_runs_alone(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    spec["trials"] = spec["trials"][:3]
    spec["tables"] = []
    path = write_spec(tmp_path / "small.yaml", spec)
    run("sweep", "run", path)
    before = status(run, "small")
    spec["trials"][2]["stages"][1]["prune"]["sparsity"] = 0.6
    write_spec(tmp_path / "small.yaml", spec)
    run("sweep", "run", path)
    after = status(run, "small")
    assert after["pruned"]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert after["pruned"]["stages"][1]["cached"]
    assert after["finetuned"] == before["finetuned"]


def test_single_layer_trials_fine_tune_their_baseline_once(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    spec["base"]["model"] = str(make_model(tmp_path / "layers", layers=4, width=16))
    spec["trials"] = [
        {
            "name": "layer-{layers}",
            "stages": ["finetune", {"prune": {"sparsity": 0.8}}],
            "vary": {"stages.1.prune.layers": list(range(4))},
        }
    ]
    spec["tables"] = [{"title": "Layers", "rows": ["layer-*"], "columns": ["model", "layer", "perplexity"]}]
    run("sweep", "run", write_spec(tmp_path / "layers.yaml", spec))
    with sqlite3.connect(tmp_path / "runs" / "prunegpt.db") as database:
        kinds = dict(database.execute("select kind, count(*) from stage group by kind").fetchall())
        computed = dict(database.execute("select kind, sum(computations) from stage group by kind").fetchall())
    assert kinds == {"load": 1, "finetune": 1, "prune": 4}
    assert computed["finetune"] == 1
    (table,) = json.loads(run("table", "small", "--format", "json").stdout)["tables"]
    assert [row["layer pruned"] for row in table["rows"]] == list(range(4))


def test_a_bad_spec_is_refused_before_anything_runs(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    spec["trials"][4]["stages"][0]["distill"]["teacher"] = "finetuend"
    done = run("sweep", "run", write_spec(tmp_path / "small.yaml", spec), check=False)
    assert done.returncode == 1
    assert "there is no trial 'finetuend'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "trials").exists()


def test_only_runs_the_trials_named_and_their_teachers(run: Run, spec: dict[str, Any], tmp_path: Path) -> None:
    path = write_spec(tmp_path / "small.yaml", spec)
    run("sweep", "run", path, "--only", "distilled")
    states = {name: trial["state"] for name, trial in status(run, "small").items()}
    assert states == {
        "zero-shot": "waiting",
        "finetuned": "finished",
        "pruned": "waiting",
        "gradual": "waiting",
        "distilled": "finished",
    }
